"""Where the teacher's outputs for a batch come from: the store, a model in this process, or a scorer elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from raykd.data.prompts import PromptEncoder
from raykd.errors import TrainingError
from raykd.losses.logits import HeadLogits, Logits
from raykd.losses.loss import Feature
from raykd.losses.teachers import Sampled, TeacherOutputs, TopK
from raykd.losses.tokens import IGNORE
from raykd.models.layers import captured
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import HiddenPayload, Payload, SampledPayload, TopKPayload
from raykd.recipe.models import Checkpoint
from raykd.training.sharder import MicroBatch
from raykd.training.student import Student

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Needs(NamedTuple):
    """What a training's losses need of the teacher: its distribution at each label, and hidden states."""

    distribution: bool = False
    features: frozenset[Feature] = frozenset()


class Outputs(NamedTuple):
    """A teacher's outputs for a micro-batch.

    distribution  for its K labels, row by row: a form of `TeacherOutputs`; of a regression (K,) predictions; None where
                  no loss needs it
    features      (B, S, D) by hidden state
    """

    distribution: TeacherOutputs | torch.Tensor | None = None
    features: Mapping[Feature, torch.Tensor] = {}


class TeacherSource(Protocol):
    """Gives the teacher's outputs for micro-batches.

    features  whether it gives hidden states
    samples   whether it gives outputs for sequences that are written during the training
    """

    features: bool
    samples: bool

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> Any:
        """Called as soon as a micro-batch is known; returns at once with a handle, which `outputs` takes.

        It may be called by the thread that makes micro-batches.
        """
        ...

    def outputs(self, handle: Any) -> Outputs:
        """The outputs for the micro-batch of a handle; waits for them."""
        ...


class NoTeacher:
    """The source for losses that need no teacher."""

    features = samples = True

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> None:
        pass

    def outputs(self, handle: None) -> Outputs:
        return Outputs()


class TeacherByOrigin:
    """Two sources: one for targets that are known before training, one for sequences written during it."""

    features = samples = True  # each of the two has been checked

    def __init__(self, stored: TeacherSource, sampled: TeacherSource):
        self.stored, self.sampled = stored, sampled

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> Any:
        source = self.sampled if micro_batch.sampled else self.stored
        return source, source.ask(micro_batch, needs)

    def outputs(self, handle: Any) -> Outputs:
        source, of_source = handle
        return source.outputs(of_source)


class StoredTeacher:
    """The source that reads the outputs from the payload that the teacher pass stored."""

    features = samples = False

    def __init__(self, payload: Payload, tail: str, head: HeadLogits | None, device: torch.device):
        """`head` is the teacher's output layer, without features, for a payload of hidden states."""
        self.payload, self.tail, self.head, self.device = payload, tail, head, device

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> MicroBatch:
        return micro_batch

    def outputs(self, handle: MicroBatch) -> Outputs:
        """TopK, Sampled or HeadLogits, depending on the payload's kind."""
        return Outputs(self._distribution(handle))

    def _distribution(self, micro_batch: MicroBatch) -> TeacherOutputs:
        count = int((micro_batch.labels_BT != IGNORE).sum())
        if not count:  # a silent micro-batch, without a payload
            ids = torch.zeros(0, 1, dtype=torch.long, device=self.device)
            return TopK(ids, ids.float(), self.tail)
        stored = {name: values.to(self.device) for name, values in micro_batch.payload.items()}
        if isinstance(self.payload, TopKPayload):
            ids, logprobs = stored["top_ids"].view(count, -1), stored["top_logprobs"].view(count, -1)
            target_logprobs = stored["logprobs"] if len(stored["logprobs"]) == count else None
            return TopK(ids=ids.long(), logprobs=logprobs, tail=self.tail, target_logprobs=target_logprobs)
        if isinstance(self.payload, SampledPayload):
            return _sampled(stored["sampled_ids"], stored["sampled_counts"], stored["sampled_lengths"].long())
        assert isinstance(self.payload, HiddenPayload) and self.head is not None
        return self.head._replace(features=(stored["hidden"].view(count, -1).to(self.head.weights[0].dtype),))


def _sampled(ids: torch.Tensor, counts: torch.Tensor, lengths_K: torch.Tensor) -> Sampled:
    """Drawn tokens as tensors (K, D); positions with fewer than D different tokens are padded with counts of 0."""
    width = int(lengths_K.max())
    places = torch.arange(width, device=lengths_K.device)[None] < lengths_K[:, None]
    ids_KD = torch.zeros(len(lengths_K), width, dtype=torch.long, device=lengths_K.device)
    counts_KD = torch.zeros_like(ids_KD)
    ids_KD[places], counts_KD[places] = ids.long(), counts.long()
    return Sampled(ids_KD, counts_KD)


class TopKArrays(NamedTuple):
    """A teacher's most likely tokens, as numpy arrays that are sent between processes."""

    ids: np.ndarray  # (K, k) int32
    logprobs: np.ndarray  # (K, k) float32
    target_logprobs: np.ndarray  # (K,) float32, of the labels


