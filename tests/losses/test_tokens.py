"""Token losses: against their definitions in plain loops, and what holds of each."""

import importlib
import inspect
import math
import re
from pathlib import Path

import naive
import pytest
import torch
from named_losses import token_loss

from raykd.losses import divergences, features
from raykd.losses.atkd import Atkd, hard_from
from raykd.losses.logits import HeadLogits
from raykd.losses.loss import make_loss
from raykd.losses.teachers import Sampled, TopK, uncertainty
from raykd.losses.tokens import IGNORE, TokenBatch, sequence_weights, statistics, term_weights, token_losses
from raykd.recipe.losses import LOSSES, LogitsLoss

NEAR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}
SIMPLE = sorted(naive.VALUES)
NEEDY = [name for name in SIMPLE if name != "cross_entropy"]
ZERO = [name for name in NEEDY if name not in ("soft_cross_entropy", "nucleus_kl")]  # at equality
REVERSE = ["reverse_kl", "symmetric_kl", "weighted_kl", "adaptive_kl"]
FORWARD = [name for name in NEEDY if name not in REVERSE]
OPTIONS = [
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0}),
    ("jsd", {"beta": 1}),
    ("skewed_forward_kl", {"alpha": 0.5}),
    ("skewed_reverse_kl", {"alpha": 0.5}),
    ("skewed_forward_kl", {"alpha": 0}),
    ("skewed_reverse_kl", {"alpha": 0}),
    ("weighted_kl", {"forward": 0.3}),
    ("adaptive_kl", {"head": 0.8}),
    ("adaptive_kl", {"crossing": False}),
    ("nucleus_kl", {"p": 0.5}),
    ("nucleus_kl", {"p": 0.5, "release_scale": True}),
    ("dkd", {"alpha": 1.0, "beta": 8.0}),
]


def sides(rows=6, width=9, dtype=torch.float64, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, width, generator=generator, dtype=dtype) * spread for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, width, (rows,), generator=generator)


def total(kind, student, labels, teacher=None, options=None, chunk_rows=None, cut_infinite=False, **more):
    batch = TokenBatch(labels, teacher, **more)
    loss = token_loss(kind, **(options or {}))
    return token_losses([loss], student, batch, chunk_rows=chunk_rows, cut_infinite=cut_infinite)


def value(kind, student, teacher, target, temperature=1.0, **options):
    s, t = (naive.softmax(x.tolist(), temperature) for x in (student, teacher))
    return naive.VALUES[kind](s, t, int(target), **options)


@pytest.mark.parametrize(("kind", "options"), [(kind, {}) for kind in SIMPLE] + OPTIONS)
def test_is_its_definition(kind, options):
    student, teacher, labels = sides()
    labels[2] = IGNORE
    found = total(kind, student, labels, teacher, options)
    kept = [0, 1, 3, 4, 5]
    expected = [value(kind, student[i], teacher[i], labels[i], **options) for i in kept]
    assert found.values[kind][kept].tolist() == pytest.approx(expected, rel=1e-9)
    assert found.values[kind][2] == 0 and found.terms[kind].denominator == 5
    assert found.total.item() == pytest.approx(sum(expected) / 5, rel=1e-9)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("kind", SIMPLE)
def test_arithmetic_is_float32_or_wider(kind, dtype):
    student, teacher, labels = (x.to(dtype) if x.is_floating_point() else x for x in sides())
    found = total(kind, student, labels, teacher)
    expected = sum(value(kind, s, t, y) for s, t, y in zip(student, teacher, labels, strict=True)) / 6
    assert found.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.total.item() == pytest.approx(expected, rel=min(NEAR[dtype], 2e-5))


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_and_its_square(kind, temperature):
    student, teacher, labels = sides()
    expected = sum(value(kind, s, t, y, temperature) for s, t, y in zip(student, teacher, labels, strict=True)) / 6
    for squared in (None, True, False):
        loss = token_loss(kind, temperature=temperature, squared=squared)
        factor = temperature**2 if (LOSSES[kind].model_fields["squared"].default if squared is None else squared) else 1
        got = token_losses([loss], student, TokenBatch(labels, teacher)).total.item()
        assert got == pytest.approx(factor * expected, rel=1e-9)


