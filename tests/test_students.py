"""Students: a chunked output layer gives what the whole model gives, for every way a model treats its logits."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from raykd.errors import ModelError
from raykd.losses.tokens import IGNORE, TokenLoss, token_losses
from raykd.students import Student

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
LOSSES = [TokenLoss("cross_entropy", weight=0.5), TokenLoss("jsd", temperature=2.0)]


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
    """The same from the logits that the model itself gives."""
    if model.config.is_encoder_decoder:
        previous = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE, 0)
        inputs = {**inputs, "decoder_input_ids": torch.cat([torch.zeros_like(labels[:, :1]), previous], 1)}
    logits = model(**inputs).logits
    return token_losses(LOSSES, logits.flatten(0, 1), labels.flatten(), teacher, chunk_rows=1000)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alike(one, other, near=1e-9):
    assert one.keys() == other.keys() and one
    for name, gradient in one.items():
        assert (gradient - other[name]).abs().max() <= near * other[name].abs().max().clamp(min=1e-30), name


@pytest.mark.parametrize("name", MODELS)
def test_gives_what_the_models_own_logits_give(name):
    model, teacher = build(name), build(name, seed=1)
    inputs, labels = batch()
    student = Student(model)
    with torch.no_grad():
        known = Student(teacher).logits(inputs, labels)
    found = student(inputs, labels, LOSSES, teacher=known, chunk_rows=4)
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
    Student(model)(inputs, labels, LOSSES[:1])
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


def test_columns_that_no_tokenizer_produces_are_as_if_they_were_not_there():
    """A padded vocabulary, even with padding that is likely, gives the losses and gradients of the unpadded model."""
    model = build("llama untied")
    inputs, labels = batch()
    inputs["input_ids"].clamp_(max=32)
    labels.clamp_(max=32)
    teacher = torch.randn(35, 48, dtype=torch.float64)  # padded to another width than the student
    padded = Student(model, columns=33)(inputs, labels, LOSSES, teacher=teacher)
    padded.total.backward()
    got = gradients(model)
    assert (got["lm_head.weight"][33:] == 0).all()
    cut = build("llama untied")
    cut.lm_head = torch.nn.Linear(16, 33, bias=False, dtype=torch.float64)
    cut.lm_head.weight.data = model.lm_head.weight.data[:33].clone()
    unpadded = Student(cut)(inputs, labels, LOSSES, teacher=teacher[:, :33])
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
    model, teacher = lora(build("llama untied")), torch.randn(35, 37, dtype=torch.float64)
    inputs, labels = batch()
    found = Student(model)(inputs, labels, LOSSES, teacher=teacher, chunk_rows=4)
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
        found = Student(model)(inputs, labels, LOSSES[:1], chunk_rows=4)
        found.total.backward()
        got = gradients(model)
        model.zero_grad()
        expected = token_losses(LOSSES[:1], model(**inputs).logits.flatten(0, 1), labels.flatten())
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
    found = student(inputs, labels[mine], LOSSES[:1], denominators={"cross_entropy": count})
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
    Student(model)(*batch(), LOSSES[:1]).total.backward()
    alike(torch.load(tmp_path / "gradients.pt"), gradients(model))
