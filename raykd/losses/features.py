"""Losses on hidden states and attention: student and teacher at the same tokens, as terms.

N tokens that count, D features; (B, L, D) with a mask_BL where sequences matter. The teacher comes without a
gradient. Where the widths differ, `projection` makes the learned map that the student's features go through first.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import nn

from raykd.losses.divergences import forward_kl
from raykd.losses.logits import wide
from raykd.losses.teachers import LEAST
from raykd.losses.tokens import Term


class FeatureMask(NamedTuple):
    """Which features `cross_correlation` teaches.

    keep_D  (D,), from `draw_features`
    mode    replace: the kept features alone. add: as the released code does, on top of all of them
    """

    keep_D: torch.Tensor
    mode: Literal["replace", "add"] = "replace"


def projection(student_width: int, teacher_width: int) -> nn.Module:
    """A linear map from the student's width to the teacher's, to be trained along; the identity if they are equal.

    As the regressor of FitNets (Romero et al. 2015, equation 3) and TinyBERT's W_h (Jiao et al. 2020, equation 8).
    """
    if student_width == teacher_width:
        return nn.Identity()
    return nn.Linear(student_width, teacher_width, bias=False)


def hidden_mse(student_ND: torch.Tensor, teacher_ND: torch.Tensor, weights_N: torch.Tensor | None = None) -> Term:
    """Squared difference, a mean over features (TinyBERT, Jiao et al. 2020, equation 8); weighted over tokens."""
    student_ND, teacher_ND = _same(student_ND, teacher_ND)
    return _over_tokens((student_ND - teacher_ND).square().mean(1), weights_N)


def hidden_cosine(student_ND: torch.Tensor, teacher_ND: torch.Tensor, weights_N: torch.Tensor | None = None) -> Term:
    """1 - cos, between 0 and 2 (DistilBERT, Sanh et al. 2019, section 2); weighted over tokens."""
    student_ND, teacher_ND = _same(student_ND, teacher_ND)
    return _over_tokens(1 - nn.functional.cosine_similarity(student_ND, teacher_ND, dim=1), weights_N)


def pkd(student_BKD: torch.Tensor, teacher_BKD: torch.Tensor) -> Term:
    """Squared distance of the [CLS] states of K layers, each normalised to length 1 (Sun et al. 2019, equation 7)."""
    student_BKD, teacher_BKD = _same(student_BKD, teacher_BKD)
    apart = nn.functional.normalize(student_BKD, dim=2) - nn.functional.normalize(teacher_BKD, dim=2)
    return _over_tokens(apart.square().sum(2).mean(1), None)


def cross_correlation(
    student_ND: torch.Tensor,
    teacher_ND: torch.Tensor,
    *,
    normalisation: Literal["paper", "release"] = "paper",
    off_diagonal: float = 0.005,
    epsilon: float = 1e-5,
    mask: FeatureMask | None = None,
) -> Term:
    """One-to-one mapping (Saadi et al. 2023, section 3): sum (C_ii - 1)^2 + off_diagonal x sum_{i != j} C_ij^2.

    C_DD is the cross-correlation of the features, each brought to mean 0 and variance 1 over the N tokens here
    (variance unbiased, plus epsilon): a statistic of these tokens, so neither cut into micro-batches nor summed over
    workers without changing it. The term's denominator is 1, and 0 with fewer than two tokens, which have none.

    normalisation  paper: C is divided by N, so that its entries are correlations. release: by N x D, as the
                   released code does, which leaves D - 2 sum C_ii / D of the loss and nothing of its second part
    mask           the masked variant
    """
    student_ND, teacher_ND = _same(student_ND, teacher_ND)
    tokens, width = student_ND.shape
    if tokens < 2:
        return Term(student_ND.sum() * 0, student_ND.new_zeros(()))
    divisor = tokens * (width if normalisation == "release" else 1)
    student_ND, teacher_ND = _standard(student_ND, epsilon), _standard(teacher_ND, epsilon)

    def loss(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
        c_DD = student_ND.T @ teacher_ND / divisor
        diagonal = c_DD.diagonal()
        return (diagonal - 1).square().sum() + off_diagonal * (c_DD.square().sum() - diagonal.square().sum())

    total = student_ND.new_zeros(())
    if mask is None or mask.mode == "add":
        total = total + loss(student_ND, teacher_ND)
    if mask is not None:
        total = total + loss(student_ND[:, mask.keep_D], teacher_ND[:, mask.keep_D])
    return Term(total, student_ND.new_ones(()))


def draw_features(width: int, keep: float = 0.5, generator: torch.Generator | None = None) -> torch.Tensor:
    """(width,) which features a step of the masked variant teaches, each with probability `keep`; one at least."""
    drawn = torch.rand(width, generator=generator)
    return (drawn < keep) | (drawn == drawn.min())


def relations(
    student_BALd: torch.Tensor,
    teacher_BALd: torch.Tensor,
    mask_BL: torch.Tensor,
    *,
    causal: bool = False,
    form: Literal["kl", "rmse"] = "kl",
) -> Term:
    """How positions relate within a head, R_LL = X X^T / sqrt(d), made alike (MiniLMv2, Wang et al. 2021).

    Of keys, queries or values (B, heads, L, d) this is the attention relation, of hidden states (B, 1, L, D) the hidden
    relation. The student's heads are cut anew to the teacher's number; widths may differ. Only pairs of positions of
    the mask count, and for `causal` only those not ahead. The denominator is sequences with such a position x heads.

    kl    KL of the softmax of R's rows, teacher against student, a mean over rows (MiniLMv2, equation 2)
    rmse  root of the mean squared difference over cells (KD4Gen, Calderon et al. 2023, its code)
    """
    student, teacher = wide(student_BALd), wide(teacher_BALd.detach())
    batch, heads, length, _ = teacher.shape
    student = _recut(student, heads)
    cells = mask_BL.bool()[:, None, :, None] & mask_BL.bool()[:, None, None, :]
    if causal:
        cells = cells & torch.ones(length, length, dtype=torch.bool, device=cells.device).tril()
    r_student, r_teacher = (x @ x.transpose(2, 3) / math.sqrt(x.shape[3]) for x in (student, teacher))
    if form == "kl":
        logs = [r.masked_fill(~cells, LEAST).log_softmax(3).flatten(0, 2) for r in (r_student, r_teacher)]
        rows_BAL = forward_kl(*logs).view(batch, heads, length) * mask_BL[:, None, :]
        each_BA = rows_BAL.sum(2) / mask_BL.sum(1, keepdim=True).clamp(min=1)
    else:
        square = ((r_student - r_teacher).square() * cells).sum((2, 3)) / cells.sum((2, 3)).clamp(min=1)
        apart = square > 0  # the root has no gradient at 0
        each_BA = torch.where(apart, torch.where(apart, square, 1).sqrt(), 0.0)
    return Term(each_BA.sum(), mask_BL.bool().any(1).sum() * heads)


def _recut(student_BALd: torch.Tensor, heads: int) -> torch.Tensor:
    """The student's heads laid side by side and cut into `heads`. Raises ValueError if that does not come out even."""
    batch, own, length, each = student_BALd.shape
    if own * each % heads:
        raise ValueError(f"the student's {own} heads of {each} cannot be cut into the teacher's {heads}")
    return student_BALd.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)


def _standard(features_ND: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Each feature with mean 0 and variance 1 over the tokens; a constant one is 0."""
    variance_D = features_ND.var(0) + epsilon
    constant_D = variance_D == 0
    return (features_ND - features_ND.mean(0)) * torch.where(constant_D, 1, variance_D).rsqrt().masked_fill(
        constant_D, 0
    )


def _over_tokens(values_N: torch.Tensor, weights_N: torch.Tensor | None) -> Term:
    weights_N = torch.ones_like(values_N) if weights_N is None else weights_N.to(values_N.dtype)
    return Term((values_N * weights_N).sum(), weights_N.sum().detach())


def _same(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float32 or wider, the teacher without gradient. Raises ValueError for different shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student's features {tuple(student.shape)} and teacher's {tuple(teacher.shape)} differ in shape"
        )
    return wide(student), wide(teacher.detach())
