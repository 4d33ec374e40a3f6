"""Students: a chunked output layer gives what the whole model gives, for every way a model treats its logits."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from named_losses import token_loss
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from raykd.errors import ModelError
from raykd.losses import divergences
from raykd.losses.loss import make_loss
from raykd.losses.teachers import LEAST
from raykd.losses.tokens import IGNORE, TokenBatch, token_losses
from raykd.recipe.losses import LOSSES as SECTIONS
from raykd.recipe.losses import LogitsLoss
from raykd.training.student import Student

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 37, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIDES = {"vocab_size": 37, "d_model": 16, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
T5 = {**SIDES, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {**SIDES, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
MODELS = {
    "llama untied": ("llama", {**SMALL, "tie_word_embeddings": False}),
    "llama tied": ("llama", {**SMALL, "tie_word_embeddings": True}),
    "gemma2 soft-capped": ("gemma2", {**SMALL, "final_logit_softcapping": 0.5}),
    "granite scaled": ("granite", {**SMALL, "logits_scaling": 8.0}),
    "cohere scaled": ("cohere", {**SMALL, "logit_scale": 0.0625}),
    "t5 tied": ("t5", {**T5, "tie_word_embeddings": True}),
    "t5 untied": ("t5", {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "bart biased": ("bart", {**BART, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}),
}
LOSSES = [token_loss("cross_entropy", weight=0.5), token_loss("jsd", temperature=2.0)]


def build(name, seed=0):
    torch.manual_seed(seed)
    kind, settings = MODELS[name]
    config = AutoConfig.for_model(kind, **settings)
    model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
    if kind == "bart":
        model.final_logits_bias.normal_()
    return model.double().eval()


def batch(seed=0, rows=5):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 37, (rows, 7), generator=generator)
    labels = torch.randint(3, 37, (rows, 7), generator=generator)
    labels[torch.rand(rows, 7, generator=generator) < 0.4] = IGNORE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def plain(model, inputs, labels, teacher):
    """The same from the logits that the model itself gives, for all positions; teacher is given for the counted."""
    if model.config.is_encoder_decoder:
        previous = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, 0)
        inputs = {**inputs, "decoder_input_ids": torch.cat([torch.zeros_like(labels[:, :1]), previous], 1)}
    logits, counted = model(**inputs).logits, labels.flatten() != IGNORE
    everywhere = torch.zeros(labels.numel(), logits.shape[-1], dtype=torch.float64)
    everywhere[counted] = teacher
    return token_losses(LOSSES, logits.flatten(0, 1), TokenBatch(labels.flatten(), everywhere), chunk_rows=1000)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alike(one, other, near=1e-9, least=1e-30):
    """`near` is relative to a weight's largest gradient, or to `least` where that is mere rounding."""
    assert one.keys() == other.keys() and one
    for name, gradient in one.items():
        assert (gradient - other[name]).abs().max() <= near * other[name].abs().max().clamp(min=least), name


@pytest.mark.parametrize("name", MODELS)
def test_gives_what_the_models_own_logits_give(name):
    model, teacher = build(name), build(name, seed=1)
    inputs, labels = batch()
    student = Student(model)
    with torch.no_grad():
        side = Student(teacher).logits(inputs, labels)
        known = side.finished(side.product(slice(None)))
    assert len(known) == (labels != IGNORE).sum()
    found = student(inputs, LOSSES, TokenBatch(labels, known), chunk_rows=4)
    found.total.backward()
    got = gradients(model)
    model.zero_grad()
    expected = plain(model, inputs, labels, known)
    expected.total.backward()
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-9)
    alike(got, gradients(model))


def test_a_model_stays_usable_and_trainable():
    model = build("llama tied").train()
    inputs, labels = batch()
    before = model(**inputs).logits
    Student(model)(inputs, LOSSES[:1], TokenBatch(labels))
    assert model.training and torch.equal(model(**inputs).logits, before)


def test_logits_treated_in_another_way_are_refused():
    model = build("llama untied")
    forward = model.forward

    def odd(**inputs):
        out = forward(**inputs)
        out.logits = out.logits.sign() * out.logits.abs().sqrt()
        return out

    model.forward = odd
    with pytest.raises(ModelError, match="LlamaForCausalLM changes its logits in a way that is neither"):
        Student(model)


