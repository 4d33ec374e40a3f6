"""Losses on target tokens, a chunk of positions at a time.

`token_losses` computes any number of losses from one pass over the student's logits. Where the student comes as
hidden states and an output layer, one chunk of its logits exists at any time, and one of the teacher's: the gradient
of a chunk is taken at once and the chunk forgotten (as in Liger Kernel, Hsu et al. 2024, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from raykd.losses import divergences, teachers
from raykd.losses.logits import HeadLogits, Logits, wide
from raykd.losses.teachers import Sampled, Side, TopK

IGNORE = -100
CHUNK_BYTES = {"cpu": 3 * 2**24, "cuda": 2**28}  # of one tensor of logits; glibc keeps freed ones up to 2**25


class Term(NamedTuple):
    """A loss term: it comes to sum / denominator. The denominator is a number without gradient."""

    sum: torch.Tensor
    denominator: torch.Tensor


class Result(NamedTuple):
    """What `token_losses` returns.

    total   the sum over terms of weight x sum / denominator: a scalar, the one thing that carries a gradient
    terms   by name, in nats, without their weights
    values  by name, (N,): what each position came to, for terms and for diagnosis; 0 where nothing was counted
    """

    total: torch.Tensor
    terms: dict[str, Term]
    values: dict[str, torch.Tensor]


class Kind(NamedTuple):
    """How a loss is computed: `values(student_NE[, teacher_NE][, at_N], **options)`, see `divergences`."""

    values: Callable[..., Any]
    teacher: bool = True  # needs the teacher's side
    target: bool = False  # needs the target token
    squared: bool = False  # its paper multiplies by the temperature squared


LOSSES = {
    "cross_entropy": Kind(divergences.cross_entropy, teacher=False, target=True),
    "soft_cross_entropy": Kind(divergences.soft_cross_entropy, squared=True),
    "forward_kl": Kind(divergences.forward_kl, squared=True),
    "reverse_kl": Kind(divergences.reverse_kl),
    "jsd": Kind(divergences.jsd),
    "skewed_forward_kl": Kind(divergences.skewed_forward_kl),
    "skewed_reverse_kl": Kind(divergences.skewed_reverse_kl),
    "symmetric_kl": Kind(divergences.symmetric_kl),
    "weighted_kl": Kind(divergences.weighted_kl),
    "total_variation": Kind(divergences.total_variation),
    "adaptive_kl": Kind(divergences.adaptive_kl),
    "nucleus_kl": Kind(divergences.nucleus_kl, squared=True),
    "dkd": Kind(divergences.dkd, target=True, squared=True),
    "atkd": Kind(divergences.atkd, target=True),
}


@dataclass(frozen=True)
class TokenLoss:
    """One loss of `token_losses`.

    kind         a name in LOSSES, or a Kind of one's own; its terms are named by its function
    weight       what its term is multiplied by in the total
    temperature  divides student's and teacher's logits
    squared      whether values are multiplied by the temperature squared; None: as its paper has it (Kind.squared)
    easy_weight  atkd alone: the easy group's share of the loss, lambda
    hard_share   atkd alone: the share of tokens that is hard, k
    options      those of its function in `divergences`
    """

    kind: str | Kind = "forward_kl"
    weight: float = 1.0
    temperature: float = 1.0
    squared: bool | None = None
    easy_weight: float = 0.2
    hard_share: float = 0.5
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if isinstance(self.kind, str) else self.kind.values.__name__

    @property
    def how(self) -> Kind:
        return LOSSES[self.kind] if isinstance(self.kind, str) else self.kind

    def parts(self, weights_N: torch.Tensor, easy_mask_N: torch.Tensor | None) -> dict[str, tuple[float, torch.Tensor]]:
        """Its terms: by name, what the term's mean is multiplied by and what each position counts for in it."""
        if self.kind != "atkd":
            return {self.name: (self.weight, weights_N)}
        assert easy_mask_N is not None
        easy, hard = weights_N * easy_mask_N, weights_N * ~easy_mask_N
        return {
            "atkd_easy": (self.weight * self.easy_weight, easy),
            "atkd_hard": (self.weight * (1 - self.easy_weight), hard),
        }


