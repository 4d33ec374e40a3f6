"""What a step's token batches know of the global batch."""

import torch

from raykd.losses import divergences
from raykd.losses.loss import make_loss
from raykd.losses.tokens import TokenBatch
from raykd.training.forward import StepBatch, with_denominators


def test_what_tokens_count_for_is_joined_for_losses_with_a_statistic_alone():
    losses = [make_loss(divergences.cross_entropy)]
    batch = StepBatch({}, TokenBatch(torch.ones(2, 3).long()), None)
    batches, denominators = with_denominators([batch], losses, 6.0, None)
    assert denominators == {"cross_entropy": 6.0} and batches[0].tokens.term_weights is None