def easy(uncertainty_N, hard_share=0.5):
    return uncertainty_N < hard_from(uncertainty_N, hard_share)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_atkd_is_its_definition(rows, reverse):
    student, teacher, labels = sides(rows)
    found = total("atkd", student, labels, teacher, {"reverse": reverse})
    both = [[naive.softmax(row) for row in side.tolist()] for side in (student, teacher)]
    assert found.total.item() == pytest.approx(naive.atkd(*both, labels.tolist(), reverse=reverse), rel=1e-9)
    easy, hard = found.terms["atkd_easy"].denominator, found.terms["atkd_hard"].denominator
    assert (easy, hard) == ((rows - 1) // 2, rows - (rows - 1) // 2)
    uncertain = [1 - both[1][i][y] for i, y in enumerate(labels)]
    assert found.values["atkd_uncertainty"].tolist() == pytest.approx(uncertain)


def test_atkd_groups_may_be_those_of_the_global_batch():
    student, teacher, labels = sides(12)
    labels[[1, 7]] = IGNORE
    whole = total("atkd", student, labels, teacher)
    losses, kept = [token_loss("atkd")], labels != IGNORE
    joined = statistics(losses, teacher[kept], labels[kept])
    of_kept = term_weights(losses, torch.ones(10, dtype=torch.float64), joined, joined)
    weights = {name: torch.zeros(12, dtype=torch.float64).masked_scatter(kept, w) for name, w in of_kept.items()}
    counts = {name: term.denominator for name, term in whole.terms.items()}
    halves = []
    for half in (slice(0, 5), slice(5, 12)):
        own = {name: w[half] for name, w in weights.items()}
        more = {"term_weights": own, "denominators": counts}
        halves.append(total("atkd", student[half], labels[half], teacher[half], **more).total)
    assert sum(halves).item() == pytest.approx(whole.total.item(), rel=1e-12)


def test_ties_at_the_median_are_hard_and_shares_are_shares():
    assert easy(torch.tensor([0.5, 0.5, 0.5, 0.1])).tolist() == [False, False, False, True]
    assert not easy(torch.full((5,), 0.25)).any()
    many = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert [int(easy(many, share).sum()) for share in (0, 0.25, 0.5, 1)] == [100, 74, 49, 0]
    student, teacher, labels = sides(5)
    uniform = total("atkd", student, labels, torch.zeros_like(teacher))
    uniform.total.backward()
    assert uniform.terms["atkd_easy"].denominator == 0 and uniform.total > 0 and student.grad.isfinite().all()


@pytest.mark.parametrize("kind", ZERO)
def test_is_zero_at_equality_and_nowhere_below(kind):
    student, teacher, labels = sides(50, spread=3.0)
    same = total(kind, teacher.clone().requires_grad_(), labels, teacher)
    assert same.total.item() == pytest.approx(0, abs=1e-12)
    assert (total(kind, student, labels, teacher).values[kind] > 0).all()


def test_soft_cross_entropy_is_the_teachers_entropy_at_equality():
    _, teacher, labels = sides()
    found = total("soft_cross_entropy", teacher, labels, teacher).values["soft_cross_entropy"]
    assert torch.allclose(found, divergences.entropy(teacher.log_softmax(1)))


def test_total_variation_and_jsd_are_bounded():
    student, teacher, labels = sides(50, spread=100.0)
    assert (total("total_variation", student, labels, teacher).values["total_variation"] <= 1 + 1e-12).all()
    assert (total("jsd", student, labels, teacher).values["jsd"] <= math.log(2) + 1e-12).all()


@pytest.mark.parametrize("kind", [*SIMPLE, "atkd"])
def test_neither_a_constant_nor_padding_changes_it(kind):
    student, teacher, labels = sides()
    expected = total(kind, student, labels, teacher).total
    (gradient,) = torch.autograd.grad(expected, student)
    shifted = total(kind, student + 7.0, labels, teacher - 3.0).total
    assert shifted.item() == pytest.approx(expected.item(), rel=1e-9)
    padded = [torch.cat([x, torch.full_like(x[:4], fill)]) for x, fill in ((student, math.nan), (teacher, math.inf))]
    found = total(kind, padded[0], torch.cat([labels, labels.new_full((4,), IGNORE)]), padded[1])
    assert (
        found.total.item() == pytest.approx(expected.item(), rel=1e-12)
        and (list(found.values.values())[0][6:] == 0).all()
    )
    assert torch.allclose(torch.autograd.grad(found.total, student)[0], gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [*SIMPLE, "atkd"])
def test_huge_logits_leave_value_and_gradient_finite(kind, dtype):
    student, teacher, labels = sides(8, spread=0.0, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    huge = [torch.where(torch.rand(8, 9, generator=generator) < 0.5, -1e4, 1e4).to(dtype) for _ in range(2)]
    student = huge[0].requires_grad_()
    found = total(kind, student, labels, huge[1])
    found.total.backward()
    assert found.total.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("kind", [*FORWARD, "atkd"])
def test_impossible_tokens_of_the_teacher_are_no_trouble_for_forward_types(kind):
    student, teacher, labels = sides()
    teacher[:, 3:6] = -math.inf
    teacher[0] = torch.full((9,), -math.inf).index_fill(0, labels[:1], 0.0)  # all on the target
    labels[1:] = labels[1:].clamp(max=2)
    found = total(kind, student, labels, teacher)
    found.total.backward()
    assert found.total.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("kind", [*REVERSE, "atkd"])
def test_reverse_types_refuse_impossible_tokens_or_cut_them(kind):
    student, teacher, labels = sides()
    teacher[:, 3:6] = -math.inf
    labels = labels.clamp(max=2)
    options = {"reverse": True} if kind == "atkd" else {}
    with pytest.raises(
        ValueError, match=r"is infinite where the teacher gives a token no probability \(position 0, and"
    ):
        total(kind, student, labels, teacher, options)
    found = total(kind, student, labels, teacher, options, cut_infinite=True)
    kept = [0, 1, 2, 6, 7, 8]
    expected = total(kind, student[:, kept], labels, teacher[:, kept], options)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-9)
    got, want = (torch.autograd.grad(x.total, student)[0] for x in (found, expected))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("kind", [*SIMPLE, "atkd"])
def test_without_targets_it_is_zero_and_one_target_is_enough(kind):
    student, teacher, labels = sides()
    found = total(kind, student, torch.full_like(labels, IGNORE), teacher)
    found.total.backward()
    assert found.total == 0 and (student.grad == 0).all() and all(t.sum == 0 for t in found.terms.values())
    labels[1:] = IGNORE
    alone = total(kind, student, labels, teacher)
    alone.total.backward()
    assert alone.total.isfinite() and student.grad.isfinite().all() and (student.grad[1:] == 0).all()


@pytest.mark.parametrize("kind", [*(kind for kind in SIMPLE if kind != "adaptive_kl"), "atkd"])
def test_gradients_are_those_of_the_value(kind):
    student, teacher, labels = sides(4, 5)
    assert torch.autograd.gradcheck(lambda x: total(kind, x, labels, teacher).total, student)
    hidden, weight = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    student = [x.requires_grad_() for x in (hidden, weight, bias)]

    def through(hidden, weight, bias):
        return total(kind, HeadLogits((hidden,), (weight,), bias, 0.7, 5.0), labels, teacher, chunk_rows=3).total

    assert torch.autograd.gradcheck(through, student)


def test_adaptive_kl_has_the_gradient_of_its_parts_at_fixed_weights():
    student, teacher, labels = sides(1)
    forward, reverse, both = (
        total(kind, student, labels, teacher).total for kind in ("forward_kl", "reverse_kl", "adaptive_kl")
    )
    share = ((both - reverse) / (forward - reverse)).detach()
    got, *parts = (torch.autograd.grad(x, student)[0] for x in (both, forward, reverse))
    assert torch.allclose(got, share * parts[0] + (1 - share) * parts[1], atol=1e-12)


@pytest.mark.parametrize("kind", [*NEEDY, "atkd"])
def test_no_gradient_reaches_the_teacher(kind):
    student, teacher, labels = sides()
    teacher.requires_grad_()
    total(kind, student, labels, teacher).total.backward()
    assert teacher.grad is None and student.grad is not None


def test_kl_is_target_part_and_uncertainty_times_diversity_part():
    student, teacher, labels = sides(200, 30, spread=3.0)
    values = total("atkd", student, labels, teacher).values
    whole = total("forward_kl", student, labels, teacher).values["forward_kl"]
    parts = values["atkd_target_part"] + values["atkd_uncertainty"] * values["atkd_diversity_part"]
    assert (whole - parts).abs().max() < 1e-6


@pytest.mark.parametrize("reverse", [False, True])
def test_atkd_of_one_group_with_diversity_weighed_is_kl(reverse):
    student, teacher, labels = sides()
    one = make_loss(Atkd, easy_weight=0, hard_share=1, weigh_diversity=True, reverse=reverse)
    found = token_losses([one], student, TokenBatch(labels, teacher)).total
    expected = total("reverse_kl" if reverse else "forward_kl", student, labels, teacher).total
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    got, want = (torch.autograd.grad(x, student)[0] for x in (found, expected))
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("kind", [*SIMPLE, "atkd"])
def test_twice_the_tokens_at_the_same_mean_is_the_same_loss(kind):
    student, teacher, labels = sides(5)
    twice = total(kind, torch.cat([student, student]), torch.cat([labels, labels]), torch.cat([teacher, teacher]))
    once = total(kind, student, labels, teacher)
    if kind != "atkd":  # its median of an odd number is another token of twice as many
        assert twice.total.item() == pytest.approx(once.total.item(), rel=1e-12)
    for name, term in once.terms.items():
        assert kind == "atkd" or twice.terms[name].denominator == 2 * term.denominator


def test_weights_and_denominators():
    student, teacher, labels = sides()
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    values = total("forward_kl", student, labels, teacher).values["forward_kl"]
    found = total("forward_kl", student, labels, teacher, weights_N=weights)
    assert found.total.item() == pytest.approx(((values * weights).sum() / 7.5).item())
    split = [
        total(
            "forward_kl",
            student[half],
            labels[half],
            teacher[half],
            weights_N=weights[half],
            denominators={"forward_kl": 7.5},
        )
        for half in (slice(0, 2), slice(2, 6))
    ]
    assert sum(part.total for part in split).item() == pytest.approx(found.total.item())


def test_the_mean_over_sequences():
    labels = torch.tensor([[1, 2, 3], [1, IGNORE, IGNORE], [IGNORE] * 3])
    weights = sequence_weights(labels)
    assert torch.allclose(weights.sum(1), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    student, teacher, _ = sides(9)
    found = total("forward_kl", student, labels.flatten(), teacher, weights_N=weights.flatten())
    values = found.values["forward_kl"].view(3, 3)
    assert found.total.item() == pytest.approx(((values[0].mean() + values[1, 0]) / 2).item())


def test_several_losses_share_one_pass():
    student, teacher, labels = sides()
    losses = [token_loss("cross_entropy", weight=0.3), token_loss("jsd", weight=0.7, temperature=2.0)]
    found = token_losses(losses, student, TokenBatch(labels, teacher))
    alone = [token_losses([loss], student, TokenBatch(labels, teacher)).total for loss in losses]
    assert found.total.item() == pytest.approx(sum(alone).item())
    assert found.terms["jsd"].sum.item() == pytest.approx(found.values["jsd"].sum().item())


def bounded(student_NE, teacher_NE, at_N, power=2.0):
    return (student_NE.exp() - teacher_NE.exp()).abs().pow(power).sum(1)


def test_a_loss_of_ones_own():
    student, teacher, labels = sides()
    loss = make_loss(bounded, power=3.0)
    found = token_losses([loss], student, TokenBatch(labels, teacher))
    expected = (student.softmax(1) - teacher.softmax(1)).abs().pow(3).sum(1).mean()
    assert found.total.item() == pytest.approx(expected.item()) and list(found.terms) == ["bounded"]


# ---- a teacher known in part


@pytest.mark.parametrize("kind", [*NEEDY, "atkd"])
def test_top_k_of_everything_is_everything(kind):
    student, teacher, labels = sides()
    ids = teacher.argsort(1, descending=True)
    known = TopK(ids, teacher.log_softmax(1).gather(1, ids))
    got, want = total(kind, student, labels, known).total, total(kind, student, labels, teacher).total
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    assert torch.allclose(*(torch.autograd.grad(x, student)[0] for x in (got, want)), atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in NEEDY if kind not in ("dkd",)])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_tail_is_one_event_or_nothing(kind, tail):
    student, teacher, labels = sides()
    logprobs, ids = teacher.log_softmax(1).topk(4, 1)
    known = TopK(ids, logprobs, tail)
    if tail == "renormalise" and kind in REVERSE:
        with pytest.raises(ValueError, match="no probability"):
            total(kind, student, labels, known)
        return
    found = total(kind, student, labels, known).values[kind]
    for i, (s, t) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        s, t = naive.softmax(s), naive.softmax(t)
        inside, mass = ids[i].tolist(), sum(t[j] for j in ids[i].tolist())
        s = [s[j] for j in inside] + [sum(x for j, x in enumerate(s) if j not in inside)]
        t = [t[j] for j in inside] + [1 - mass] if tail == "bucket" else [t[j] / mass for j in inside] + [0.0]
        assert found[i].item() == pytest.approx(naive.VALUES[kind](s, t, 0), rel=1e-7)


def test_a_tail_can_be_refused():
    student, teacher, labels = sides()
    logprobs, ids = teacher.log_softmax(1).topk(4, 1)
    with pytest.raises(ValueError, match="of the teacher's probability is outside its top-k"):
        total("forward_kl", student, labels, TopK(ids, logprobs, "refuse"))
    sharp, ids = (teacher * 100).log_softmax(1).topk(8, 1)
    assert total("forward_kl", student, labels, TopK(ids, sharp, "refuse")).total.isfinite()


def test_rounded_log_probabilities_of_more_than_everything_do_no_harm():
    student, _, labels = sides(2, 5)
    known = TopK(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0.0, -4.0], [-0.69, -0.69]]).half())
    found = total("forward_kl", student, labels[:2], known)
    found.total.backward()
    assert found.total.isfinite() and student.grad.isfinite().all()


