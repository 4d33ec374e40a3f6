"""The transformers engine: encoder-decoder models, and decoder-only ones where vLLM has no build.

`generate` of transformers writes a batch; then the model reads it once more with the outputs as targets (teacher
forcing). That one forward pass gives log-probabilities and payloads for every way of decoding, for given targets, and
for what vLLM wrote.

Shape letters: N output tokens of a batch, one after the other; H input of the head; V vocabulary.
"""

from __future__ import annotations

import difflib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from raykd.engines.budget import Budget, in_batches
from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected, reject
from raykd.errors import EngineError
from raykd.losses.tokens import IGNORE
from raykd.models.files import model_folder
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.recipe.engine_options import RESERVED
from raykd.recipe.generation import Sampling, TextPayload
from raykd.recipe.models import Checkpoint
from raykd.training import batches

UNBOUNDED = 10**9  # T5 has no longest input
CHUNK = 1024  # positions whose logits exist at the same time
FIRST_BATCH = 4096  # tokens of the first batch where the recipe leaves the size open


class _Record(NamedTuple):
    """What the forward pass gives for one output: as in PseudoTarget."""

    logprobs: np.ndarray
    payload: dict[str, np.ndarray]


class _Sample(NamedTuple):
    """One output as the model's thread returns it: token ids, and their record."""

    ids: list[int]
    record: _Record