def token_losses(
    losses: Sequence[TokenLoss],
    student: torch.Tensor | Logits | HeadLogits,
    labels_N: torch.Tensor,
    teacher: torch.Tensor | Side | None = None,
    *,
    weights_N: torch.Tensor | None = None,
    denominators: Mapping[str, float | torch.Tensor] | None = None,
    easy_mask_N: torch.Tensor | None = None,
    columns: int | None = None,
    cut_infinite: bool = False,
    chunk_rows: int | None = None,
) -> Result:
    """Losses of N positions and, through the result's `total`, the student's gradient.

    student, teacher  logits (N, V), aligned with the labels, or HeadLogits; the teacher also as TopK or Sampled
    labels_N          target ids; a position of IGNORE counts for nothing and never reaches the output layer
    weights_N         what a position counts for, 1 unless given; see `sequence_weights`
    denominators      by term name, those of the whole global step; the sums of the weights here unless given
    easy_mask_N       atkd's groups: `easy_tokens` of `teacher_uncertainty`; made of the positions here if absent
    columns           how many tokens the tokenizer can produce: logits beyond are cut, the rest renormalised
    cut_infinite      leave out, row by row, tokens to which the teacher gives no probability at all

    Arithmetic is in float32, or in float64 where the logits are. Raises ValueError for sides that do not go together
    and where a reverse-type divergence is infinite.
    """
    counted = labels_N != IGNORE if weights_N is None else (labels_N != IGNORE) & (weights_N != 0)
    kept_K = counted.nonzero().squeeze(1)
    labels_K, student_N, teacher_N = labels_N[kept_K], _side(student), _side(teacher)
    for who, side in (("student", student_N), ("teacher", teacher_N)):
        if side is not None and side.rows != len(labels_N):
            raise ValueError(f"the {who}'s side has {side.rows} positions, the labels have {len(labels_N)}")
    student_K = student_N.pick(kept_K)
    teacher_K = None if teacher_N is None else teacher_N.pick(kept_K)
    if columns is not None:
        student_K = student_K.cut(columns)
        teacher_K = teacher_K.cut(columns) if isinstance(teacher_K, Logits | HeadLogits) else teacher_K
    _check(losses, student_K, teacher_K, labels_K)
    rows = chunk_rows or _chunk_rows(student_K)
    if easy_mask_N is not None:
        easy_K = easy_mask_N[kept_K]
    else:
        shares = [loss.hard_share for loss in losses if loss.kind == "atkd"]
        easy_K = divergences.easy_tokens(_uncertainty(teacher_K, labels_K, rows), shares[0]) if shares else None
    dtype = wide(student_K.tensors()[0][:0]).dtype
    weights_K = labels_K.new_ones(len(labels_K), dtype=dtype) if weights_N is None else weights_N[kept_K].to(dtype)
    parts = {n: part for loss in losses for n, part in loss.parts(weights_K, easy_K).items()}
    counts = {name: weights.sum() for name, (_, weights) in parts.items()}
    factors = {}
    for name, (factor, weights) in parts.items():
        over = torch.as_tensor((denominators or counts)[name], dtype=dtype, device=weights.device)
        factors[name] = torch.where(over > 0, factor / over, 0.0) * weights
    chunk = functools.partial(_values, losses, teacher_K, labels_K, cut_infinite)
    found: dict[str, list[torch.Tensor]] = {}
    total = _Chunks.apply(chunk, factors, student_K, rows, found, *student_K.tensors())
    values_K = {name: torch.cat(pieces) for name, pieces in found.items()}
    _refuse_infinite(values_K, teacher_K, kept_K)
    terms = {n: Term((values_K[n] * w).sum() if values_K else w.sum(), counts[n]) for n, (_, w) in parts.items()}
    values = {n: v.new_zeros(len(labels_N)).index_copy(0, kept_K, v) for n, v in values_K.items()}
    return Result(total, terms, values)


def sequence_weights(labels_BT: torch.Tensor) -> torch.Tensor:
    """(B, T) weights under which a term is a mean over sequences of means over tokens (KD4Gen's reduction).

    Their sum, and so the denominator, is the number of sequences that have a target.
    """
    counted = labels_BT != IGNORE
    return counted.double() / counted.sum(1, keepdim=True).clamp(min=1)


