"""Losses on features: against their definitions in plain loops, and what holds of each."""

import math

import pytest
import torch

from raykd.losses import features


def pair(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def mean(term):
    return (term.sum / term.denominator).item()


def naive_correlation(student, teacher, divisor, off, epsilon, keep=None):
    """The loss over lists of rows."""
    count, width = len(student), len(student[0])

    def standard(rows, i):
        column = [row[i] for row in rows]
        middle = sum(column) / count
        variance = sum((x - middle) ** 2 for x in column) / (count - 1) + epsilon
        return [(x - middle) / math.sqrt(variance) for x in column]

    total = 0.0
    chosen = range(width) if keep is None else [i for i in range(width) if keep[i]]
    for i in chosen:
        for j in chosen:
            c = sum(a * b for a, b in zip(standard(student, i), standard(teacher, j), strict=True)) / divisor
            total += (c - 1) ** 2 if i == j else off * c * c
    return total


@pytest.mark.parametrize("normalisation", ["paper", "release"])
@pytest.mark.parametrize("masked", [None, "replace", "add"])
def test_cross_correlation_is_its_definition(normalisation, masked):
    student, teacher = pair(7, 5)
    keep = torch.tensor([True, False, True, True, False]) if masked else None
    mask = features.FeatureMask(keep, masked) if masked else None
    options = {"normalisation": normalisation, "off_diagonal": 0.1, "epsilon": 1e-3}
    term = features.cross_correlation(student, teacher, **options, mask=mask)
    args = (student.tolist(), teacher.tolist(), 7 * (5 if normalisation == "release" else 1), 0.1, 1e-3)
    expected = naive_correlation(*args, keep)
    expected += naive_correlation(*args) if masked == "add" else 0
    assert mean(term) == pytest.approx(expected, rel=1e-10)


def test_cross_correlation_of_equal_features():
    student, _ = pair(1000, 8)
    assert mean(features.cross_correlation(student, student, off_diagonal=0.0, epsilon=0.0)) < 1e-4
    release = features.cross_correlation(student, student, off_diagonal=0.0, epsilon=0.0, normalisation="release")
    assert mean(release) == pytest.approx(8 * (1 - 999 / 8000) ** 2)


def test_cross_correlation_sees_neither_scale_nor_shift_of_a_feature():
    student, teacher = pair(20, 6)
    moved = student * torch.arange(1, 7) + torch.arange(6)
    same = [mean(features.cross_correlation(x, teacher, epsilon=0.0)) for x in (student, moved)]
    assert same[0] == pytest.approx(same[1], rel=1e-9)


def test_masked_features_alone_are_taught():
    student, teacher = pair(9, 6)
    keep = features.draw_features(6, generator=torch.Generator().manual_seed(0))
    assert 0 < keep.sum() < 6
    features.cross_correlation(student, teacher, mask=features.FeatureMask(keep)).sum.backward()
    assert (student.grad[:, ~keep] == 0).all() and (student.grad[:, keep] != 0).any()
    drawn = torch.stack([features.draw_features(50) for _ in range(200)]).double()
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert features.draw_features(5, keep=0.0).sum() == 1


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_few_tokens_and_constant_features_are_finite(rows, epsilon):
    student, teacher = pair(rows, 4)
    with torch.no_grad():
        student[:, 1], teacher[:, 2] = 3.0, -1.0
    for loss in (features.cross_correlation, features.hidden_mse, features.hidden_cosine):
        student.grad = None
        term = loss(student, teacher, **({"epsilon": epsilon} if loss is features.cross_correlation else {}))
        term.sum.backward()
        assert term.sum.isfinite() and student.grad.isfinite().all()
        assert term.denominator == (rows if loss is not features.cross_correlation else rows > 1)


def test_mse_and_cosine_are_their_definitions():
    student, teacher = pair(5, 3)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0])
    rows = list(zip(student.tolist(), teacher.tolist(), weights.tolist(), strict=True))
    squares = sum(w * sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 3 for s, t, w in rows)
    cosines = sum(
        w * (1 - sum(a * b for a, b in zip(s, t, strict=True)) / math.hypot(*s) / math.hypot(*t)) for s, t, w in rows
    )
    assert mean(features.hidden_mse(student, teacher, weights)) == pytest.approx(squares / 5)
    assert mean(features.hidden_cosine(student, teacher, weights)) == pytest.approx(cosines / 5)
    assert mean(features.hidden_mse(teacher, teacher)) == 0
    assert mean(features.hidden_cosine(teacher, teacher)) == pytest.approx(0, abs=1e-12)