class TransformersEngine:
    """Works in batches of a token budget, longest prompts first: padding is small, and memory shows at once.

    Raises EngineError, in one line, for options that it or the model cannot serve.
    """

    def __init__(self, config: EngineConfig):
        self.options = _options(config.sampling)
        self.sampling, self.payload, self.seed = config.sampling, config.payload, config.seed
        self.special_tokens = config.special_tokens
        self.records = not isinstance(config.payload, TextPayload) or config.payload.logprobs
        spec: Any = config.engine
        budget = spec.batch_tokens
        self.writing, self.reading = (Budget(budget or FIRST_BATCH, growing=budget is None) for _ in range(2))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = model_folder(config.model)
        self.tokenizer = load_tokenizer(folder)
        self.tokenizing = threading.Lock()  # a fast tokenizer must not be set up by two threads
        # One thread for all work of the model: OpenMP keeps a pool of threads per calling thread.
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.threads,))
        self.thread.submit(self._load, folder, getattr(torch, spec.dtype)).result()
        self.prompt_tokens = self.output_tokens = 0

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate; with beams, sample i is the beam of rank i. Raises EngineError where seeds are given."""
        if seeds is not None:
            raise EngineError("the transformers engine cannot seed each sample: set sampling.seeded to false")
        rows = self._encode(prompts)
        results: list = [self._reject(row, "max_tokens", self.sampling.max_tokens) for row in rows]
        todo = [i for i, rejected in enumerate(results) if rejected is None]
        written = self.thread.submit(self._generate, [rows[i] for i in todo], samples).result()
        for i, of_prompt in zip(todo, written, strict=True):
            texts = self._decode([sample.ids for sample in of_prompt])
            results[i] = [self._pseudo_target(text, sample) for text, sample in zip(texts, of_prompt, strict=True)]
        return results

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """As Engine.score; the text of a pseudo-target is the target as given."""
        rows = self._encode(prompts)
        with self.tokenizing:
            target_ids = encode_targets(self.tokenizer, targets)
        results: list = [
            self._reject(row, "target tokens", len(ids)) for row, ids in zip(rows, target_ids, strict=True)
        ]
        todo = [i for i, rejected in enumerate(results) if rejected is None]
        records = self.thread.submit(self._score, [rows[i] for i in todo], [target_ids[i] for i in todo]).result()
        for i, record in zip(todo, records, strict=True):
            results[i] = PseudoTarget(
                text=targets[i],
                token_ids=np.array(target_ids[i], np.int32),
                logprobs=record.logprobs,
                finish_reason="stop",
                payload=record.payload,
            )
        return results

    def payloads(self, prompt_ids: list[list[int]], target_ids: list[list[int]]) -> list[dict[str, np.ndarray]]:
        """The payload of each target, as in PseudoTarget, whatever wrote it; no prompt and no target may be empty."""
        return [record.payload for record in self.thread.submit(self._score, prompt_ids, target_ids).result()]

    def close(self) -> None:
        """Release the model and its memory."""
        self.thread.shutdown()
        del self.model, self.head
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------- texts and tokens

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        with self.tokenizing:
            return encode_inputs(self.tokenizer, prompts, self.encoder, self.special_tokens)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        with self.tokenizing:
            return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def _reject(self, row: list[int], output: str, output_tokens: int) -> Rejected | None:
        return reject(len(row), output, output_tokens, self.context, self.encoder)

    def _pseudo_target(self, text: str, sample: _Sample) -> PseudoTarget:
        return PseudoTarget(
            text=text,
            token_ids=np.array(sample.ids, np.int32),
            logprobs=sample.record.logprobs,
            finish_reason="stop" if sample.ids[-1] in self.ends else "length",
            payload=sample.record.payload,
        )

    # -------------------------------------------------------------------------------- in the model's thread

    @torch.inference_mode()
    def _load(self, folder: Path, dtype: torch.dtype) -> None:
        model = load_model(Checkpoint(kind="checkpoint", path=str(folder)), self.tokenizer)
        self.model, self.config = model.to(self.device, dtype).eval(), model.config.get_text_config(decoder=True)
        self.encoder, self.head = bool(model.config.is_encoder_decoder), model.get_output_embeddings()
        self.context = getattr(self.config, "max_position_embeddings", None) or UNBOUNDED
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        # The recipe says how to decode: of the model's own defaults only the special tokens stay.
        own = {k: v for k, v in model.generation_config.to_dict().items() if k.endswith("_token_id")}
        ends = own.get("eos_token_id") or []
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        own.update(eos_token_id=sorted(self.ends), pad_token_id=self.tokenizer.pad_token_id)
        model.generation_config = GenerationConfig(**own)
        self._check_head(1e-4 if dtype == torch.float32 else 3e-2)

    def _check_head(self, tolerance: float) -> None:
        """Raises EngineError for a model that makes more of its head's output than `_logits` knows."""
        end = self.tokenizer.eos_token_id
        hidden_NH, expected_NV = self._hidden([[end]], [[end]])
        logits_NV = self._logits(hidden_NH, self.head.weight.float())
        if not torch.allclose(logits_NV, expected_NV.float(), rtol=tolerance, atol=tolerance):
            raise EngineError(f"model_type {self.config.model_type}: its logits are not those of its head")

    def _generate(self, rows: list[list[int]], samples: range) -> list[list[_Sample]]:
        """The samples of each prompt."""
        width = max(len(samples), self.options.get("num_beams", 1))

        def batch(numbers: list[int]) -> list[list[_Sample]]:
            prompts = [rows[i] for i in numbers]
            outputs = self._write(prompts, samples)
            if self.records:
                records = self._read([row for row in prompts for _ in samples], outputs)
            else:
                records = [_Record(np.zeros(0, np.float32), {})] * len(outputs)
            self.prompt_tokens += sum(map(len, prompts))
            self.output_tokens += sum(map(len, outputs))
            written = [_Sample(ids, record) for ids, record in zip(outputs, records, strict=True)]
            return [written[start : start + len(samples)] for start in range(0, len(written), len(samples))]

        return in_batches([(len(row) + self.sampling.max_tokens) * width for row in rows], self.writing, batch)

    def _score(self, rows: list[list[int]], targets: list[list[int]]) -> list[_Record]:
        """The record of each target."""

        def batch(numbers: list[int]) -> list[_Record]:
            return self._read([rows[i] for i in numbers], [targets[i] for i in numbers])

        self.prompt_tokens += sum(map(len, rows))
        return in_batches([len(row) + len(ids) for row, ids in zip(rows, targets, strict=True)], self.reading, batch)

    @torch.inference_mode()
    def _write(self, rows: list[list[int]], samples: range) -> list[list[int]]:
        """Token ids of each sample of each prompt, up to and with the first end token."""
        first = 0 if self.options["do_sample"] else samples.start  # beams are ranked: the earlier ones come along
        count = len(samples) + first
        if self.options["do_sample"]:  # further samples of the same prompts must not repeat the first ones
            content = repr((self.seed, samples.start, rows)).encode()
            torch.manual_seed(int.from_bytes(hashlib.blake2b(content, digest_size=7).digest()))
        pad = self.tokenizer.pad_token_id
        tensors = batches.collate(rows, rows, pad, causal=False) if self.encoder else batches.pad_left(rows, pad)
        written_BT = self.model.generate(
            input_ids=tensors["input_ids"].to(self.device),
            attention_mask=tensors["attention_mask"].to(self.device),
            generation_config=GenerationConfig(**self.options, num_return_sequences=count),
        )
        skip = 1 if self.encoder else tensors["input_ids"].shape[1]
        outputs = [self._cut(ids) for ids in written_BT[:, skip:].tolist()]
        return [ids for i, ids in enumerate(outputs) if i % count >= first]

    def _cut(self, ids: list[int]) -> list[int]:
        """Token ids up to and with the first end token."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: end + 1]

    @torch.inference_mode()
    def _read(self, rows: list[list[int]], targets: list[list[int]]) -> list[_Record]:
        """The record of each target of one batch."""
        hidden_NH, _ = self._hidden(rows, targets)
        tokens_N = torch.tensor([token for ids in targets for token in ids], device=self.device)
        weight_VH = self.head.weight.float()
        chunks = zip(hidden_NH.split(CHUNK), tokens_N.split(CHUNK), strict=True)
        parts = [self._columns(hidden, tokens, weight_VH) for hidden, tokens in chunks]
        joined = {name: np.concatenate([columns[name] for columns in parts]) for name in parts[0]}
        return [_Record(row.pop("logprobs"), row) for row in _by_target(joined, [len(ids) for ids in targets])]

    def _hidden(self, rows: list[list[int]], targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's input at the targets' positions (N, H), and the model's own logits of the first one (1, V)."""
        tensors = batches.collate(rows, targets, self.tokenizer.pad_token_id, causal=not self.encoder)
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        target_BT = tensors.pop("labels") != IGNORE
        if self.encoder:
            tensors = self._decoder_inputs(rows, targets)
        seen: list[torch.Tensor] = []

        def keep(_, arguments: tuple) -> tuple:
            seen.append(arguments[0][target_BT])
            return (seen[0][None, :1],)  # the head itself has next to nothing to do

        with self.head.register_forward_pre_hook(keep):
            logits = self.model(**tensors, use_cache=False).logits
        return seen[0], logits[0]

    def _decoder_inputs(self, rows: list[list[int]], targets: list[list[int]]) -> dict[str, Any]:
        """Inputs of the decoder: the samples of a prompt share one pass of the encoder."""
        places = {row: place for place, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        place_B = torch.tensor([places[tuple(row)] for row in rows], device=self.device)
        start, pad = self.model.generation_config.decoder_start_token_id, self.tokenizer.pad_token_id
        shifted = [[start, *ids[:-1]] for ids in targets]
        tensors = batches.collate([list(row) for row in places], [[pad]] * len(places), pad, causal=False)
        mask, inputs = tensors["attention_mask"].to(self.device), tensors["input_ids"].to(self.device)
        states = self.model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states[place_B]),
            "attention_mask": mask[place_B],
            "decoder_input_ids": batches.collate(shifted, shifted, pad, causal=False)["input_ids"].to(self.device),
        }

    def _logits(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        """The model's logits (N, V) in float32, scaled and capped as its family does; `_check_head` verifies it."""
        bias = getattr(self.head, "bias", None)
        logits = functional.linear(hidden_NH.float(), weight_VH, None if bias is None else bias.float())
        logits = logits + getattr(self.model, "final_logits_bias", 0)  # BART
        logits = logits * (getattr(self.config, "logit_scale", None) or 1)  # Cohere
        logits = logits / (getattr(self.config, "logits_scaling", None) or 1)  # Granite
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma
        return torch.tanh(logits / cap) * cap if cap else logits

    def _columns(
        self, hidden_NH: torch.Tensor, tokens_N: torch.Tensor, weight_VH: torch.Tensor
    ) -> dict[str, np.ndarray]:
        """Log-probabilities and payload of N positions, as in PseudoTarget."""
        logits_NV = self._logits(hidden_NH, weight_VH)
        total_N1 = logits_NV.logsumexp(-1, keepdim=True)
        columns = {"logprobs": (logits_NV.gather(1, tokens_N[:, None]) - total_N1)[:, 0]}
        if self.payload.kind == "top_k":
            top = logits_NV.topk(min(self.payload.k, logits_NV.shape[1]))
            columns |= {"top_ids": top.indices.int(), "top_logprobs": top.values - total_N1}
        elif self.payload.kind == "sampled":
            columns |= _sampled((logits_NV - total_N1).exp(), self.payload.draws, self.generator)
        elif self.payload.kind == "hidden":
            columns["hidden"] = hidden_NH.half()
        return {name: tensor.cpu().numpy() for name, tensor in columns.items()}


def _sampled(probabilities_NV: torch.Tensor, draws: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens drawn at each position, with replacement: distinct ids, rising, and how often each was drawn."""
    positions, vocabulary = probabilities_NV.shape
    drawn_ND = torch.multinomial(probabilities_NV, draws, replacement=True, generator=generator)
    keys_ND = drawn_ND + vocabulary * torch.arange(positions, device=drawn_ND.device)[:, None]
    keys_M, counts_M = keys_ND.unique(return_counts=True)
    return {
        "sampled_ids": (keys_M % vocabulary).int(),
        "sampled_counts": counts_M.to(torch.uint8),
        "sampled_lengths": (keys_M // vocabulary).bincount(minlength=positions).int(),
    }


def _by_target(columns: dict[str, np.ndarray], lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Arrays over all positions of a batch, cut into those of each target."""
    cuts = np.cumsum(lengths)[:-1]
    drawn = np.concatenate([[0], np.cumsum(columns.get("sampled_lengths", []))]).astype(int)
    parts = {
        name: np.split(array, drawn[cuts] if name in ("sampled_ids", "sampled_counts") else cuts)
        for name, array in columns.items()
    }
    return [{name: part[i] for name, part in parts.items()} for i in range(len(lengths))]


def _options(sampling: Sampling) -> dict[str, Any]:
    """Arguments of GenerationConfig. Raises EngineError for what it does not know, or this engine cannot do."""
    if sampling.seeded:
        raise EngineError("sampling.seeded: the transformers engine cannot seed each sample; the vllm engine can")
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name in sampling.options:
        if name in RESERVED:
            raise EngineError(f"sampling.options.{name}: not here; {RESERVED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise EngineError(f"sampling.options.{name}: transformers has no such option; did you mean {near}?")
    beams = sampling.options.get("num_beams", 1)
    if 1 < beams < sampling.n:
        raise EngineError(f"sampling.n: {beams} beams give at most {beams} samples, not {sampling.n}")
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": sampling.max_tokens}
    if sampling.temperature > 0:  # transformers' top_k is 50 where it is not given
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    options |= sampling.options
    try:
        GenerationConfig(**options).validate()
    except (ValueError, TypeError) as error:
        raise EngineError(f"sampling.options: {str(error).splitlines()[0]}") from None
    return options
