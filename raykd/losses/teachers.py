"""The teacher's outputs for a token loss: what is known of its distribution, brought to events of both models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from raykd.losses import divergences
from raykd.losses.logits import HeadLogits, Logits, wide

LEAST = -1e30  # log-probability of a token that both models leave out: far from overflow, and its probability is 0
TAIL = 1e-3  # the mass that tail="refuse" tolerates: half-precision log-probabilities round


class TopK(NamedTuple):
    """A teacher known by its most likely tokens: ids_NK, different within a position, and logprobs_NK.

    tail says what becomes of the rest of its probability: one event more, for student and teacher alike (bucket);
    nothing, the teacher being renormalised over its k (renormalise); or an error where it is over a thousandth
    (refuse). Nothing is ever filled with zeros. target_logprobs_N, the teacher's for the labels, let losses that need
    the target work where it is not among the ids. Log-probabilities are at temperature 1; another is applied to the
    events.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: str = "bucket"
    target_logprobs: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    def pick(self, rows_K: torch.Tensor | slice) -> TopK:
        target = None if self.target_logprobs is None else self.target_logprobs[rows_K]
        return TopK(self.ids[rows_K], self.logprobs[rows_K], self.tail, target)


class Sampled(NamedTuple):
    """A teacher known by tokens drawn from it: ids_ND and how often each was drawn, counts_ND; a count of 0 pads."""

    ids: torch.Tensor
    counts: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.ids)

    def pick(self, rows_K: torch.Tensor | slice) -> Sampled:
        return Sampled(self.ids[rows_K], self.counts[rows_K])


TeacherOutputs = Logits | HeadLogits | TopK | Sampled
CHUNK_BYTES = {"cpu": 3 * 2**24, "cuda": 2**28}  # of one tensor of logits; glibc keeps freed ones up to 2**25


