"""The transformers engine: encoder-decoder models, and decoder-only ones where vLLM has no build.

A batch is written by `generate` and then read once more with the answers given (teacher forcing). That one reading
gives log-probabilities and payloads for every way of decoding, for given targets, and for what vLLM wrote.

Shape letters: N answer tokens of a batch, one after the other; H what the head reads; V vocabulary.
"""

from __future__ import annotations

import difflib
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected
from raykd.errors import EngineError
from raykd.losses.tokens import IGNORE
from raykd.models.files import model_folder
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.recipe.generation import Sampling, TextPayload
from raykd.recipe.models import Checkpoint
from raykd.training import batches

UNBOUNDED = 10**9  # T5 has no longest input
CHUNK = 1024  # positions whose logits exist at the same time
MODEST = 4096  # tokens of the first batch where the recipe leaves the size open
NOTHING = [(np.zeros(0, np.float32), {})]  # log-probabilities and payload that nobody asked for
OURS = {  # options of GenerationConfig that would undo what this engine does
    "do_sample": "set sampling.temperature",
    "max_new_tokens": "set sampling.max_tokens",
    "max_length": "set sampling.max_tokens",
    "num_return_sequences": "set sampling.n",
    "return_dict_in_generate": "the engine reads token ids alone",
    "stop_strings": "the engine ends at end tokens alone",
    "max_time": "the engine ends at end tokens alone",
}