def test_logits_that_no_tokenizer_produces_are_as_if_they_were_not_there():
    """A padded vocabulary, even with padding that is likely, gives the losses and gradients of the unpadded model."""
    model = build("llama untied")
    inputs, labels = batch()
    inputs["input_ids"].clamp_(max=32)
    labels.clamp_(max=32)
    count = (labels != IGNORE).sum()
    teacher = torch.randn(count, 48, dtype=torch.float64)  # padded to another width than the student
    padded = Student(model, shared_vocab_size=33)(inputs, LOSSES, TokenBatch(labels, teacher))
    padded.total.backward()
    got = gradients(model)
    assert (got["lm_head.weight"][33:] == 0).all()
    cut = build("llama untied")
    cut.lm_head = torch.nn.Linear(16, 33, bias=False, dtype=torch.float64)
    cut.lm_head.weight.data = model.lm_head.weight.data[:33].clone()
    unpadded = Student(cut)(inputs, LOSSES, TokenBatch(labels, teacher[:, :33]))
    unpadded.total.backward()
    assert padded.total.item() == pytest.approx(unpadded.total.item(), rel=1e-12)
    want = gradients(cut)
    want["lm_head.weight"] = torch.cat([want["lm_head.weight"], torch.zeros(4, 16, dtype=torch.float64)])
    alike(got, want)


def lora(model, dropout=0.0):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    made = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "lm_head"], lora_dropout=dropout)).double()
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return made


def test_lora_on_the_output_layer():
    model = lora(build("llama untied"))
    inputs, labels = batch()
    teacher = torch.randn((labels != IGNORE).sum(), 37, dtype=torch.float64)
    found = Student(model)(inputs, LOSSES, TokenBatch(labels, teacher), chunk_rows=4)
    found.total.backward()
    got = gradients(model)
    assert any("lm_head.lora_B" in name for name in got) and not any("base_layer" in name for name in got)
    model.zero_grad()
    expected = plain(model, inputs, labels, teacher)
    expected.total.backward()
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-9)
    alike(got, gradients(model))
    with model.disable_adapter():
        assert len(Student(model).logits(inputs, labels).features) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_autocast_computes_as_a_layer_would(precision):
    model = build("llama tied").float()
    inputs, labels = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = Student(model)(inputs, LOSSES[:1], TokenBatch(labels), chunk_rows=4)
        found.total.backward()
        got = gradients(model)
        model.zero_grad()
        expected = token_losses(LOSSES[:1], model(**inputs).logits.flatten(0, 1), TokenBatch(labels.flatten()))
        expected.total.backward()
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    alike(got, gradients(model), 2e-2 if precision == torch.bfloat16 else 1e-5)


def worker(rank, port, name, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = lora(build("llama untied")) if name == "lora" else build(name)
    student = DistributedDataParallel(Student(model))
    inputs, labels = batch()
    mine = slice(0, 2) if rank == 0 else slice(2, 5)  # uneven on purpose
    inputs = {key: value[mine] for key, value in inputs.items()}
    count = (labels != IGNORE).sum()
    found = student(inputs, LOSSES[:1], TokenBatch(labels[mine], denominators={"cross_entropy": count}))
    (found.total * 2).backward()  # data parallel training averages
    if rank == 0:
        torch.save(gradients(model), out)
    torch.distributed.barrier()
    del student, found  # what outlives its process group waits for ever
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["llama tied", "llama untied", "t5 tied", "lora"])
def test_two_workers_have_the_gradients_of_one(name, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, name, str(tmp_path / "gradients.pt")), nprocs=2)
    model = lora(build("llama untied")) if name == "lora" else build(name)
    inputs, labels = batch()
    Student(model)(inputs, LOSSES[:1], TokenBatch(labels)).total.backward()
    alike(torch.load(tmp_path / "gradients.pt"), gradients(model))


