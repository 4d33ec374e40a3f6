"""Losses: pure torch, and nothing of raykd.

A loss is `loss(logits_BTV, labels_BT) -> {name: Term}`. A term is a sum and its denominator, so that the loop can
divide once, by the denominator of the whole global step (all workers, all micro-batches).
"""

from raykd.losses.tokens import Term, cross_entropy

LOSSES = {"cross_entropy": cross_entropy}

__all__ = ["LOSSES", "Term"]