def teacher_uncertainty(
    teacher: torch.Tensor | Logits | HeadLogits | TopK, labels_N: torch.Tensor, columns: int | None = None
) -> torch.Tensor:
    """(N,) 1 - T(y), by a pass over chunks of the teacher alone; 0 without a target. For `easy_tokens`."""
    kept_K = (labels_N != IGNORE).nonzero().squeeze(1)
    side = _side(teacher).pick(kept_K)
    if columns is not None and isinstance(side, Logits | HeadLogits):
        side = side.cut(columns)
    found_K = _uncertainty(side, labels_N[kept_K], _chunk_rows(side) if isinstance(side, Logits | HeadLogits) else 1)
    return found_K.new_zeros(len(labels_N)).index_copy(0, kept_K, found_K)


class _Chunks(torch.autograd.Function):
    """The total over chunks of rows, and in the same pass its gradient with respect to the student's tensors."""

    @staticmethod
    def forward(ctx: Any, chunk: Any, factors: Any, student: Any, rows: int, found: Any, *tensors: Any) -> torch.Tensor:
        needs = ctx.needs_input_grad[5:]
        dtype = wide(tensors[0][:0]).dtype
        gradients = [torch.zeros_like(t, dtype=dtype) if n else None for t, n in zip(tensors, needs, strict=True)]
        total = tensors[0].new_zeros((), dtype=dtype)
        with torch.autocast(tensors[0].device.type, enabled=False):
            for start in range(0, student.rows, rows):
                here = slice(start, start + rows)
                with torch.set_grad_enabled(any(needs)):
                    product = student.product(here).detach().requires_grad_(any(needs))
                    values = chunk(student.finished(product), here)
                    part = torch.stack([(values[name] * factor[here]).sum() for name, factor in factors.items()]).sum()
                total += part.detach()
                for name, value in values.items():
                    found.setdefault(name, []).append(value.detach())
                if any(needs):
                    (gradient,) = torch.autograd.grad(part, product)
                    del product, values, part  # their memory is the next products'
                    student.add(gradients, gradient, here)
                    del gradient
        ctx.save_for_backward(*(None if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        gradients = (None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors)
        return None, None, None, None, None, *gradients


def _values(
    losses: Sequence[TokenLoss],
    teacher: Side | None,
    labels_K: torch.Tensor,
    cut: bool,
    logits: torch.Tensor,
    rows: slice,
) -> dict[str, torch.Tensor]:
    """Values by name of the positions of one chunk; the names of terms are among them."""
    labels = labels_K[rows]

    @functools.cache
    def events(temperature: float, target: bool) -> teachers.Events:
        if isinstance(teacher, TopK):
            known = TopK(*(x[rows] if isinstance(x, torch.Tensor) else x for x in teacher))  # type: ignore[misc]
            return teachers.top_k(logits, known, labels, temperature, target)
        if isinstance(teacher, Sampled):
            return teachers.sampled(logits, Sampled(teacher.ids[rows], teacher.counts[rows]), labels)
        return dense(temperature)

    @functools.cache
    def dense(temperature: float) -> teachers.Events:
        assert isinstance(teacher, Logits | HeadLogits)
        return teachers.dense(logits, _logits(teacher, rows), labels, temperature, cut)

    found = {}
    for loss in losses:
        how, square = loss.how, loss.temperature**2
        if how.teacher:
            student_NE, teacher_NE, at_N = events(loss.temperature, how.target)
            got = how.values(student_NE, teacher_NE, *([at_N] if how.target else []), **loss.options)
        elif how.values is divergences.cross_entropy:  # needs no probability but the target's
            student_N1 = teachers.gathered(logits / loss.temperature, labels[:, None])
            got = how.values(student_N1, torch.zeros_like(labels), **loss.options)
        else:
            got = how.values((logits / loss.temperature).log_softmax(1), labels, **loss.options)
        got = {f"{loss.name}_{n}": v for n, v in got.items()} if isinstance(got, dict) else {loss.name: got}
        if (how.squared if loss.squared is None else loss.squared) and square != 1:
            names = loss.parts(labels, labels > 0)
            got = {n: v * square if n in names else v for n, v in got.items()}
        found |= got
    return found


def _uncertainty(teacher: Any, labels_K: torch.Tensor, rows: int) -> torch.Tensor:
    """1 - T(y) of every row."""
    if isinstance(teacher, TopK):
        at = teacher.ids == labels_K[:, None]
        known = at.any(1)
        inside = teacher.logprobs.masked_fill(~at, -torch.inf).amax(1)
        if teacher.target_logprobs is not None:
            inside = torch.where(known, inside, teacher.target_logprobs)
        return 1 - wide(inside).exp()
    with torch.no_grad():
        pieces = [wide(labels_K[:0])]
        for start in range(0, len(labels_K), rows):
            here = slice(start, start + rows)
            logprobs = _logits(teacher, here).log_softmax(1)
            pieces.append(divergences.rest(logprobs, labels_K[here][:, None]).squeeze(1).exp())
        return torch.cat(pieces[1:] or pieces)


@torch.no_grad()
def _logits(teacher: Logits | HeadLogits, rows: slice) -> torch.Tensor:
    return teacher.finished(teacher.product(rows))


def _side(given: Any) -> Any:
    return Logits(given) if isinstance(given, torch.Tensor) else given


def _chunk_rows(logits: Logits | HeadLogits) -> int:
    return max(16, CHUNK_BYTES.get(logits.tensors()[0].device.type, CHUNK_BYTES["cpu"]) // (4 * logits.columns))


def _check(losses: Sequence[TokenLoss], student: Any, teacher: Any, labels_K: torch.Tensor) -> None:
    """Raises ValueError, in one line, for what does not go together."""
    names = [loss.name for loss in losses]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"losses must be of different kinds, and one at least: {', '.join(names) or 'none given'}")
    needy = [loss.name for loss in losses if loss.how.teacher]
    if needy and teacher is None:
        raise ValueError(f"{needy[0]} needs the teacher's side")
    if isinstance(teacher, Sampled):
        for loss in losses:
            if loss.how.teacher and (loss.kind != "soft_cross_entropy" or loss.temperature != 1):
                what = f"{loss.name} at temperature {loss.temperature:g}"
                raise ValueError(f"{what} cannot be known from drawn tokens: soft_cross_entropy at temperature 1 can")
    if isinstance(teacher, TopK) and teacher.tail not in ("bucket", "renormalise", "refuse"):
        raise ValueError(f"tail is bucket, renormalise or refuse, not {teacher.tail!r}")
    if isinstance(teacher, Logits | HeadLogits) and teacher.columns != student.columns:
        widths = f"{student.columns} tokens, the teacher's {teacher.columns}"
        raise ValueError(f"the student's logits are over {widths}: say with columns how many both tokenizers produce")
    ids = teacher.ids if isinstance(teacher, TopK | Sampled) else labels_K
    for what, values in (("target", labels_K), ("teacher's token", ids)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < student.columns:
            found = f"{int(values.min())} to {int(values.max())}"
            raise ValueError(f"{what} ids must lie below {student.columns}, found {found}")


def _refuse_infinite(values_K: dict[str, torch.Tensor], teacher: Any, kept_K: torch.Tensor) -> None:
    """Raises ValueError if a value is infinite because the teacher gives some token no probability at all."""
    for name, values in values_K.items():
        bad = (~torch.isfinite(values)).nonzero().squeeze(1)
        if not len(bad):
            continue
        row = int(bad[0])
        if isinstance(teacher, TopK):
            nowhere = teacher.tail != "bucket" or bool((teacher.logprobs[row] == -torch.inf).any())
        else:
            nowhere = teacher is not None and bool((_logits(teacher, slice(row, row + 1)) == -torch.inf).any())
        if nowhere:
            where = f"position {int(kept_K[row])}, and {len(bad) - 1} others"
            raise ValueError(
                f"{name} is infinite where the teacher gives a token no probability ({where}): "
                "cut_infinite leaves such tokens out"
            )