# ------------------------------------------------------------------------------------------------ other tasks

ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER |= {"vocab_size": 37, "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEADS = {
    "classification": {"num_labels": 4, "problem_type": "single_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "extractive_qa": {},
}
READERS = {
    "bert": ENCODER,
    "llama": {**SMALL, "tie_word_embeddings": False},
    "t5": {**T5, "dropout_rate": 0.0},  # wants the end token in every row
}


def reader(task, kind="bert", seed=0):
    torch.manual_seed(seed)
    family = AutoModelForQuestionAnswering if task == "extractive_qa" else AutoModelForSequenceClassification
    model = family.from_config(AutoConfig.for_model(kind, **READERS[kind], **HEADS[task])).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def sizes(*lengths, width=None):
    """Rows of these lengths that end with token 2, padded to a width."""
    rows = [(torch.arange(n) * 7 + i) % 34 + 3 for i, n in enumerate(lengths)]
    ids, mask = torch.zeros(2, len(rows), width or max(lengths), dtype=torch.long)
    for at, row in enumerate(rows):
        row[-1] = 2
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


LABELS = {
    "classification": torch.tensor([[3], [0], [1]]),
    "regression": torch.tensor([[0.5], [-2.0], [1.5]], dtype=torch.float64),
    "extractive_qa": torch.tensor([[1, 3], [0, 0], [2, 4]]),
}
LOSS = {"classification": "cross_entropy", "regression": "mse", "extractive_qa": "cross_entropy"}


def own_loss(model, task, inputs, labels):
    """What transformers makes of a batch."""
    if task == "extractive_qa":
        return model(**inputs, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
    return model(**inputs, labels=labels.squeeze(1)).loss


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("task", HEADS)
def test_a_tasks_loss_and_gradient_are_those_of_transformers(task, kind):
    """Of a span, starts and ends are positions alike: the mean over 2 B of them is the mean of the two means."""
    model, inputs, labels = reader(task, kind), sizes(5, 5, 5), LABELS[task]
    found = Student(model, task=task)(inputs, [token_loss(LOSS[task])], TokenBatch(labels))
    found.total.backward()
    got = gradients(model)
    model.zero_grad()
    expected = own_loss(model, task, inputs, labels)
    expected.backward()
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-9)
    assert found.terms[LOSS[task]].denominator == labels.numel() == len(found.values[LOSS[task]])
    alike(got, gradients(model), least=1e-6)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("task", HEADS)
def test_padding_and_a_rows_neighbours_change_nothing(task, kind):
    model, labels = reader(task, kind), LABELS[task]
    student, losses = Student(model, task=task), [token_loss(LOSS[task])]
    padded = student(sizes(5, 3, 7, width=9), losses, TokenBatch(labels.clamp(max=2))).values[LOSS[task]]
    for row, length in enumerate((5, 3, 7)):
        inputs = {name: value[row : row + 1, :length] for name, value in sizes(5, 3, 7).items()}
        alone = student(inputs, losses, TokenBatch(labels[row : row + 1].clamp(max=2))).values[LOSS[task]]
        torch.testing.assert_close(padded.view(3, -1)[row], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", HEADS)
def test_rows_without_a_label_count_for_nothing(task):
    model, inputs, labels = reader(task), sizes(5, 3, 7), LABELS[task].clamp(max=2)
    student, loss = Student(model, task=task), LOSS[task]
    fewer = labels.clone()
    fewer[1] = IGNORE
    weights = torch.arange(1.0, 1 + labels.numel())
    whole = student(inputs, [token_loss(loss)], TokenBatch(labels)).values[loss]
    kept = torch.ones_like(labels, dtype=torch.bool).index_fill(0, torch.tensor([1]), False).flatten()
    batch = TokenBatch(fewer, weights_N=weights[kept], denominators={loss: 10})
    found = student(inputs, [token_loss(loss, weight=3.0)], batch)
    torch.testing.assert_close(found.values[loss], whole[kept])
    assert found.terms[loss].sum.item() == pytest.approx((whole * weights)[kept].sum().item())
    assert found.terms[loss].denominator == weights[kept].sum()
    assert found.total.item() == pytest.approx(3 * found.terms[loss].sum.item() / 10)
    nothing = student(inputs, [token_loss(loss)], TokenBatch(torch.full_like(labels, IGNORE)))
    nothing.total.backward()
    assert nothing.total == 0 and all((g == 0).all() for g in gradients(model).values()) and gradients(model)


def test_classes_are_taught_by_a_teachers_logits():
    model, inputs, labels = reader("classification"), sizes(5, 3, 7), LABELS["classification"]
    teacher = torch.randn(3, 4, dtype=torch.float64)
    student = Student(model, task="classification")
    found = student(inputs, [token_loss("forward_kl", temperature=2.0)], TokenBatch(labels, teacher))
    log_s, t = (model(**inputs).logits / 2).log_softmax(1), (teacher / 2).softmax(1)
    assert found.total.item() == pytest.approx(4 * (t * (t.log() - log_s)).sum(1).mean().item())


@pytest.mark.parametrize("kind", [name for name, section in SECTIONS.items() if issubclass(section, LogitsLoss)])
def test_every_loss_on_spans_is_as_if_there_were_no_padding(kind):
    model, teacher = reader("extractive_qa"), reader("extractive_qa", seed=1)
    inputs, labels = sizes(5, 3, 7, width=9), torch.tensor([[1, 3], [0, 2], [4, 6]])
    student, losses = Student(model, task="extractive_qa"), [token_loss(kind, temperature=2.0)]
    with torch.no_grad():
        side = Student(teacher, task="extractive_qa").logits(inputs, labels)
    assert side.values_NV.min() == LEAST
    easy = torch.tensor([True, False, True, True, False, False]).double()
    parts = {kind: torch.ones(6).double()} if kind != "atkd" else {"atkd_easy": easy, "atkd_hard": 1 - easy}
    found = student(inputs, losses, TokenBatch(labels, side, term_weights=parts))
    found.total.backward()
    got = gradients(model)
    model.zero_grad()
    total = 0
    for row, length in enumerate((5, 3, 7)):
        alone = {name: value[row : row + 1, :length] for name, value in sizes(5, 3, 7).items()}
        here = slice(2 * row, 2 * row + 2)
        counts = {name: term.denominator for name, term in found.terms.items()}
        batch = TokenBatch(
            labels=labels[row : row + 1],
            teacher=side.values_NV[here, :length],
            term_weights={name: part[here] for name, part in parts.items()},
            denominators=counts,
        )
        its = student(alone, losses, batch)
        its.total.backward()
        total += its.total.item()
        for name, values in its.values.items():
            torch.testing.assert_close(found.values[name][here], values, rtol=1e-9, atol=1e-12)
    assert found.total.isfinite() and found.total.item() == pytest.approx(total, rel=1e-9)
    alike(got, gradients(model), least=1e-6)


def test_a_spans_teacher_may_be_infinite_at_padding():
    model, inputs, labels = reader("extractive_qa"), sizes(5, 3, width=6), LABELS["extractive_qa"][:2].clamp(max=2)
    teacher = torch.randn(4, 6, dtype=torch.float64)
    there = inputs["attention_mask"].bool().repeat_interleave(2, 0)
    losses = [token_loss("forward_kl"), token_loss("reverse_kl"), token_loss("cross_entropy")]
    student = Student(model, task="extractive_qa")
    one = student(inputs, losses, TokenBatch(labels, teacher.masked_fill(~there, -torch.inf)))
    other = student(inputs, losses, TokenBatch(labels, teacher))
    assert one.total.isfinite() and one.total == other.total


def test_numbers_are_taught_by_a_teachers_predictions():
    model, inputs, labels = reader("regression"), sizes(5, 3, 7), LABELS["regression"]
    teacher, weights = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 0.0, 2.0])
    losses = [token_loss("mse", weight=0.5), token_loss("teacher_mse", weight=2.0)]
    found = Student(model, task="regression")(inputs, losses, TokenBatch(labels, teacher, weights))
    found.total.backward()
    got = gradients(model)
    model.zero_grad()
    predicted = model(**inputs).logits
    errors = [((predicted - side).square().squeeze(1) * weights).sum() for side in (labels, teacher)]
    expected = 0.5 * errors[0] / 3 + 2 * errors[1] / 3
    expected.backward()
    assert found.total.item() == pytest.approx(expected.item())
    assert [term.sum.item() for term in found.terms.values()] == pytest.approx([e.item() for e in errors])
    assert found.values["mse"][1] == 0
    alike(got, gradients(model), least=1e-6)


