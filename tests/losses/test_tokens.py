"""Cross entropy against its definition."""

import math

import pytest
import torch

from raykd.losses import LOSSES


def naive(logits, labels):
    total, count = 0.0, 0
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row, wanted, strict=True):
            if label != -100:
                total += math.log(sum(math.exp(s) for s in scores)) - scores[label]
                count += 1
    return total, count


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-1)])
def test_sum_and_denominator(dtype, near):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, dtype=dtype), torch.randint(0, 7, (3, 5))
    labels[0, 2:] = -100
    labels[2] = -100
    term = LOSSES["cross_entropy"](logits, labels)["cross_entropy"]
    total, count = naive(logits.double(), labels)
    assert term.sum.item() == pytest.approx(total, rel=near)
    assert term.denominator.item() == count == 7


def test_without_a_label_it_is_zero_and_so_is_its_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    term = LOSSES["cross_entropy"](logits, torch.full((2, 3), -100))["cross_entropy"]
    term.sum.backward()
    assert term.sum.item() == 0 and term.denominator.item() == 0
    assert logits.grad is not None and logits.grad.abs().sum().item() == 0


def test_gradient_is_softmax_less_one_hot():
    logits, labels = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True), torch.tensor([[3, -100]])
    LOSSES["cross_entropy"](logits, labels)["cross_entropy"].sum.backward()
    expected = torch.softmax(logits[0, 0].detach(), -1) - torch.nn.functional.one_hot(torch.tensor(3), 5)
    assert torch.allclose(logits.grad[0, 0], expected)
    assert logits.grad[0, 1].abs().sum() == 0
