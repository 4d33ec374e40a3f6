"""The teacher's side of a batch, for the loss: from the store, from a model in this process, or from a scorer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from raykd.data.prompts import PromptEncoder
from raykd.errors import TrainingError
from raykd.losses.logits import HeadLogits
from raykd.losses.teachers import Sampled, Side, TopK
from raykd.losses.tokens import IGNORE
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.generation import HiddenPayload, Payload, SampledPayload, TopKPayload
from raykd.recipe.models import Checkpoint
from raykd.training.sharder import MicroBatch
from raykd.training.student import Student

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class TeacherSource(Protocol):
    """`prepare` is called when a micro-batch is made, `side` when its loss is due: K positions, as its labels have."""

    def prepare(self, micro: MicroBatch) -> None: ...

    def side(self, micro: MicroBatch) -> Side | None: ...


class NoTeacher:
    """No loss asks for a teacher."""

    def prepare(self, micro: MicroBatch) -> None:
        pass

    def side(self, micro: MicroBatch) -> None:
        return None


class StoredTeacher:
    """What the teacher pass kept."""

    def __init__(self, payload: Payload, tail: str, head: HeadLogits | None, device: torch.device):
        """`head` is the teacher's output layer, without features, for a payload of hidden states."""
        self.payload, self.tail, self.head, self.device = payload, tail, head, device

    def prepare(self, micro: MicroBatch) -> None:
        pass

    def side(self, micro: MicroBatch) -> Side:
        count = int((micro.labels_BT != IGNORE).sum())
        kept = {name: values.to(self.device) for name, values in micro.payload.items()}
        if isinstance(self.payload, TopKPayload):
            if not count:
                ids = torch.zeros(0, 1, dtype=torch.long, device=self.device)
                return TopK(ids, ids.float(), self.tail)
            ids, logprobs = kept["top_ids"].view(count, -1), kept["top_logprobs"].view(count, -1)
            own = kept["logprobs"] if len(kept["logprobs"]) == count else None
            return TopK(ids.long(), logprobs, self.tail, own)
        if isinstance(self.payload, SampledPayload):
            return _sampled(kept, count, self.device)
        assert isinstance(self.payload, HiddenPayload) and self.head is not None
        weight = self.head.weights[0]
        hidden = kept["hidden"].view(count, -1) if count else weight.new_zeros(0, weight.shape[1])
        return self.head._replace(features=(hidden.to(weight.dtype),))


def _sampled(kept: dict[str, torch.Tensor], count: int, device: torch.device) -> Sampled:
    """Drawn tokens as a rectangle: a position with fewer different ones is padded with counts of 0."""
    if not count:
        empty = torch.zeros(0, 1, dtype=torch.long, device=device)
        return Sampled(empty, empty)
    lengths = kept["sampled_lengths"].long()
    width = int(lengths.max())
    places = torch.arange(width, device=device)[None] < lengths[:, None]
    ids = torch.zeros(count, width, dtype=torch.long, device=device)
    counts = torch.zeros(count, width, dtype=torch.long, device=device)
    ids[places], counts[places] = kept["sampled_ids"].long(), kept["sampled_counts"].long()
    return Sampled(ids, counts)


class InProcessTeacher:
    """A frozen teacher in this process; its logits are multiplied out a chunk at a time, in the loss."""

    def __init__(self, reading: PromptEncoder, dtype: str, device: torch.device, columns: int | None):
        folder, labels = reading.tokenizer, list(reading.labels) if reading.labels else None
        tokenizer = load_tokenizer(folder, reading.task == "generation")
        model = load_model(Checkpoint(kind="checkpoint", path=folder), tokenizer, reading.task, labels)
        self.device = device
        self.teacher = Student(model.to(device, DTYPES[dtype]), columns, reading.task).eval().requires_grad_(False)

    def prepare(self, micro: MicroBatch) -> None:
        pass

    @torch.no_grad()
    def side(self, micro: MicroBatch) -> Side:
        assert micro.teacher is not None
        tensors = {name: tensor.to(self.device) for name, tensor in micro.teacher.items()}
        labels = tensors.pop("labels")
        side = self.teacher.logits(tensors, labels)
        return side.values_NV.squeeze(1) if self.teacher.task == "regression" else side  # type: ignore[return-value]

    def top_k(self, teacher: dict[str, torch.Tensor], k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (K, k) int32, log-probabilities (K, k) and those of the targets (K,), float32, for a scorer."""
        micro = MicroBatch(np.zeros(0), {}, torch.zeros(0), None, teacher, {})
        with torch.no_grad():
            side: Any = self.side(micro)
            labels = teacher["labels"][teacher["labels"] != IGNORE].to(self.device)
            side = side.cut(self.teacher.columns) if self.teacher.columns else side
            found, rows = [], max(16, 2**24 // side.columns)
            for start in range(0, side.rows, rows):
                here = slice(start, start + rows)
                logprobs = side.finished(side.product(here)).log_softmax(1)
                values, ids = logprobs.topk(min(k, logprobs.shape[1]), dim=1)
                found.append((ids.int(), values, logprobs.gather(1, labels[here, None])[:, 0]))
            if not found:
                empty = torch.zeros(0, min(k, side.columns))
                found = [(empty.int(), empty, torch.zeros(0))]
            ids, values, own = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
            return ids, values.astype(np.float32), own.astype(np.float32)


class Scorer(Protocol):
    """A teacher elsewhere. `ask` returns at once; `answer` waits, and gives what `InProcess.top_k` gives."""

    def ask(self, teacher: dict[str, torch.Tensor]) -> Any: ...

    def answer(self, asked: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class RemoteTeacher:
    """A scorer, asked as soon as a batch is made, so that it answers while the student works on others."""

    def __init__(self, scorer: Scorer, tail: str, device: torch.device):
        self.scorer, self.tail, self.device = scorer, tail, device

    def prepare(self, micro: MicroBatch) -> None:
        assert micro.teacher is not None
        micro.asked = self.scorer.ask(micro.teacher)

    def side(self, micro: MicroBatch) -> Side:
        asked = micro.asked if micro.asked is not None else self.scorer.ask(micro.teacher or {})
        ids, logprobs, own = (torch.from_numpy(part.copy()).to(self.device) for part in self.scorer.answer(asked))
        return TopK(ids.long(), logprobs, self.tail, own)


def teacher_head(folder: str, device: torch.device, columns: int | None) -> HeadLogits:
    """A teacher's output layer alone, for its stored hidden states. Raises ModelError."""
    model = load_model(Checkpoint(kind="checkpoint", path=folder), load_tokenizer(folder))
    whole = Student(model, columns)
    layer = model.get_output_embeddings()
    if getattr(layer, "base_layer", layer) is not layer:
        raise TrainingError(f"{folder}: the teacher's output layer is no plain one")
    bias = layer.bias if layer.bias is not None else whole.bias
    weight = layer.weight.detach().to(device)
    return HeadLogits((), (weight,), None if bias is None else bias.detach().to(device), whole.scale, whole.softcap)
