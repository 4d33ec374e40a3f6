"""Samplers: what writes new sequences while a student trains."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from raykd.errors import RecipeError, first_line
from raykd.recipe.training import Sequences, StudentSampling
from raykd.training import batches


class Requests(NamedTuple):
    """The samples that this worker needs for a step: prompts (token ids), and for each the seed of its noise."""

    prompts: list[np.ndarray]
    seeds: list[int]


class Sampler(Protocol):
    """Writes a sequence for each prompt of a step.

    A user's own is a class, module:NAME, that is called with (student's model, tokenizer, StudentSampling).
    """

    def begin(self, requests: Requests) -> Any:
        """Called some steps ahead, by the thread that plans batches; returns at once with what `complete` takes."""
        ...

    def complete(self, pending: Any) -> Sequence[Sequence[int]]:
        """Called before the step; for each prompt the token ids of its sample, one at least, with the end token."""
        ...


class StudentSampler:
    """The sampler in which the student writes, with the weights of the step, in evaluation mode.

    A sample depends on the weights, the prompt and its seed alone, not on its batch: its noise is its own.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: StudentSampling, budget: int):
        """`budget`: at most so many padded tokens of prompts and samples are written at once."""
        # LoRA's layers are inside the model; its wrapper would leave this configuration behind
        self.model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.tokenizer, self.settings, self.budget = tokenizer, settings, budget
        self.causal = not model.config.is_encoder_decoder

    def begin(self, requests: Requests) -> Requests:
        return requests

    @torch.no_grad()
    def complete(self, pending: Requests) -> list[list[int]]:
        lengths = [len(prompt) + self.settings.max_tokens for prompt in pending.prompts]
        samples: list[list[int]] = [[]] * len(lengths)
        training, checkpoints_own = self.model.training, self.model.generation_config
        self.model.eval()
        self.model.generation_config = self._config(checkpoints_own)
        for places in batches.by_length(lengths, self.budget):
            written = self._generate([pending.prompts[i] for i in places], [pending.seeds[i] for i in places])
            for place, ids in zip(places.tolist(), written, strict=True):
                samples[place] = ids
        self.model.train(training)
        self.model.generation_config = checkpoints_own
        return samples

    def _generate(self, prompts: list[np.ndarray], seeds: list[int]) -> list[list[int]]:
        collate = batches.pad_left if self.causal else batches.pad_right
        padded = collate(prompts, self.tokenizer.pad_token_id)
        tensors = {name: tensor.to(self.model.device) for name, tensor in padded.items()}
        ids = self.model.generate(**tensors, logits_processor=_processors(self.settings, seeds))
        first = tensors["input_ids"].shape[1] if self.causal else 1
        return [_until_end(row, self.tokenizer.eos_token_id) for row in ids[:, first:].tolist()]

    def _config(self, checkpoints_own: GenerationConfig) -> GenerationConfig:
        """Greedy decoding of the processed scores, without what a checkpoint's own configuration would add."""
        return GenerationConfig(
            max_new_tokens=self.settings.max_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            decoder_start_token_id=checkpoints_own.decoder_start_token_id,
        )


class RowNoise(LogitsProcessor):
    """Draws a token for each row with the row's own generator: the likeliest one after Gumbel noise is a sample."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = [torch.empty(scores.shape[1], dtype=torch.float64).exponential_(generator=g) for g in self.generators]
        return scores.double() - torch.stack(noise).log_().to(scores.device)


def _processors(settings: StudentSampling, seeds: Sequence[int]) -> LogitsProcessorList:
    """What turns logits into scores whose largest is the sampled token; nothing for greedy decoding."""
    processors = LogitsProcessorList()
    if settings.temperature == 0:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(RowNoise(seeds))
    return processors


def _until_end(ids: list[int], end: int) -> list[int]:
    """A row up to its end token, included; a row without one was cut by its length."""
    return ids[: ids.index(end) + 1] if end in ids else ids


def sampler_of(sequences: Sequences, model: Any, tokenizer: Any, budget: int) -> Sampler | None:
    """The sampler of a training; None where all targets are known before. Raises RecipeError for one that fails."""
    names = sequences.samplers()
    if not names:
        return None
    settings = sequences.student or StudentSampling()
    if names[0] == "student":
        return StudentSampler(model, tokenizer, settings, budget)
    module, _, attribute = names[0].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(model, tokenizer, settings)
    except Exception as error:  # the user's own code
        raise RecipeError(f"sequences: {names[0]}: {first_line(error)}") from None
