"""Plans and padding."""

import numpy as np
import pytest
import torch

from raykd.training import batches


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(1, 60, size=(1000, 2))


@pytest.mark.parametrize("budget", [100, 512, 4096])
def test_a_plan_holds_every_row_once_within_the_budget(lengths, budget):
    planned = batches.plan(lengths, budget, seed=3, epoch=0)
    assert sorted(np.concatenate(planned)) == list(range(1000))
    for rows in planned:
        padded = len(rows) * lengths[rows].max(axis=0).sum()
        assert padded <= budget or len(rows) == 1


def test_a_plan_is_a_function_of_seed_and_epoch(lengths):
    def flat(seed, epoch):
        return np.concatenate(batches.plan(lengths, 512, seed, epoch)).tolist()

    assert flat(1, 2) == flat(1, 2)
    assert flat(1, 2) != flat(1, 3)
    assert flat(1, 2) != flat(2, 2)


def test_length_buckets_leave_little_padding(lengths):
    planned = batches.plan(lengths, 2048, seed=0, epoch=0)
    padded = sum(len(rows) * lengths[rows].max(axis=0).sum() for rows in planned)
    shuffled = np.random.default_rng(0).permutation(1000).reshape(-1, 40)
    unsorted = sum(len(rows) * lengths[rows].max(axis=0).sum() for rows in shuffled)
    real = lengths.sum()  # two sides of independent lengths: the worst case
    assert padded / real < 1.5 < 1.8 < unsorted / real


def test_by_length_is_longest_first_and_complete():
    lengths = [3, 50, 2, 7, 60, 1]
    found = batches.by_length(lengths, 64)
    assert sorted(np.concatenate(found)) == list(range(6))
    assert found[0].tolist() == [4]
    assert all(max(lengths[i] for i in rows) * len(rows) <= 64 for rows in found)
    assert batches.by_length([], 64) == []


def test_collate_for_an_encoder_decoder():
    made = batches.collate([[5, 6, 1], [7, 1]], [[8, 1], [9, 9, 1]], pad=0, causal=False)
    assert made["input_ids"].tolist() == [[5, 6, 1], [7, 1, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert made["labels"].tolist() == [[8, 1, -100], [9, 9, 1]]


def test_collate_for_a_causal_model_asks_for_the_target_only():
    made = batches.collate([[5, 6, 3], [7, 3]], [[8, 1], [9, 1]], pad=0, causal=True)
    assert made["input_ids"].tolist() == [[5, 6, 3, 8], [7, 3, 9, 0]]
    assert made["labels"].tolist() == [[-100, -100, 8, 1], [-100, 9, 1, -100]]


def test_padding_on_the_left():
    made = batches.pad_left([[5, 6], [7]], pad=0)
    assert made["input_ids"].tolist() == [[5, 6], [0, 7]]
    assert torch.equal(made["attention_mask"], torch.tensor([[1, 1], [0, 1]]))
