"""The losses that a recipe may name, each with its own section. Nothing here needs torch.

A section says which code computes the loss. A loss of raykd's own is a file in `raykd/losses` and a section here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from raykd.recipe.modules import FUNCTION
from raykd.recipe.names import FunctionName
from raykd.recipe.section import Section

COMMON = ("kind", "weight", "temperature", "squared")  # fields that are no arguments of a loss's code
SQUARED = "multiply by the temperature squared"
LAYER = "as transformers numbers hidden states: 0 is the embeddings, -1 the last"


class Loss(Section):
    """What every loss has.

    code        the function or class that computes it, module:NAME
    teacher     it compares the student with its teacher's outputs
    regression  it is for predicted numbers
    features    it compares hidden states
    """

    code: ClassVar[str]
    teacher: ClassVar[bool] = True
    regression: ClassVar[bool] = False
    features: ClassVar[bool] = False

    weight: float = Field(default=1.0, ge=0, description="what the loss is multiplied by in the total")

    def reads_teacher(self) -> bool:
        """Whether it compares the student with its teacher's outputs."""
        return self.teacher

    def implementation(self) -> str:
        """The function or class that computes it, module:NAME."""
        return self.code

    def arguments(self) -> dict[str, Any]:
        """The arguments of its code."""
        return {name: value for name, value in self if name not in COMMON}


class LogitsLoss(Loss):
    """What every loss on logits has; its mean is taken over positions, or as `training.reduction` says."""

    temperature: float = Field(default=1.0, gt=0, description="divides the logits of student and teacher")
    squared: bool = Field(default=False, description=SQUARED)


class CrossEntropy(LogitsLoss):
    """-log S(y): learns the target text (Kim and Rush 2016, equation 5)."""

    kind: Literal["cross_entropy"]
    code: ClassVar[str] = "raykd.losses.divergences:cross_entropy"
    teacher: ClassVar[bool] = False


class SoftCrossEntropy(LogitsLoss):
    """-sum T log S: forward KL plus the teacher's entropy (Hinton et al. 2015, section 2)."""

    kind: Literal["soft_cross_entropy"]
    code: ClassVar[str] = "raykd.losses.divergences:soft_cross_entropy"
    squared: bool = Field(default=True, description=SQUARED)


