"""The chunked output layer gives what whole logits give: every loss, odd sizes, every precision, every teacher."""

import pytest
import torch
from named_losses import token_loss

from raykd.losses.logits import HeadLogits, of_layer, wide
from raykd.losses.teachers import Sampled, TopK
from raykd.losses.tokens import IGNORE, TokenBatch, token_losses
from raykd.recipe.losses import LOSSES, LogitsLoss

ROWS, HIDDEN, VOCABULARY = 37, 13, 61
NEAR = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def layers(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    made = [
        [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes] for _ in range(2)
    ]
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    labels[torch.rand(ROWS, generator=generator) < 0.3] = IGNORE
    return made[0], made[1], labels


def dense(hidden, weight, bias, scale=0.7, softcap=4.0):
    return softcap * torch.tanh(scale * (wide(hidden @ weight.T) + bias) / softcap)


TOKEN_LOSSES = [name for name, section in LOSSES.items() if issubclass(section, LogitsLoss)]
TEACHERS = [(kind, known) for kind in TOKEN_LOSSES for known in ("head", "logits", "top_k")]


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("kind", "known"), [*TEACHERS, ("soft_cross_entropy", "sampled"), ("cross_entropy", "sampled")]
)
def test_chunked_is_plain(kind, dtype, known):
    student, teacher, labels = layers(dtype)
    logits = dense(*teacher).detach()
    ids = logits.topk(8).indices
    logprobs = logits.log_softmax(1)
    at = logprobs.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    side = {
        "head": HeadLogits((teacher[0],), (teacher[1],), teacher[2], 0.7, 4.0),
        "logits": logits,
        "top_k": TopK(ids, logprobs.gather(1, ids), target_logprobs=at),
        "sampled": Sampled(ids, torch.arange(8).expand(ROWS, 8)),
    }[known]
    losses = [token_loss(kind, temperature=1.0 if known == "sampled" else 1.5)]
    found = []
    for chunked in (True, False):
        tensors = [x.detach().clone().requires_grad_() for x in student]
        logits_or_head = HeadLogits((tensors[0],), (tensors[1],), tensors[2], 0.7, 4.0) if chunked else dense(*tensors)
        result = token_losses(losses, logits_or_head, TokenBatch(labels, side), chunk_rows=5 if chunked else ROWS)
        result.total.backward()
        found.append((result, tensors))
    (one, ours), (other, plain) = found
    assert one.total.item() == pytest.approx(other.total.item(), rel=NEAR[dtype])
    assert one.terms.keys() == other.terms.keys()
    for got, want in zip(ours, plain, strict=True):
        assert got.grad.dtype == dtype
        assert (got.grad - want.grad).abs().max() <= NEAR[dtype] * want.grad.abs().max()


def test_positions_without_a_target_never_reach_the_output_layer():
    (hidden, weight, _), _, labels = layers(torch.float64)
    hidden[labels == IGNORE] = float("nan")
    found = token_losses([token_loss("cross_entropy")], HeadLogits((hidden,), (weight,)), TokenBatch(labels))
    assert found.total.isfinite()


def test_rows_that_are_all_counted_are_not_copied():
    logits = HeadLogits((torch.randn(5, 3),), (torch.randn(7, 3),))
    assert logits.pick(torch.arange(5)).features[0] is logits.features[0]
    assert torch.equal(logits.pick(torch.tensor([1, 4])).features[0], logits.features[0][[1, 4]])


def test_one_chunk_of_logits_exists_at_a_time(monkeypatch):
    seen = []
    product = HeadLogits.product

    def watched(self, rows):
        made = product(self, rows)
        seen.append(made.shape)
        return made

    monkeypatch.setattr(HeadLogits, "product", watched)
    (hidden, weight, bias), teacher, labels = layers(torch.float64)
    sides = HeadLogits((hidden,), (weight,), bias), HeadLogits((teacher[0],), (teacher[1],), teacher[2])
    token_losses([token_loss("jsd")], sides[0], TokenBatch(labels, sides[1]), chunk_rows=5)
    assert len(seen) == 2 * -(-int((labels != IGNORE).sum()) // 5) and max(rows for rows, _ in seen) == 5


def test_without_gradients_nothing_is_made_for_them():
    (hidden, weight, bias), _, labels = layers(torch.float64)
    weight.requires_grad_()
    side = HeadLogits((hidden,), (weight,), bias)
    with torch.no_grad():
        judged = token_losses([token_loss("cross_entropy")], side, TokenBatch(labels), chunk_rows=5).total
    assert not judged.requires_grad
    trained = token_losses([token_loss("cross_entropy")], side, TokenBatch(labels), chunk_rows=5).total
    trained.backward()
    assert trained.item() == judged.item() and weight.grad is not None and hidden.grad is None


@pytest.mark.parametrize("layer", [torch.nn.Embedding(5, 3), torch.nn.Conv1d(3, 5, 1)])
def test_an_output_layer_that_is_not_linear_is_refused(layer):
    with pytest.raises(TypeError, match=f"must be linear, or LoRA around a linear one, not {type(layer).__name__}"):
        of_layer(layer, torch.zeros(2, 3))
