"""Losses on hidden states and attention: student and teacher at the same tokens.

N tokens that count, D features; (B, L, D) with a mask_BL where sequences matter. The teacher comes without a
gradient. `HiddenMse`, `HiddenCosine` and `CrossCorrelation` are the FeatureLosses of a training: where the widths of
student and teacher differ, they learn a projection of the student's features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from raykd.losses.divergences import forward_kl
from raykd.losses.logits import wide
from raykd.losses.loss import Draw, Feature, FeatureBatch, Hidden
from raykd.losses.teachers import LEAST
from raykd.losses.tokens import Term


class FeatureMask(NamedTuple):
    """Which features `cross_correlation` teaches.

    keep_D  (D,), from `draw_features`
    mode    replace: the kept features alone. add: as the released code does, on top of all of them
    """

    keep_D: torch.Tensor
    mode: Literal["replace", "add"] = "replace"


class LayerPair(nn.Module):
    """A layer of the student and one of the teacher, and the student's projection where their widths differ."""

    def __init__(self, student_layer: int, teacher_layer: int):
        super().__init__()
        self.student, self.teacher = Hidden(student_layer), Hidden(teacher_layer)
        self.projection: nn.Module = nn.Identity()

    def fit(self, student_widths: Mapping[Feature, int], teacher_widths: Mapping[Feature, int]) -> None:
        """Make the projection."""
        self.projection = projection(student_widths[self.student], teacher_widths[self.teacher])

    def tokens(
        self, student: Mapping[Feature, torch.Tensor], batch: FeatureBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the tokens that count: (N, D) of the student, projected; (N, D) of the teacher; (N,) their weights."""
        counted_BS = batch.weights_BS > 0
        student_ND = self.projection(student[self.student][counted_BS])
        return student_ND, batch.teacher[self.teacher][counted_BS], batch.weights_BS[counted_BS]


class HiddenMse(nn.Module):
    """`hidden_mse` between a layer of the student and one of the teacher, as a FeatureLoss."""

    linear = True

    def __init__(self, student_layer: int = -1, teacher_layer: int = -1):
        super().__init__()
        self.pair = LayerPair(student_layer, teacher_layer)
        self.student_needs = frozenset({self.pair.student})
        self.teacher_needs = frozenset({self.pair.teacher})

    def fit(self, student_widths: Mapping[Feature, int], teacher_widths: Mapping[Feature, int]) -> None:
        self.pair.fit(student_widths, teacher_widths)

    def sums(self, student: Mapping[Feature, torch.Tensor], batch: FeatureBatch, draw: Draw) -> dict[str, torch.Tensor]:
        return {"sum": hidden_mse(*self.pair.tokens(student, batch)).sum}

    def value(self, sums: Mapping[str, torch.Tensor], draw: Draw) -> torch.Tensor:
        return _mean(sums)


class HiddenCosine(nn.Module):
    """`hidden_cosine` between a layer of the student and one of the teacher, as a FeatureLoss."""

    linear = True

    def __init__(self, student_layer: int = -1, teacher_layer: int = -1):
        super().__init__()
        self.pair = LayerPair(student_layer, teacher_layer)
        self.student_needs = frozenset({self.pair.student})
        self.teacher_needs = frozenset({self.pair.teacher})

    def fit(self, student_widths: Mapping[Feature, int], teacher_widths: Mapping[Feature, int]) -> None:
        self.pair.fit(student_widths, teacher_widths)

    def sums(self, student: Mapping[Feature, torch.Tensor], batch: FeatureBatch, draw: Draw) -> dict[str, torch.Tensor]:
        return {"sum": hidden_cosine(*self.pair.tokens(student, batch)).sum}

    def value(self, sums: Mapping[str, torch.Tensor], draw: Draw) -> torch.Tensor:
        return _mean(sums)


@dataclass(eq=False)
class CrossCorrelation(nn.Module):
    """`cross_correlation` between a layer of the student and one of the teacher, as a FeatureLoss.

    Its statistics are those of all tokens of the global batch.

    normalisation, off_diagonal, epsilon  see `CorrelationSettings`
    keep  the masked variant, in which each step teaches every feature with this probability
    mask  whether these replace all features or are added to them, see `FeatureMask`
    """

    student_layer: int = -1
    teacher_layer: int = -1
    normalisation: Literal["paper", "release"] = "paper"
    off_diagonal: float = 0.005
    epsilon: float = 1e-5
    keep: float | None = None
    mask: Literal["replace", "add"] = "replace"
    linear = False

    def __post_init__(self) -> None:
        super().__init__()
        self.pair = LayerPair(self.student_layer, self.teacher_layer)
        self.student_needs = frozenset({self.pair.student})
        self.teacher_needs = frozenset({self.pair.teacher})
        self.settings = CorrelationSettings(self.normalisation, self.off_diagonal, self.epsilon)
        self.width = 0  # D, the teacher's

    def fit(self, student_widths: Mapping[Feature, int], teacher_widths: Mapping[Feature, int]) -> None:
        self.pair.fit(student_widths, teacher_widths)
        self.width = teacher_widths[self.pair.teacher]

    def sums(self, student: Mapping[Feature, torch.Tensor], batch: FeatureBatch, draw: Draw) -> dict[str, torch.Tensor]:
        """The moments of the tokens; of the masked variant those of the features that are kept, unless mask is add."""
        student_ND, teacher_ND, weights_N = self.pair.tokens(student, batch)
        if self.keep is not None and self.mask == "replace":
            keep_D = self._keep(teacher_ND.shape[1], draw, teacher_ND.device)
            student_ND, teacher_ND = student_ND[:, keep_D], teacher_ND[:, keep_D]
        return moments(student_ND, teacher_ND, weights_N)

    def value(self, sums: Mapping[str, torch.Tensor], draw: Draw) -> torch.Tensor:
        mask = None
        if self.keep is not None and self.mask == "add":
            mask = FeatureMask(self._keep(self.width, draw, sums["teacher"].device), "add")
        return correlation_loss(sums, self.settings._replace(width=self.width), mask)

    def _keep(self, width: int, draw: Draw, device: torch.device) -> torch.Tensor:
        assert self.keep is not None
        return draw_features(width, self.keep, draw()).to(device)


def _mean(sums: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """sum / count, and 0 where nothing counts."""
    return torch.where(sums["count"] > 0, sums["sum"] / sums["count"].clamp(min=1e-30), 0.0)


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


class CorrelationSettings(NamedTuple):
    """How `correlation_loss` is computed.

    normalisation  paper: C is divided by N, so that its entries are correlations. release: by N x D, as the
                   released code does, which leaves D - 2 sum C_ii / D of the loss and nothing of its second part
    off_diagonal   what the squares off the diagonal are multiplied by
    epsilon        is added to the variances
    width          D of release, where the sums hold fewer features; None: theirs
    """

    normalisation: Literal["paper", "release"] = "paper"
    off_diagonal: float = 0.005
    epsilon: float = 1e-5
    width: int | None = None


def moments(
    student_ND: torch.Tensor, teacher_ND: torch.Tensor, weights_N: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Weighted sums over N tokens, in float64, of which `correlation_loss` is a function.

    student, teacher (D,) the features; student_squares, teacher_squares (D,) their squares; products (D, D) each of the
    student's times each of the teacher's. The teacher has no gradient. Raises ValueError for different shapes.
    """
    student_ND, teacher_ND = _same(student_ND, teacher_ND)
    student_ND, teacher_ND = student_ND.double(), teacher_ND.double()
    weighted_ND = student_ND if weights_N is None else student_ND * weights_N.double()[:, None]
    weighted_teacher_ND = teacher_ND if weights_N is None else teacher_ND * weights_N.double()[:, None]
    return {
        "student": weighted_ND.sum(0),
        "teacher": weighted_teacher_ND.sum(0),
        "student_squares": (weighted_ND * student_ND).sum(0),
        "teacher_squares": (weighted_teacher_ND * teacher_ND).sum(0),
        "products": weighted_ND.T @ teacher_ND,
    }


def correlation_loss(
    sums: Mapping[str, torch.Tensor], settings: CorrelationSettings, mask: FeatureMask | None = None
) -> torch.Tensor:
    """One-to-one mapping (Saadi et al. 2023, section 3): sum (C_ii - 1)^2 + off_diagonal x sum_{i != j} C_ij^2.

    C_DD is the cross-correlation of the features, each brought to mean 0 and variance 1 over the tokens (variance
    unbiased, plus epsilon). `sums` are `moments` and `count`, the sum of the tokens' weights. A scalar in float64; 0
    with fewer than two tokens, which have no correlation.
    """
    count, width = sums["count"], settings.width or len(sums["teacher"])
    if count < 2:
        return sums["products"].sum() * 0
    student_mean_D, teacher_mean_D = sums["student"] / count, sums["teacher"] / count
    student_scale_D = _inverse_deviation(sums["student_squares"], student_mean_D, count, settings.epsilon)
    teacher_scale_D = _inverse_deviation(sums["teacher_squares"], teacher_mean_D, count, settings.epsilon)
    covariance_DD = sums["products"] - count * torch.outer(student_mean_D, teacher_mean_D)
    divisor = count * (width if settings.normalisation == "release" else 1)
    c_DD = student_scale_D[:, None] * covariance_DD * teacher_scale_D / divisor

    def loss(c_DD: torch.Tensor) -> torch.Tensor:
        diagonal = c_DD.diagonal()
        squares = c_DD.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + settings.off_diagonal * squares

    total = sums["products"].new_zeros(())
    if mask is None or mask.mode == "add":
        total = total + loss(c_DD)
    if mask is not None:
        total = total + loss(c_DD[mask.keep_D][:, mask.keep_D])
    return total


def _inverse_deviation(
    squares_D: torch.Tensor, mean_D: torch.Tensor, count: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """(D,) one over the standard deviation, of sums of squares and means; 0 for a constant feature."""
    variance_D = (squares_D - count * mean_D.square()).clamp(min=0) / (count - 1)
    constant_D = variance_D <= 1e-12 * mean_D.square()  # rounding alone
    variance_D = torch.where(constant_D, 0.0, variance_D) + epsilon
    return torch.where(variance_D > 0, torch.where(variance_D > 0, variance_D, 1.0).rsqrt(), 0.0)


def cross_correlation(
    student_ND: torch.Tensor,
    teacher_ND: torch.Tensor,
    *,
    normalisation: Literal["paper", "release"] = "paper",
    off_diagonal: float = 0.005,
    epsilon: float = 1e-5,
    mask: FeatureMask | None = None,
) -> Term:
    """`correlation_loss` of these N tokens alone. The term's denominator is 1, and 0 with fewer than two tokens.

    For the other arguments see `CorrelationSettings`; `mask` is that of the masked variant.
    """
    settings = CorrelationSettings(normalisation, off_diagonal, epsilon, student_ND.shape[1])
    sums = moments(student_ND, teacher_ND) | {"count": torch.tensor(len(student_ND), dtype=torch.float64)}
    total = correlation_loss(sums, settings, mask).to(wide(student_ND[:0]).dtype)
    return Term(total, (sums["count"] >= 2).double())


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