@pytest.mark.parametrize(
    ("losses", "more", "words"),
    [
        ([token_loss("forward_kl")], {}, "losses of a regression are mse and teacher_mse, not forward_kl"),
        ([token_loss("mse"), token_loss("mse")], {}, "not mse, mse"),
        ([make_loss(divergences.mse, temperature=2.0)], {}, "no temperature"),
        ([token_loss("teacher_mse")], {}, "teacher_mse needs the teacher's side"),
        ([token_loss("teacher_mse")], {"teacher": torch.zeros(2, 1)}, "3 predictions against 2 numbers"),
    ],
)
def test_what_a_regression_cannot_learn_is_refused(losses, more, words):
    with pytest.raises(ValueError, match=words):
        batch = TokenBatch(LABELS["regression"], **more)
        Student(reader("regression"), task="regression")(sizes(5, 3, 7), losses, batch)


def test_sides_of_different_sizes_are_refused():
    inputs, labels = batch()
    with pytest.raises(ValueError, match=r"the teacher's side has 35 positions, the labels have \d\d$"):
        Student(build("llama tied"))(inputs, LOSSES, TokenBatch(labels, torch.zeros(35, 37)))
    with pytest.raises(ValueError, match="counts tokens to be produced, and the task is extractive_qa"):
        Student(reader("extractive_qa"), shared_vocab_size=3, task="extractive_qa")
