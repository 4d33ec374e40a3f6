"""ATKD: easy tokens are taught less than hard ones (Zhong et al. 2024, arXiv 2402.11890, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from raykd.losses.divergences import target_parts
from raykd.losses.teachers import uncertainty


@dataclass(frozen=True)
class Atkd:
    """easy_weight x mean(diversity part of easy tokens) + (1 - easy_weight) x mean(both parts of hard tokens).

    easy_weight      the easy group's share of the loss, lambda
    hard_share       the share of tokens that is hard, k; the groups are those of the global batch
    reverse          exchanges student and teacher in both parts; the uncertainty stays the teacher's
    weigh_diversity  multiplies the diversity part by the uncertainty again, so that a hard token's loss is forward KL
    """

    easy_weight: float = 0.2
    hard_share: float = 0.5
    reverse: bool = False
    weigh_diversity: bool = False
    needs = frozenset({"teacher", "target"})
    joins = True

    @property
    def terms(self) -> dict[str, float]:
        return {"easy": self.easy_weight, "hard": 1 - self.easy_weight}

    def statistic(self, teacher: Any, labels_N: torch.Tensor) -> torch.Tensor:
        """(N,) the teacher's uncertainty about each target."""
        return uncertainty(teacher, labels_N)

    def weights(
        self, weights_N: torch.Tensor, statistic_N: torch.Tensor | None, joined_M: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        assert statistic_N is not None and joined_M is not None
        easy_mask_N = statistic_N < hard_from(joined_M, self.hard_share).to(statistic_N)
        return {"easy": weights_N * easy_mask_N, "hard": weights_N * ~easy_mask_N}

    def values(
        self, student_NE: torch.Tensor, teacher_NE: torch.Tensor | None, at_N: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The loss of an easy and of a hard token; and for diagnosis both parts, and the teacher's uncertainty."""
        assert teacher_NE is not None and at_N is not None
        target, diversity, uncertainty_N = target_parts(student_NE, teacher_NE, at_N)
        rest_N = uncertainty_N
        if self.reverse:
            target, diversity, rest_N = target_parts(teacher_NE, student_NE, at_N)
        easy = diversity * rest_N if self.weigh_diversity else diversity
        parts = {"target_part": target, "diversity_part": diversity, "uncertainty": uncertainty_N}
        return {"easy": easy, "hard": target + easy, **parts}


def hard_from(uncertainty_M: torch.Tensor, hard_share: float = 0.5) -> torch.Tensor:
    """The least uncertainty of a hard token, a scalar: that of the token where the hard share begins (section 3).

    With a half it is the lower median: so the median token, and all that tie with it, are hard. Infinite for a share of
    0, where no token is hard.
    """
    if hard_share <= 0 or not uncertainty_M.numel():
        return uncertainty_M.new_tensor(math.inf)
    at = math.floor((1 - hard_share) * (uncertainty_M.numel() - 1))
    return uncertainty_M.kthvalue(at + 1).values