def test_pkd_is_its_definition():
    student, teacher = pair(4, 2, 3)
    total = 0.0
    for s, t in zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True):
        total += sum((a / math.hypot(*s) - b / math.hypot(*t)) ** 2 for a, b in zip(s, t, strict=True))
    assert mean(features.pkd(student, teacher)) == pytest.approx(total / 8)
    assert mean(features.pkd(teacher * 3, teacher)) == pytest.approx(0, abs=1e-12)


def naive_relations(student, teacher, mask, causal, form):
    """Of one head of one sequence, over lists."""
    kept = [i for i, m in enumerate(mask) if m]
    if not kept:
        return 0.0

    def relate(x, i, j):
        return sum(a * b for a, b in zip(x[i], x[j], strict=True)) / math.sqrt(len(x[i]))

    total = cells = 0.0
    for i in kept:
        seen = [j for j in kept if j <= i or not causal]
        rows = [[relate(x, i, j) for j in seen] for x in (student, teacher)]
        if form == "rmse":
            total, cells = total + sum((a - b) ** 2 for a, b in zip(*rows, strict=True)), cells + len(seen)
            continue
        logs = [[r - math.log(sum(math.exp(x) for x in row)) for r in row] for row in rows]
        total += sum(math.exp(t) * (t - s) for s, t in zip(*logs, strict=True))
    return math.sqrt(total / cells) if form == "rmse" else total / len(kept)


@pytest.mark.parametrize("form", ["kl", "rmse"])
@pytest.mark.parametrize("causal", [False, True])
def test_relations_are_their_definition(form, causal):
    student, _ = pair(3, 2, 4, 6)
    _, teacher = pair(3, 4, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    term = features.relations(student, teacher, mask, causal=causal, form=form)
    side_by_side = student.transpose(1, 2).reshape(3, 4, 12)  # two heads of six are four of three
    heads = [side_by_side[..., 3 * h : 3 * h + 3] for h in range(4)]
    expected = [
        naive_relations(heads[h][b].tolist(), teacher[b, h].tolist(), mask[b].tolist(), causal, form)
        for b in range(3)
        for h in range(4)
    ]
    assert term.denominator == 8 and mean(term) == pytest.approx(sum(expected) / 8)
    term.sum.backward()
    assert student.grad.isfinite().all() and (student.grad[2] == 0).all()


@pytest.mark.parametrize("form", ["kl", "rmse"])
def test_equal_relations_are_zero_with_zero_gradient(form):
    student, _ = pair(2, 1, 3, 4)
    term = features.relations(student, student.detach(), torch.ones(2, 3), form=form)
    term.sum.backward()
    assert term.sum.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-12


def test_padding_changes_no_relation():
    student, teacher = pair(2, 2, 3, 4)
    mask = torch.ones(2, 3)
    padded = [torch.cat([x, torch.full((2, 2, 2, 4), 9.0, dtype=x.dtype)], 2) for x in (student, teacher)]
    more = features.relations(*padded, torch.cat([mask, torch.zeros(2, 2)], 1), causal=True)
    assert mean(more) == pytest.approx(mean(features.relations(student, teacher, mask, causal=True)))


def test_gradients_are_those_of_the_value_and_none_reaches_the_teacher():
    student, teacher = pair(6, 4)
    teacher.requires_grad_()
    for loss in (features.hidden_mse, features.hidden_cosine, features.cross_correlation):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, teacher.detach()).sum, student)
        loss(student, teacher).sum.backward()
    student, known = pair(2, 2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for form in ("kl", "rmse"):
        assert torch.autograd.gradcheck(lambda x, f=form: features.relations(x, known, mask, form=f).sum, student)
    assert torch.autograd.gradcheck(lambda x: features.pkd(x, known[:, 0]).sum, student[:, 0].detach().requires_grad_())
    assert teacher.grad is None


def test_widths_that_differ_need_a_projection():
    student, _ = pair(5, 3, dtype=torch.float32)
    _, teacher = pair(5, 4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"student's features \(5, 3\) and teacher's \(5, 4\) differ in shape"):
        features.hidden_mse(student, teacher)
    learned = features.projection(3, 4)
    features.cross_correlation(learned(student), teacher).sum.backward()
    assert learned.weight.grad.isfinite().all() and isinstance(features.projection(4, 4), torch.nn.Identity)
    with pytest.raises(ValueError, match="2 heads of 3 cannot be cut into the teacher's 4"):
        features.relations(torch.zeros(1, 2, 5, 3), torch.zeros(1, 4, 5, 3), torch.ones(1, 5))


def test_bfloat16_is_computed_in_float32():
    student, teacher = pair(8, 4, dtype=torch.bfloat16)
    assert features.cross_correlation(student, teacher).sum.dtype == torch.float32