class TransformersEngine:
    """Works in batches of a token budget, longest prompts first: padding is small, and memory shows at once.

    Raises EngineError, in one line, for options that it or the model cannot serve.
    """

    def __init__(self, opening: EngineConfig):
        self.options = _options(opening.sampling)
        self.sampling, self.payload, self.seed = opening.sampling, opening.payload, opening.seed
        self.special_tokens = opening.special_tokens
        self.reads = not isinstance(opening.payload, TextPayload) or opening.payload.logprobs
        spec: Any = opening.spec
        budget = spec.batch_tokens
        self.writing, self.reading = (Budget(budget or MODEST, growing=budget is None) for _ in range(2))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = model_folder(opening.model)
        self.tokenizer = load_tokenizer(folder)
        self.tokenizing = threading.Lock()  # a fast tokenizer must not be set up by two threads
        # One thread for all work of the model: OpenMP keeps a pool of threads per calling thread.
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(opening.threads,))
        self.thread.submit(self._load, folder, getattr(torch, spec.dtype)).result()
        self.prompt_tokens = self.output_tokens = 0

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate; with beams, sample i is the beam of rank i."""
        if seeds is not None:
            raise EngineError("the transformers engine cannot seed each sample: set sampling.seeded to false")
        rows = self._encode(prompts)
        results: list = [self._refusal(row, self.sampling.max_tokens, "max_tokens") for row in rows]
        todo = [i for i, refusal in enumerate(results) if refusal is None]
        written = self.thread.submit(self._generate, [rows[i] for i in todo], samples).result()
        for i, answers in zip(todo, written, strict=True):
            texts = self._decode([ids for ids, _, _ in answers])
            results[i] = [
                PseudoTarget(
                    text, np.array(ids, np.int32), logprobs, "stop" if ids[-1] in self.ends else "length", payload
                )
                for text, (ids, logprobs, payload) in zip(texts, answers, strict=True)
            ]
        return results

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """As Engine.score; the text of an answer is the target as given."""
        rows = self._encode(prompts)
        with self.tokenizing:
            answers = encode_targets(self.tokenizer, targets)
        results: list = [self._refusal(row, len(ids), "target tokens") for row, ids in zip(rows, answers, strict=True)]
        todo = [i for i, refusal in enumerate(results) if refusal is None]
        found = self.thread.submit(self._score, [rows[i] for i in todo], [answers[i] for i in todo]).result()
        for i, (logprobs, payload) in zip(todo, found, strict=True):
            results[i] = PseudoTarget(targets[i], np.array(answers[i], np.int32), logprobs, "stop", payload)
        return results

    def payloads(self, prompt_ids: list[list[int]], answer_ids: list[list[int]]) -> list[dict[str, np.ndarray]]:
        """The payload of each answer, as in Answer, whoever wrote it; no prompt and no answer may be empty."""
        found = self.thread.submit(self._score, prompt_ids, answer_ids).result()
        return [payload for _, payload in found]

    def close(self) -> None:
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

    def _refusal(self, row: list[int], answer: int, name: str) -> Rejected | None:
        if len(row) == self.encoder:  # an encoder's end token stands there always
            return Rejected("the prompt has no tokens")
        longest = max(len(row), answer) if self.encoder else len(row) + answer  # an encoder has places of its own
        if longest <= self.context:
            return None
        both = "or" if self.encoder else "+"
        return Rejected(f"prompt of {len(row)} tokens {both} {name} {answer} > the model's context of {self.context}")

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
        self._probe(1e-4 if dtype == torch.float32 else 3e-2)

    def _probe(self, tolerance: float) -> None:
        """Raises EngineError for a model that makes more of its head's output than `_logits` knows."""
        end = self.tokenizer.eos_token_id
        hidden_NH, logits_NV = self._hidden([[end]], [[end]])
        mine_NV = self._logits(hidden_NH, self.head.weight.float())
        if not torch.allclose(mine_NV, logits_NV.float(), rtol=tolerance, atol=tolerance):
            raise EngineError(f"model_type {self.config.model_type}: its logits are not those of its head")

    def _generate(self, rows: list[list[int]], samples: range) -> list[list[tuple]]:
        """Of each prompt, (token ids, log-probabilities, payload) of each sample."""
        width = max(len(samples), self.options.get("num_beams", 1))

        def batch(chosen: list[int]) -> list:
            prompts = [rows[i] for i in chosen]
            answers = self._write(prompts, samples)
            read = (
                self._read([row for row in prompts for _ in samples], answers) if self.reads else NOTHING * len(answers)
            )
            self.prompt_tokens += sum(map(len, prompts))
            self.output_tokens += sum(map(len, answers))
            found = [(ids, *columns) for ids, columns in zip(answers, read, strict=True)]
            return [found[at : at + len(samples)] for at in range(0, len(found), len(samples))]

        return _in_batches([(len(row) + self.sampling.max_tokens) * width for row in rows], self.writing, batch)

    def _score(self, rows: list[list[int]], answers: list[list[int]]) -> list[tuple]:
        """Of each answer, (log-probabilities, payload)."""

        def batch(chosen: list[int]) -> list:
            return self._read([rows[i] for i in chosen], [answers[i] for i in chosen])

        self.prompt_tokens += sum(map(len, rows))
        return _in_batches([len(row) + len(ids) for row, ids in zip(rows, answers, strict=True)], self.reading, batch)

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
        made_BT = self.model.generate(
            input_ids=tensors["input_ids"].to(self.device),
            attention_mask=tensors["attention_mask"].to(self.device),
            generation_config=GenerationConfig(**self.options, num_return_sequences=count),
        )
        skip = 1 if self.encoder else tensors["input_ids"].shape[1]
        outputs = [self._cut(ids) for ids in made_BT[:, skip:].tolist()]
        return [ids for i, ids in enumerate(outputs) if i % count >= first]

    def _cut(self, ids: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: end + 1]

    @torch.inference_mode()
    def _read(self, rows: list[list[int]], answers: list[list[int]]) -> list[tuple]:
        """Of each answer of one batch, (log-probabilities, payload)."""
        hidden_NH, _ = self._hidden(rows, answers)
        tokens_N = torch.tensor([token for ids in answers for token in ids], device=self.device)
        weight_VH = self.head.weight.float()
        chunks = zip(hidden_NH.split(CHUNK), tokens_N.split(CHUNK), strict=True)
        found = [self._columns(hidden, tokens, weight_VH) for hidden, tokens in chunks]
        joined = {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}
        return [(row.pop("logprobs"), row) for row in _by_answer(joined, [len(ids) for ids in answers])]

    def _hidden(self, rows: list[list[int]], answers: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head reads at the answers' positions (N, H); and the model's own logits of the first one (1, V)."""
        tensors = batches.collate(rows, answers, self.tokenizer.pad_token_id, causal=not self.encoder)
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        answer_BT = tensors.pop("labels") != IGNORE
        if self.encoder:
            tensors = self._decoder_inputs(rows, answers)
        seen: list[torch.Tensor] = []

        def keep(_, arguments: tuple) -> tuple:
            seen.append(arguments[0][answer_BT])
            return (seen[0][None, :1],)  # the head itself has next to nothing to do

        with self.head.register_forward_pre_hook(keep):
            logits = self.model(**tensors, use_cache=False).logits
        return seen[0], logits[0]

    def _decoder_inputs(self, rows: list[list[int]], answers: list[list[int]]) -> dict[str, Any]:
        """Inputs of the decoder: the samples of a prompt share one pass of the encoder."""
        places = {row: place for place, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        where_B = torch.tensor([places[tuple(row)] for row in rows], device=self.device)
        start, pad = self.model.generation_config.decoder_start_token_id, self.tokenizer.pad_token_id
        shifted = [[start, *ids[:-1]] for ids in answers]
        tensors = batches.collate([list(row) for row in places], [[pad]] * len(places), pad, causal=False)
        mask, inputs = tensors["attention_mask"].to(self.device), tensors["input_ids"].to(self.device)
        states = self.model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states[where_B]),
            "attention_mask": mask[where_B],
            "decoder_input_ids": batches.collate(shifted, shifted, pad, causal=False)["input_ids"].to(self.device),
        }

    def _logits(self, hidden_NH: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
        """The model's logits (N, V) in float32, scaled and capped as its family does; `_probe` holds this to it."""
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
        """Log-probabilities and payload of N positions, as in Answer."""
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


@dataclass
class Budget:
    """Padded tokens of a batch: given, or found by doubling while whole batches get faster by more than 10 %."""

    tokens: int
    growing: bool
    best: float = 0.0  # tokens per second at half this size
    rates: list[float] = field(default_factory=list)  # at this size

    def learn(self, size: int, seconds: float) -> None:
        """From a batch of `size` padded tokens."""
        if not self.growing or size < 0.75 * self.tokens:
            return
        self.rates.append(size / seconds)
        if len(self.rates) < 2:  # the better of two: one may have been disturbed
            return
        rate, self.rates = max(self.rates), []
        if rate > 1.1 * self.best:
            self.best, self.tokens = rate, 2 * self.tokens
        else:
            self.tokens, self.growing = self.tokens // 2, False

    def shrink(self, size: int) -> None:
        """After a batch of `size` padded tokens did not fit into memory: half of it, for good."""
        self.tokens, self.growing = max(1, min(self.tokens, size) // 2), False


def _in_batches(sizes: list[int], budget: Budget, batch: Callable[[list[int]], list]) -> list:
    """The result of each row, in order; batch gives those of the row numbers it is called with, largest rows first."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    results: list = [None] * len(sizes)
    at = 0
    while at < len(order):
        chosen = order[at : at + max(1, budget.tokens // sizes[order[at]])]
        size = sizes[order[at]] * len(chosen)
        began, found = time.perf_counter(), None
        try:
            found = batch(chosen)
        except torch.cuda.OutOfMemoryError:
            if len(chosen) == 1:
                raise EngineError(f"one row of {size} tokens does not fit into the GPU's memory") from None
        if found is None:  # out of the except clause, whose traceback holds the batch's tensors
            budget.shrink(size)
            torch.cuda.empty_cache()
            continue
        budget.learn(size, time.perf_counter() - began)
        for i, result in zip(chosen, found, strict=True):
            results[i] = result
        at += len(chosen)
    return results


def _sampled(chances_NV: torch.Tensor, draws: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tokens drawn at each position, with replacement: different ids, rising, and how often each came."""
    positions, vocabulary = chances_NV.shape
    drawn_ND = torch.multinomial(chances_NV, draws, replacement=True, generator=generator)
    keys_ND = drawn_ND + vocabulary * torch.arange(positions, device=drawn_ND.device)[:, None]
    keys_M, counts_M = keys_ND.unique(return_counts=True)
    return {
        "sampled_ids": (keys_M % vocabulary).int(),
        "sampled_counts": counts_M.to(torch.uint8),
        "sampled_lengths": (keys_M // vocabulary).bincount(minlength=positions).int(),
    }


def _by_answer(columns: dict[str, np.ndarray], lengths: list[int]) -> list[dict[str, np.ndarray]]:
    """Arrays over all positions of a batch, cut into those of each answer."""
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
        if name in OURS:
            raise EngineError(f"sampling.options.{name}: not here; {OURS[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise EngineError(f"sampling.options.{name}: transformers has no such option; did you mean {near}?")
    beams = sampling.options.get("num_beams", 1)
    if 1 < beams < sampling.n:
        raise EngineError(f"sampling.n: {beams} beams give at most {beams} samples, not {sampling.n}")
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": sampling.max_tokens}
    if sampling.temperature > 0:  # top_k is 50 where it is not given
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    options |= sampling.options
    try:
        GenerationConfig(**options).validate()
    except (ValueError, TypeError) as error:
        raise EngineError(f"sampling.options: {str(error).splitlines()[0]}") from None
    return options