def test_a_target_outside_the_top_k_needs_its_own_log_probability():
    student, teacher, labels = sides()
    logprobs, ids = teacher.log_softmax(1).topk(3, 1)
    assert not (ids == labels[:, None]).any(1).all()
    with pytest.raises(ValueError, match=r"\d of 6 targets are not among the teacher's top 3"):
        total("atkd", student, labels, TopK(ids, logprobs))
    mine = teacher.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    found = total("dkd", student, labels, TopK(ids, logprobs, target_logprobs=mine), {"alpha": 1.0, "beta": 0.0})
    expected = total("dkd", student, labels, teacher, {"alpha": 1.0, "beta": 0.0})
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-9)  # the target part is exact
    assert torch.allclose(uncertainty(TopK(ids, logprobs, target_logprobs=mine), labels), 1 - mine.exp())


def test_top_k_at_another_temperature_is_zero_at_equality():
    _, teacher, labels = sides()
    logprobs, ids = teacher.log_softmax(1).topk(4, 1)
    loss = token_loss("forward_kl", temperature=2.0)
    same = token_losses([loss], teacher, TokenBatch(labels, TopK(ids, logprobs)))
    assert same.total.item() == pytest.approx(0, abs=1e-12)


def test_many_drawn_targets_have_the_dense_gradient():
    student, teacher, labels = sides(3, 7)
    (dense,) = torch.autograd.grad(total("forward_kl", student, labels, teacher).total, student)
    generator, mean = torch.Generator().manual_seed(0), torch.zeros_like(student)
    errors = []
    for draws in range(1, 2001):
        ids = torch.multinomial(teacher.softmax(1), 12, replacement=True, generator=generator)
        known = Sampled(ids, torch.ones_like(ids))
        mean += torch.autograd.grad(total("soft_cross_entropy", student, labels, known).total, student)[0]
        if draws in (20, 2000):
            errors.append(((mean / draws - dense).norm() / dense.norm()).item())
    assert errors[1] < 0.02 and errors[1] < errors[0]


