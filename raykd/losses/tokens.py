"""Losses on target tokens, a chunk of positions at a time.

`token_losses` computes any number of losses from one pass over the student's logits. Where the student comes as
hidden states and an output layer, one chunk of its logits exists at any time, and one of the teacher's: the gradient
of a chunk is taken at once and the chunk forgotten (as in Liger Kernel, Hsu et al. 2024, section 3.2).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from raykd.losses import divergences, teachers
from raykd.losses.logits import HeadLogits, Logits, wide
from raykd.losses.loss import FunctionLoss, Loss
from raykd.losses.teachers import Sampled, TeacherOutputs, TopK, logits_of

IGNORE = -100


class TokenBatch(NamedTuple):
    """What N positions are taught.

    labels        (N,) target ids; a position of IGNORE counts for nothing and never reaches the output layer.
                  `Student` takes them as (B, T), and all that follows for the positions with a label alone, row by row
    teacher       logits (N, V), aligned with the labels, or another form of its outputs
    weights_N     what a position counts for, 1 unless given; see `sequence_weights`
    term_weights  by term (N,), what a position counts for in it, see `term_weights`; made of these positions alone if
                  absent
    denominators  by term name, those of the whole global step; the sums of the weights here unless given
    """

    labels: torch.Tensor
    teacher: torch.Tensor | TeacherOutputs | None = None
    weights_N: torch.Tensor | None = None
    term_weights: Mapping[str, torch.Tensor] | None = None
    denominators: Mapping[str, float | torch.Tensor] | None = None


class Term(NamedTuple):
    """A loss term: it comes to sum / denominator. The denominator is a number without gradient."""

    sum: torch.Tensor
    denominator: torch.Tensor


class Result(NamedTuple):
    """What `token_losses` returns.

    total   the sum over terms of factor x sum / denominator: a scalar, the only part that carries a gradient
    terms   by name, in nats, without their factors
    values  by name, (N,): what each position came to, for terms and for diagnosis; 0 where nothing was counted
    sums    by name of a feature loss, the sums of these rows, with their gradient; of a `Student` alone
    """

    total: torch.Tensor
    terms: dict[str, Term]
    values: dict[str, torch.Tensor]
    sums: Mapping[str, Mapping[str, torch.Tensor]] = {}


def token_losses(
    losses: Sequence[Loss],
    student: torch.Tensor | Logits | HeadLogits,
    batch: TokenBatch,
    *,
    shared_vocab_size: int | None = None,
    cut_infinite: bool = False,
    chunk_rows: int | None = None,
) -> Result:
    """Losses of N positions and, through the result's `total`, the student's gradient.

    student            logits (N, V), aligned with the labels, or HeadLogits
    shared_vocab_size  how many tokens both tokenizers produce: logits beyond are cut, the rest renormalised
    cut_infinite       leave out, row by row, tokens to which the teacher gives no probability at all
    chunk_rows         positions of a chunk; by default as many as CHUNK_BYTES allow

    Arithmetic is in float32, or in float64 where the logits are. Raises ValueError for outputs of student and teacher
    that do not go together, and where a reverse-type divergence is infinite.
    """
    labels_N = batch.labels
    counted_N = labels_N != IGNORE if batch.weights_N is None else (labels_N != IGNORE) & (batch.weights_N != 0)
    at_K = counted_N.nonzero().squeeze(1)  # places of the positions that count
    labels_K = labels_N[at_K]
    student_K = _counted("student", student, at_K, len(labels_N), shared_vocab_size)
    teacher_K = _counted("teacher", batch.teacher, at_K, len(labels_N), shared_vocab_size)
    _check(losses, student_K, teacher_K, labels_K)
    rows = chunk_rows or teachers.chunk_rows(student_K)
    dtype = wide(student_K.tensors()[0][:0]).dtype
    weights_K = torch.ones_like(labels_K, dtype=dtype) if batch.weights_N is None else batch.weights_N[at_K].to(dtype)
    if batch.term_weights is None:
        own = {loss.name: loss.loss.statistic(teacher_K, labels_K) for loss in losses if loss.loss.joins}
        weights = term_weights(losses, weights_K, own, joined=own)
    else:
        weights = {name: of_term[at_K].to(dtype) for name, of_term in batch.term_weights.items()}
    counts = {name: w.sum() for name, w in weights.items()}
    factors = _over_denominators(losses, weights, batch.denominators or counts)
    pieces: dict[str, list[torch.Tensor]] = {}  # of values, by name, a tensor for each chunk
    chunk = functools.partial(_values, losses, teacher_K, labels_K, cut_infinite)
    total = _Chunks.apply(chunk, factors, student_K, rows, pieces, *student_K.tensors())
    values_K = {name: torch.cat(values) for name, values in pieces.items()}
    _refuse_infinite(values_K, teacher_K, at_K)
    terms = {n: Term((values_K[n] * w).sum() if values_K else w.sum(), counts[n]) for n, w in weights.items()}
    values = {n: v.new_zeros(len(labels_N)).index_copy(0, at_K, v) for n, v in values_K.items()}
    return Result(total, terms, values)


def sequence_weights(labels_BT: torch.Tensor) -> torch.Tensor:
    """(B, T) weights under which a term is a mean over sequences of means over tokens (KD4Gen's reduction).

    Their sum, and so the denominator, is the number of sequences that have a target.
    """
    counted = labels_BT != IGNORE
    return counted.double() / counted.sum(1, keepdim=True).clamp(min=1)


def statistics(
    losses: Sequence[Loss],
    teacher: torch.Tensor | TeacherOutputs | None,
    labels_N: torch.Tensor,
    shared_vocab_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """By name of a loss (N,) its statistic of N positions that all have a target; of losses that join alone."""
    at_N = torch.arange(len(labels_N), device=labels_N.device)
    teacher_N = _counted("teacher", teacher, at_N, len(labels_N), shared_vocab_size)
    return {loss.name: loss.loss.statistic(teacher_N, labels_N) for loss in losses if loss.loss.joins}


def term_weights(
    losses: Sequence[Loss],
    weights_N: torch.Tensor,
    own: Mapping[str, torch.Tensor],
    joined: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """By term (N,): what each position counts for. `own` and `joined` are the losses' statistics, by name.

    own: of these N positions; joined: of all positions of the global batch.
    """
    return {
        loss.term(term): of_term
        for loss in losses
        for term, of_term in loss.loss.weights(weights_N, own.get(loss.name), joined.get(loss.name)).items()
    }


def _counted(role: str, outputs: Any, at_K: torch.Tensor, positions: int, shared_vocab_size: int | None) -> Any:
    """A model's outputs at the positions that count, over the shared vocabulary. Raises ValueError for other N."""
    outputs = Logits(outputs) if isinstance(outputs, torch.Tensor) else outputs
    if outputs is None:
        return None
    if outputs.rows != positions:
        raise ValueError(f"the {role}'s side has {outputs.rows} positions, the labels have {positions}")
    outputs = outputs.pick(at_K)
    if shared_vocab_size is not None and isinstance(outputs, Logits | HeadLogits):
        return outputs.cut(shared_vocab_size)
    return outputs


def _over_denominators(
    losses: Sequence[Loss], weights: Mapping[str, torch.Tensor], denominators: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """By term, what each position's value is multiplied by in the total; 0 where the denominator is 0."""
    factors = {name: factor for loss in losses for name, factor in loss.factors.items()}
    return {n: over_denominator(factors[n], denominators[n], w) * w for n, w in weights.items()}


def over_denominator(factor: float, denominator: Any, like: torch.Tensor) -> torch.Tensor:
    """factor / denominator, a scalar of the type and device of `like`; 0 where the denominator is 0."""
    denominator = torch.as_tensor(denominator, dtype=like.dtype, device=like.device)
    return torch.where(denominator > 0, factor / denominator, 0.0)


class _Chunks(torch.autograd.Function):
    """The total over chunks of rows, and in the same pass its gradient with respect to the student's tensors.

    `chunk(logits, rows)` gives values by name, which are appended to `pieces`; `factors`, by term, what they are
    multiplied by in the total.
    """

    @staticmethod
    def forward(ctx, chunk, factors, student, rows, pieces, *tensors):
        needs = ctx.needs_input_grad[5:]
        dtype = wide(tensors[0][:0]).dtype
        gradients = [torch.zeros_like(t, dtype=dtype) if n else None for t, n in zip(tensors, needs, strict=True)]
        total = tensors[0].new_zeros((), dtype=dtype)
        with torch.autocast(tensors[0].device.type, enabled=False):
            for start in range(0, student.rows, rows):
                part = slice(start, start + rows)
                with torch.set_grad_enabled(any(needs)):
                    product = student.product(part).detach().requires_grad_(any(needs))
                    values = chunk(student.finished(product), part)
                    loss = torch.stack([(values[name] * factor[part]).sum() for name, factor in factors.items()]).sum()
                total += loss.detach()
                for name, value in values.items():
                    pieces.setdefault(name, []).append(value.detach())
                if any(needs):
                    (gradient,) = torch.autograd.grad(loss, product)
                    del product, values, loss  # their memory is the next products'
                    student.add(gradients, gradient, part)
                    del gradient
        ctx.save_for_backward(*(None if g is None else g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        gradients = (None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors)
        return None, None, None, None, None, *gradients


def _values(
    losses: Sequence[Loss],
    teacher: TeacherOutputs | None,
    labels_K: torch.Tensor,
    cut_infinite: bool,
    logits: torch.Tensor,
    rows: slice,
) -> dict[str, torch.Tensor]:
    """Values by name of the positions of one chunk, from the student's logits; the names of terms are among them.

    Student and teacher are brought to common events once for all losses that share a temperature.
    """
    labels = labels_K[rows]

    @functools.cache
    def events(temperature: float, target: bool) -> teachers.Events:
        if isinstance(teacher, TopK):
            return teachers.top_k(logits, teacher.pick(rows), labels, temperature, target)
        if isinstance(teacher, Sampled):
            return teachers.sampled(logits, teacher.pick(rows), labels)
        assert teacher is not None
        return teachers.dense(logits, logits_of(teacher, rows), labels, temperature, cut_infinite)

    by_name: dict[str, torch.Tensor] = {}
    for loss in losses:
        needs, square = loss.loss.needs, loss.temperature**2
        if "teacher" in needs:
            student_NE, teacher_NE, at_N = events(loss.temperature, "target" in needs and isinstance(teacher, TopK))
            parts = loss.loss.values(student_NE, teacher_NE, at_N)
        elif _is_of(loss, divergences.cross_entropy):  # needs no probability but the target's
            student_N1 = teachers.gathered(logits / loss.temperature, labels[:, None])
            parts = loss.loss.values(student_N1, None, torch.zeros_like(labels))
        else:
            parts = loss.loss.values((logits / loss.temperature).log_softmax(1), None, labels)
        square = square if loss.squared else 1
        by_name |= {loss.term(n): v * square if square != 1 and n in loss.loss.terms else v for n, v in parts.items()}
    return by_name


def _is_of(loss: Loss, function: Any) -> bool:
    return isinstance(loss.loss, FunctionLoss) and loss.loss.function is function


def _check(losses: Sequence[Loss], student: Any, teacher: Any, labels_K: torch.Tensor) -> None:
    """Raises ValueError, in one line, for what does not go together."""
    terms = [term for loss in losses for term in loss.factors]
    if not terms or len(set(terms)) < len(terms):
        names = ", ".join(loss.name for loss in losses) or "none"
        raise ValueError(f"losses must have different names, and one at least: found {names}")
    for loss in losses:
        if loss.of_numbers:
            raise ValueError(f"{loss.name} is a loss of a regression")
        if "teacher" in loss.needs and teacher is None:
            raise ValueError(f"{loss.name} needs the teacher's side")
        drawn = isinstance(teacher, Sampled) and "teacher" in loss.needs
        if drawn and (not _is_of(loss, divergences.soft_cross_entropy) or loss.temperature != 1):
            name = f"{loss.name} at temperature {loss.temperature:g}"
            raise ValueError(f"{name} cannot be known from drawn tokens: soft_cross_entropy at temperature 1 can")
    if isinstance(teacher, TopK) and teacher.tail not in ("bucket", "renormalise", "refuse"):
        raise ValueError(f"tail is bucket, renormalise or refuse, not {teacher.tail!r}")
    if isinstance(teacher, Logits | HeadLogits) and teacher.width != student.width:
        widths = f"{student.width} tokens, the teacher's {teacher.width}"
        raise ValueError(
            f"the student's logits are over {widths}: say with shared_vocab_size how many both tokenizers produce"
        )
    teacher_ids = teacher.ids if isinstance(teacher, TopK | Sampled) else labels_K
    for name, ids in (("target", labels_K), ("teacher's token", teacher_ids)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < student.width:
            raise ValueError(f"{name} ids must lie below {student.width}, found {int(ids.min())} to {int(ids.max())}")


def _refuse_infinite(values_K: dict[str, torch.Tensor], teacher: Any, at_K: torch.Tensor) -> None:
    """Raises ValueError if a value is infinite because the teacher gives some token no probability at all."""
    for name, values in values_K.items():
        infinite = (~torch.isfinite(values)).nonzero().squeeze(1)
        if not len(infinite):
            continue
        row = int(infinite[0])
        if isinstance(teacher, TopK):
            impossible = teacher.tail != "bucket" or bool((teacher.logprobs[row] == -torch.inf).any())
        else:
            impossible = teacher is not None and bool((logits_of(teacher, slice(row, row + 1)) == -torch.inf).any())
        if impossible:
            where = f"position {int(at_K[row])}, and {len(infinite) - 1} others"
            raise ValueError(
                f"{name} is infinite where the teacher gives a token no probability ({where}): "
                "cut_infinite leaves such tokens out"
            )
