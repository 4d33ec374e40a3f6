"""Targets and predictions of an encoder's head: a class, a number or a span of the prompt, as integers and as text.

A head target is a list of int32. A class is its place among the labels; a number, the bits of its float32; a span, its
first and last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from raykd.recipe.models import Task
from raykd.training import batches

LONGEST = 30  # tokens of a predicted span


class HeadPrediction(NamedTuple):
    """What a head predicts for a prompt: a head target, and the natural log-probability of each of its integers.

    A regression has no log-probabilities.
    """

    head_target: list[int]
    logprobs: list[float]


def task_of(config: Any) -> Task:
    """The task of a saved model."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForQuestionAnswering"):
        return "extractive_qa"
    if architecture.endswith("ForSequenceClassification"):
        return "regression" if config.num_labels == 1 else "classification"
    return "generation"


def encode_target(task: Task, labels: Sequence[str] | None, tokenizer: Any, prompt: str, target: str) -> list[int]:
    """The head target of a text. Raises ValueError, with the reason, for a text that is none."""
    if task == "classification":
        classes = list(labels or ())
        if target.strip() not in classes:
            raise ValueError(f"{target.strip()!r:.40} is none of the labels {', '.join(classes)}")
        return [classes.index(target.strip())]
    if task == "regression":
        try:
            return [int(np.float32(float(target)).view(np.int32))]
        except ValueError:
            raise ValueError(f"{target!r:.40} is no number") from None
    start = prompt.find(target.strip())
    if start < 0:
        raise ValueError(f"{target.strip()!r:.40} is no part of the input")
    offsets = tokenizer(prompt, return_offsets_mapping=True).offset_mapping
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(target.strip()) and b > start and b > a]
    return [inside[0], inside[-1]]


def target_tensor(task: Task, head_targets: list[np.ndarray]) -> torch.Tensor:
    """Head targets as a Student takes them: (B, 1) classes, (B, 1) float numbers or (B, 2) first and last tokens."""
    stacked = np.stack([np.asarray(target, np.int32) for target in head_targets])
    return torch.from_numpy(stacked.view(np.float32).copy() if task == "regression" else stacked.astype(np.int64))


@torch.no_grad()
def predict(model: Any, task: Task, prompt_ids: list, pad: int) -> list[HeadPrediction]:
    """What the model's head predicts for each encoded prompt; `pad` is the padding token.

    A span is the most likely one of at most LONGEST tokens.
    """
    tensors = {name: t.to(model.device) for name, t in batches.pad_right(prompt_ids, pad).items()}
    outputs = model(**tensors)
    if task == "classification":
        logprobs, classes = outputs.logits.float().log_softmax(1).max(1, keepdim=True)
        return _predictions(classes, logprobs)
    if task == "regression":
        values = outputs.logits[:, 0].tolist()
        return [HeadPrediction([int(np.float32(value).view(np.int32))], []) for value in values]
    padding = tensors["attention_mask"] == 0
    start, end = (x.float().masked_fill(padding, -1e30) for x in (outputs.start_logits, outputs.end_logits))
    width = start.shape[1]
    allowed = torch.ones(width, width, dtype=torch.bool, device=start.device).triu().tril(LONGEST - 1)
    best = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    places_B2 = torch.stack([best // width, best % width], 1)
    logprobs = torch.stack([start.log_softmax(1), end.log_softmax(1)], 1).gather(2, places_B2[:, :, None])[:, :, 0]
    return _predictions(places_B2, logprobs)


def _predictions(head_targets: torch.Tensor, logprobs: torch.Tensor) -> list[HeadPrediction]:
    rows = zip(head_targets.tolist(), logprobs.tolist(), strict=True)
    return [HeadPrediction(target, of_target) for target, of_target in rows]


def decode(task: Task, labels: Sequence[str] | None, tokenizer: Any, prompt_ids: Any, head_target: Any) -> str:
    """A head target as text; a span is written as the tokenizer writes its tokens."""
    if task == "classification":
        return list(labels or ())[head_target[0]]
    if task == "regression":
        return f"{np.int32(head_target[0]).view(np.float32):.6g}"
    span_ids = list(prompt_ids[head_target[0] : head_target[1] + 1])
    return tokenizer.decode(span_ids, skip_special_tokens=True).strip()


def span_text(tokenizer: Any, prompt: str, head_target: list[int]) -> str:
    """A span as it stands in the prompt."""
    offsets = tokenizer(prompt, return_offsets_mapping=True).offset_mapping
    return prompt[offsets[head_target[0]][0] : offsets[head_target[1]][1]]