def test_counts_are_draws_and_zero_is_padding():
    student, _, labels = sides(2, 7)
    told = Sampled(torch.tensor([[1, 2, 0], [4, 5, 6]]), torch.tensor([[3, 1, 0], [1, 1, 2]], dtype=torch.uint8))
    spelt = Sampled(torch.tensor([[1, 1, 1, 2], [4, 5, 6, 6]]), torch.ones(2, 4))
    found = [total("soft_cross_entropy", student, labels, known).total.item() for known in (told, spelt)]
    assert found[0] == pytest.approx(found[1])


# ---- what is refused


@pytest.mark.parametrize(
    ("losses", "teacher", "more", "message"),
    [
        ([], "dense", {}, "one at least: found none"),
        ([token_loss("jsd"), token_loss("jsd")], "dense", {}, "different names, and one at least: found jsd, jsd"),
        ([token_loss("jsd")], None, {}, "jsd needs the teacher's side"),
        ([token_loss("jsd")], "drawn", {}, "jsd at temperature 1 cannot be known from drawn tokens"),
        ([token_loss("soft_cross_entropy", temperature=2)], "drawn", {}, "at temperature 2 cannot be known"),
        ([token_loss("jsd")], "zero", {}, "tail is bucket, renormalise or refuse, not 'zero'"),
        ([token_loss("jsd")], "wide", {}, "over 9 tokens, the teacher's 12: say with shared_vocab_size"),
        ([token_loss("jsd"), token_loss("mse")], "dense", {}, "mse is a loss of a regression"),
        ([token_loss("jsd")], "dense", {"shared_vocab_size": 5}, "target ids must lie below 5, found"),
    ],
)
def test_what_does_not_go_together_is_refused(losses, teacher, more, message):
    student, dense, labels = sides()
    labels[0] = 8
    ids = torch.zeros(6, 1, dtype=torch.long)
    known = {"dense": dense, "drawn": Sampled(ids, ids + 1), "zero": TopK(ids, ids.double(), "zero")}
    known["wide"] = torch.cat([dense, dense[:, :3]], 1)
    with pytest.raises(ValueError, match=message):
        token_losses(losses, student, TokenBatch(labels, known.get(teacher)), **more)