class ForwardKl(LogitsLoss):
    """KL(T || S), word-level distillation (Hinton et al. 2015; Kim and Rush 2016, equation 3)."""

    kind: Literal["forward_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:forward_kl"
    squared: bool = Field(default=True, description=SQUARED)


class ReverseKl(LogitsLoss):
    """KL(S || T) (MiniLLM, Gu et al. 2024, equation 2)."""

    kind: Literal["reverse_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:reverse_kl"


class Jsd(LogitsLoss):
    """The generalised Jensen-Shannon divergence (GKD, Agarwal et al. 2024, equation 1)."""

    kind: Literal["jsd"]
    code: ClassVar[str] = "raykd.losses.divergences:jsd"
    beta: float = Field(
        default=0.5, ge=0, le=1, description="share of the teacher in the mixture; 0: forward KL, 1: reverse KL"
    )


class SkewedForwardKl(LogitsLoss):
    """KL(T || alpha T + (1 - alpha) S) (DistiLLM, Ko et al. 2024, section 3.1)."""

    kind: Literal["skewed_forward_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:skewed_forward_kl"
    alpha: float = Field(default=0.1, ge=0, lt=1, description="share of the teacher in the mixture")


class SkewedReverseKl(LogitsLoss):
    """KL(S || (1 - alpha) T + alpha S) (DistiLLM, Ko et al. 2024, section 3.1)."""

    kind: Literal["skewed_reverse_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:skewed_reverse_kl"
    alpha: float = Field(default=0.1, ge=0, lt=1, description="share of the student in the mixture")


class SymmetricKl(LogitsLoss):
    """Half of KL(T || S) + KL(S || T) (Jeffreys 1946)."""

    kind: Literal["symmetric_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:symmetric_kl"


class WeightedKl(LogitsLoss):
    """forward KL(T || S) + (1 - forward) KL(S || T): what the code of ATKD and of OSD calls JSD."""

    kind: Literal["weighted_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:weighted_kl"
    forward: float = Field(default=0.9, ge=0, le=1, description="share of forward KL")


class TotalVariation(LogitsLoss):
    """Half of sum |T - S| (f-DISTILL, Wen et al. 2023, section 3)."""

    kind: Literal["total_variation"]
    code: ClassVar[str] = "raykd.losses.divergences:total_variation"


class AdaptiveKl(LogitsLoss):
    """Forward and reverse KL, weighted by where the two differ (Wu et al. 2025, arXiv 2404.02657, section 5)."""

    kind: Literal["adaptive_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:adaptive_kl"
    head: float = Field(default=0.5, gt=0, lt=1, description="probability of the teacher's likeliest tokens, its head")
    crossing: bool = Field(
        default=True, description="the token that crosses head belongs to the head; false: as the released code"
    )


class NucleusKl(LogitsLoss):
    """Forward KL from the teacher's nucleus, renormalised (KD4Gen's code)."""

    kind: Literal["nucleus_kl"]
    code: ClassVar[str] = "raykd.losses.divergences:nucleus_kl"
    squared: bool = Field(default=True, description=SQUARED)
    p: float = Field(default=0.9, gt=0, le=1, description="probability of the nucleus")
    release_scale: bool = Field(default=False, description="multiply by p squared, as the released code does")


class Dkd(LogitsLoss):
    """alpha x target part + beta x diversity part (DKD, Zhao et al. 2022, equation 7)."""

    kind: Literal["dkd"]
    code: ClassVar[str] = "raykd.losses.divergences:dkd"
    squared: bool = Field(default=True, description=SQUARED)
    alpha: float = Field(default=0.2, ge=0, description="what the target part is multiplied by")
    beta: float = Field(default=1.0, ge=0, description="what the diversity part is multiplied by")


class Atkd(LogitsLoss):
    """Easy tokens are taught the diversity part alone (ATKD, Zhong et al. 2024, section 3)."""

    kind: Literal["atkd"]
    code: ClassVar[str] = "raykd.losses.atkd:Atkd"
    easy_weight: float = Field(default=0.2, ge=0, le=1, description="the easy tokens' share of the loss")
    hard_share: float = Field(default=0.5, gt=0, lt=1, description="the share of tokens that are hard")
    reverse: bool = Field(default=False, description="exchange student and teacher in both parts")
    weigh_diversity: bool = Field(
        default=False,
        description="multiply the diversity part by the teacher's uncertainty: forward KL for hard tokens",
    )


class Mse(Loss):
    """(S - y)^2 of a regression."""

    kind: Literal["mse"]
    code: ClassVar[str] = "raykd.losses.divergences:mse"
    teacher: ClassVar[bool] = False
    regression: ClassVar[bool] = True


class TeacherMse(Loss):
    """(S - T)^2 of a regression (matching logits, Hinton et al. 2015, section 2.1)."""

    kind: Literal["teacher_mse"]
    code: ClassVar[str] = "raykd.losses.divergences:teacher_mse"
    regression: ClassVar[bool] = True


class FeatureLoss(Loss):
    """What every loss on hidden states has. Where widths differ, it learns a projection of the student's."""

    features: ClassVar[bool] = True

    student_layer: int = Field(default=-1, description=f"the student's layer, {LAYER}")
    teacher_layer: int = Field(default=-1, description=f"the teacher's layer, {LAYER}")


class HiddenMse(FeatureLoss):
    """Mean squared difference of hidden states (TinyBERT, Jiao et al. 2020, equation 8)."""

    kind: Literal["hidden_mse"]
    code: ClassVar[str] = "raykd.losses.features:HiddenMse"


class HiddenCosine(FeatureLoss):
    """1 - cosine of hidden states (DistilBERT, Sanh et al. 2019, section 2)."""

    kind: Literal["hidden_cosine"]
    code: ClassVar[str] = "raykd.losses.features:HiddenCosine"


class CrossCorrelation(FeatureLoss):
    """One-to-one mapping of features (Saadi et al. 2023, section 3)."""

    kind: Literal["cross_correlation"]
    code: ClassVar[str] = "raykd.losses.features:CrossCorrelation"
    normalisation: Literal["paper", "release"] = Field(
        default="paper", description="paper: correlations; release: divided by the width as well, as the released code"
    )
    off_diagonal: float = Field(default=0.005, ge=0, description="weight of the squares off the diagonal")
    epsilon: float = Field(default=1e-5, ge=0, description="is added to the variances of the features")
    keep: float | None = Field(
        default=None, gt=0, lt=1, description="the masked variant: each step teaches a feature with this probability"
    )
    mask: Literal["replace", "add"] = Field(
        default="replace", description="the kept features alone, or added to all of them, as the released code does"
    )

    @model_validator(mode="after")
    def _mask_serves(self) -> CrossCorrelation:
        if self.keep is None and self.mask != "replace":
            raise ValueError("mask does nothing without keep")
        return self


class OwnLoss(LogitsLoss):
    """A loss of a user's own, module:NAME: a function, a TokenLoss or a FeatureLoss; see docs/extending.md."""

    kind: FunctionName
    teacher_outputs: bool = Field(
        default=True, description="whether it compares with the teacher's outputs; false: with the targets alone"
    )
    options: dict[str, Any] = Field(default={}, description="arguments of the function or class")

    def reads_teacher(self) -> bool:
        return self.teacher_outputs

    def implementation(self) -> str:
        return self.kind

    def arguments(self) -> dict[str, Any]:
        return self.options


SECTIONS = (
    CrossEntropy,
    SoftCrossEntropy,
    ForwardKl,
    ReverseKl,
    Jsd,
    SkewedForwardKl,
    SkewedReverseKl,
    SymmetricKl,
    WeightedKl,
    TotalVariation,
    AdaptiveKl,
    NucleusKl,
    Dkd,
    Atkd,
    Mse,
    TeacherMse,
    HiddenMse,
    HiddenCosine,
    CrossCorrelation,
)
LOSSES: dict[str, type[Loss]] = {get_args(section.model_fields["kind"].annotation)[0]: section for section in SECTIONS}


def default_kinds(losses: Any) -> Any:
    """The losses of a recipe with the kind that each has by default: its name. Raises ValueError for no such kind."""
    if not isinstance(losses, dict):
        return losses
    with_kinds = {}
    for name, loss in losses.items():
        if loss is None or isinstance(loss, dict):
            loss = {"kind": name, **(loss or {})}
            _require_kind(str(name), loss["kind"])
        with_kinds[name] = loss
    return with_kinds


def _require_kind(name: str, kind: Any) -> None:
    if isinstance(kind, str) and (kind in LOSSES or FUNCTION.fullmatch(kind)):
        return
    near = difflib.get_close_matches(str(kind), LOSSES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see docs/losses.md; one of your own is module:NAME"
    field = name if kind == name else f"{name}.kind {str(kind)!r:.60}"
    raise ValueError(f"{field:.80}: no such loss; {hint}")


def _tag(loss: Any) -> str:
    kind = loss.get("kind") if isinstance(loss, dict) else getattr(loss, "kind", None)
    return kind if kind in LOSSES else "own"


if TYPE_CHECKING:
    AnyLoss = Loss
else:
    AnyLoss = Annotated[
        Union[(*(Annotated[section, Tag(kind)] for kind, section in LOSSES.items()), Annotated[OwnLoss, Tag("own")])],
        Discriminator(_tag),
    ]