class InProcessTeacher:
    """A frozen teacher in this process; the loss computes its logits chunk by chunk."""

    features = samples = True

    def __init__(self, prompts: PromptEncoder, dtype: str, device: torch.device, shared_vocab_size: int | None):
        """`prompts` encodes the teacher's prompts; its tokenizer is the folder of the teacher. Raises ModelError."""
        folder, labels = prompts.tokenizer, list(prompts.labels) if prompts.labels else None
        tokenizer = load_tokenizer(folder, prompts.task == "generation")
        model = load_model(Checkpoint(kind="checkpoint", path=folder), tokenizer, prompts.task, labels)
        self.device, student = device, Student(model.to(device, DTYPES[dtype]), shared_vocab_size, prompts.task)
        self.teacher = student.eval().requires_grad_(False)

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> tuple[MicroBatch, Needs]:
        return micro_batch, needs

    @torch.no_grad()
    def outputs(self, handle: tuple[MicroBatch, Needs]) -> Outputs:
        """HeadLogits or Logits. Raises ValueError where features are needed and the teacher reads other tokens."""
        micro_batch, needs = handle
        assert micro_batch.teacher is not None
        if needs.features and not torch.equal(micro_batch.teacher["input_ids"], micro_batch.inputs["input_ids"]):
            raise ValueError("hidden states are compared token by token: student and teacher must read the same tokens")
        with captured(self.teacher.model, needs.features) as states:
            logits = self._logits(micro_batch.teacher)
        distribution = logits if needs.distribution else None
        if isinstance(distribution, Logits) and self.teacher.task == "regression":
            distribution = distribution.values_NV.squeeze(1)
        return Outputs(distribution, states)

    def _logits(self, tensors: dict[str, torch.Tensor]) -> HeadLogits | Logits:
        inputs = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        labels_BT = inputs.pop("labels")
        return self.teacher.logits(inputs, labels_BT)

    @torch.no_grad()
    def top_k(self, tensors: dict[str, torch.Tensor], k: int) -> TopKArrays:
        """The k most likely tokens at the K labels of `MicroBatch.teacher`, as `Scorer.wait` returns them."""
        logits = self._logits(tensors)
        labels_K = tensors["labels"][tensors["labels"] != IGNORE].to(self.device)
        logits = logits.cut(self.teacher.shared_vocab_size) if self.teacher.shared_vocab_size else logits
        empty = torch.zeros(0, min(k, logits.width))
        pieces, rows = [(empty.int(), empty, torch.zeros(0))], max(16, 2**24 // logits.width)
        for start in range(0, logits.rows, rows):
            part = slice(start, start + rows)
            logprobs = logits.finished(logits.product(part)).log_softmax(1)
            values, ids = logprobs.topk(min(k, logprobs.shape[1]), dim=1)
            pieces.append((ids.int(), values, logprobs.gather(1, labels_K[part, None])[:, 0]))
        ids, logprobs, target_logprobs = (torch.cat(p).cpu().numpy() for p in zip(*pieces[1:] or pieces, strict=True))
        return TopKArrays(ids, logprobs.astype(np.float32), target_logprobs.astype(np.float32))


class Scorer(Protocol):
    """A teacher in another process."""

    def ask(self, tensors: dict[str, torch.Tensor]) -> Any:
        """Request the outputs for a `MicroBatch.teacher`; returns at once, with what `wait` takes."""
        ...

    def wait(self, request: Any) -> TopKArrays:
        """The outputs of a request, as `InProcessTeacher.top_k` returns them."""
        ...


class RemoteTeacher:
    """The source with a scorer: it gets a batch as soon as it is made, and works while the student trains on others."""

    features, samples = False, True

    def __init__(self, scorer: Scorer, tail: str, device: torch.device):
        self.scorer, self.tail, self.device = scorer, tail, device

    def ask(self, micro_batch: MicroBatch, needs: Needs) -> Any:
        assert micro_batch.teacher is not None
        return self.scorer.ask(micro_batch.teacher)

    def outputs(self, handle: Any) -> Outputs:
        """TopK."""
        arrays = self.scorer.wait(handle)
        ids, logprobs, target_logprobs = (torch.from_numpy(array.copy()).to(self.device) for array in arrays)
        return Outputs(TopK(ids=ids.long(), logprobs=logprobs, tail=self.tail, target_logprobs=target_logprobs))


def teacher_head(folder: str, device: torch.device, shared_vocab_size: int | None) -> HeadLogits:
    """The output layer of a teacher whose hidden states are stored. Raises ModelError, or TrainingError for LoRA."""
    model = load_model(Checkpoint(kind="checkpoint", path=folder), load_tokenizer(folder))
    teacher = Student(model, shared_vocab_size)
    layer = model.get_output_embeddings()
    if getattr(layer, "base_layer", layer) is not layer:
        raise TrainingError(f"{folder}: the teacher's output layer is no plain one")
    bias = layer.bias if layer.bias is not None else teacher.bias
    return HeadLogits(
        features=(),
        weights=(layer.weight.detach().to(device),),
        bias=None if bias is None else bias.detach().to(device),
        scale=teacher.scale,
        softcap=teacher.softcap,
    )