def test_every_loss_has_a_reference_a_docstring_and_a_line_on_its_page():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    of_tokens = {name: section for name, section in LOSSES.items() if issubclass(section, LogitsLoss)}
    assert set(of_tokens) == {*naive.VALUES, "atkd"}
    for name, section in LOSSES.items():
        module, _, attribute = section.code.partition(":")
        assert inspect.getdoc(getattr(importlib.import_module(module), attribute))
        (line,) = [line for line in page.splitlines() if re.match(rf"\| `{name}(\(|`)", line)]
        if name in of_tokens:
            squared = section.model_fields["squared"].default
            assert re.split(r"(?<!\\)\|", line)[3].strip() == ("yes" if squared else "no")
    for name in ("hidden_mse", "hidden_cosine", "cross_correlation", "relations", "pkd", "projection", "draw_features"):
        assert getattr(features, name).__doc__ and f"`{name}`" in page


def test_the_pages_own_loss_works():
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    found: dict = {}
    exec(page.rsplit("```python", 1)[1].split("```")[0], found)
    student, teacher, labels = sides()
    value = token_losses([found["loss"]], student, TokenBatch(labels, teacher)).total
    apart = student.softmax(1).sqrt() - teacher.softmax(1).sqrt()
    assert value.item() == pytest.approx(0.5 * apart.square().sum(1).mean().item())