def chunk_rows(logits: Logits | HeadLogits) -> int:
    """How many positions CHUNK_BYTES allow in a chunk of logits, 16 at least."""
    return max(16, CHUNK_BYTES.get(logits.tensors()[0].device.type, CHUNK_BYTES["cpu"]) // (4 * logits.width))


@torch.no_grad()
def logits_of(teacher: Logits | HeadLogits, rows: slice) -> torch.Tensor:
    """(R, V) logits of some rows."""
    return teacher.finished(teacher.product(rows))


@torch.no_grad()
def uncertainty(teacher: Logits | HeadLogits | TopK, labels_N: torch.Tensor) -> torch.Tensor:
    """(N,) 1 - T(y), the teacher's probability of all but the target; by chunks where logits must be made."""
    if isinstance(teacher, TopK):
        at = teacher.ids == labels_N[:, None]
        logprobs = teacher.logprobs.masked_fill(~at, -math.inf).amax(1)
        if teacher.target_logprobs is not None:
            logprobs = torch.where(at.any(1), logprobs, teacher.target_logprobs)
        return 1 - wide(logprobs).exp()
    pieces, rows = [wide(teacher.tensors()[0][:0]).flatten()], chunk_rows(teacher)
    for start in range(0, len(labels_N), rows):
        part = slice(start, start + rows)
        logprobs = logits_of(teacher, part).log_softmax(1)
        pieces.append(divergences.rest(logprobs, labels_N[part][:, None]).squeeze(1).exp())
    return torch.cat(pieces[1:] or pieces)


class Events(NamedTuple):
    """Log-probabilities of student and teacher over E common events, and the place of the label among them."""

    student_NE: torch.Tensor
    teacher_NE: torch.Tensor
    at_N: torch.Tensor


def dense(
    logits_NV: torch.Tensor, teacher_NV: torch.Tensor, labels_N: torch.Tensor, temperature: float, cut_infinite: bool
) -> Events:
    """Every token is an event. `cut_infinite` leaves out, row by row, those that the teacher makes impossible."""
    impossible = teacher_NV == -math.inf if cut_infinite else None
    if impossible is not None:
        logits_NV = logits_NV.masked_fill(impossible, -math.inf)
    student = _tempered(logits_NV, temperature).log_softmax(1)
    teacher = _tempered(teacher_NV, temperature).log_softmax(1)
    if impossible is not None:
        student, teacher = student.masked_fill(impossible, LEAST), teacher.masked_fill(impossible, LEAST)
    return Events(student, teacher, labels_N)


def top_k(logits_NV: torch.Tensor, outputs: TopK, labels_N: torch.Tensor, temperature: float, target: bool) -> Events:
    """The teacher's k tokens are events, and the rest together is one; `target` makes the label one of the k.

    Raises ValueError for a label outside the k whose log-probability is not known, and for a tail that is refused.
    """
    ids, teacher = outputs.ids.long(), wide(outputs.logprobs.detach()).to(logits_NV.dtype)
    at = ids == labels_N[:, None]
    if target:
        missing = ~at.any(1)
        if outputs.target_logprobs is None and missing.any():
            raise ValueError(
                f"{int(missing.sum())} of {len(ids)} targets are not among the teacher's top {ids.shape[1]}: "
                "give target_logprobs, or a loss that needs no target"
            )
        if outputs.target_logprobs is not None:
            last = torch.where(missing, labels_N, ids[:, -1])[:, None]
            logprob = torch.where(missing, outputs.target_logprobs.to(teacher.dtype), teacher[:, -1])[:, None]
            ids, teacher = torch.cat([ids[:, :-1], last], 1), torch.cat([teacher[:, :-1], logprob], 1)
            at = ids == labels_N[:, None]
    inside = teacher.logsumexp(1, keepdim=True)
    tail = torch.log1p(-inside.exp().clamp(max=1))
    if outputs.tail == "refuse" and (tail > math.log(TAIL)).any():
        raise ValueError(f"up to {tail.exp().max().item():.3g} of the teacher's probability is outside its top-k")
    if outputs.tail != "bucket":
        teacher, tail = teacher - inside, torch.full_like(inside, -math.inf)
    else:
        teacher = teacher - inside.clamp(min=0)  # rounding of half precision can make the k more than everything
    if ids.shape[1] == logits_NV.shape[1]:  # nothing is left outside
        student = logits_NV.gather(1, ids)
    else:
        student, teacher = _TopAndRest.apply(logits_NV, ids), torch.cat([teacher, tail], 1)
    return Events(
        _tempered(student, temperature).log_softmax(1),
        _tempered(teacher, temperature).log_softmax(1),
        at.int().argmax(1),
    )


def sampled(logits_NV: torch.Tensor, outputs: Sampled, labels_N: torch.Tensor) -> Events:
    """The tokens drawn are events, with their shares of the draws as the teacher's probabilities."""
    counts = outputs.counts.to(logits_NV.dtype)
    shares = counts / counts.sum(1, keepdim=True)
    return Events(gathered(logits_NV, outputs.ids), shares.log(), labels_N)


def gathered(logits_NV: torch.Tensor, ids_NE: torch.Tensor) -> torch.Tensor:
    """(N, E) log-probabilities of some tokens, of (N, V) logits."""
    return _Gathered.apply(logits_NV, ids_NE.long())


class _Gathered(torch.autograd.Function):
    """Some columns of the log-softmax; one tensor of the logits' size in the backward pass, none in the forward."""

    @staticmethod
    def forward(ctx, logits_NV, ids_NE):
        lse_N1 = logits_NV.logsumexp(1, keepdim=True)
        ctx.save_for_backward(logits_NV, ids_NE, lse_N1)
        return logits_NV.gather(1, ids_NE) - lse_N1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream_NE):
        logits_NV, ids_NE, lse_N1 = ctx.saved_tensors
        gradient = (logits_NV - lse_N1).exp_().mul_(-upstream_NE.sum(1, keepdim=True))
        return gradient.scatter_add_(1, ids_NE, upstream_NE), None


class _TopAndRest(torch.autograd.Function):
    """(N, K + 1): some columns of the logits, different within a row, and the log-sum-exp of all others."""

    @staticmethod
    def forward(ctx, logits_NV, ids_NK):
        others_NV = logits_NV.scatter(1, ids_NK, -math.inf)
        rest_N1 = others_NV.logsumexp(1, keepdim=True)
        ctx.save_for_backward(others_NV, ids_NK, rest_N1)
        return torch.cat([logits_NV.gather(1, ids_NK), rest_N1], 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream_NE):
        others_NV, ids_NK, rest_N1 = ctx.saved_tensors
        gradient = (others_NV - rest_N1).exp_().mul_(upstream_NE[:, -1:])
        return gradient.scatter_(1, ids_NK, upstream_NE[:, :-1]), None


def _tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1 else logits / temperature
