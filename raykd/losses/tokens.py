"""Losses on target tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

IGNORE = -100


class Term(NamedTuple):
    """A loss term: `sum` carries the gradient, `denominator` is a number without one."""

    sum: torch.Tensor
    denominator: torch.Tensor


def cross_entropy(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> dict[str, Term]:
    """Negative log-likelihood of the labels, in nats, over the tokens that are counted.

    logits_BTV is aligned with labels_BT (no shift here); labels of -100 are not counted. Computed in float32, or in
    the logits' type if that is wider. Without any label the sum is 0 and so is its gradient.
    Source: sequence-level distillation (Kim and Rush 2016, equation 5), with one pseudo-target.
    """
    keep = labels_BT != IGNORE
    logits_NV = logits_BTV[keep]
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    total = functional.cross_entropy(logits_NV, labels_BT[keep], reduction="sum")
    return {"cross_entropy": Term(total, keep.sum())}
