"""What a step's token batches know of the global batch."""

import torch

from raykd.losses.kinds import Kind, TokenLoss
from raykd.losses.tokens import TokenBatch
from raykd.training.forward import with_denominators


def test_groups_of_tokens_are_made_for_atkd_alone():
    def own(student_NV, targets_N):
        return targets_N

    twice = [TokenLoss(Kind(own, teacher=False, target=True)) for _ in range(2)]  # `token_losses` refuses them by name
    batches, denominators = with_denominators([TokenBatch(torch.ones(2, 3).long())], twice, 6.0, None)
    assert denominators == {"own": 6.0} and batches[0].easy_mask_N is None
