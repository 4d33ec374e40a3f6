"""Tokenizers that mean the same, and those that only look alike; models with the head of their task."""

import pytest
import torch
from transformers import AutoModelForMaskedLM

from raykd.errors import ModelError
from raykd.models.load import load_model
from raykd.models.tokenizers import build_tokenizer, load_tokenizer, shared_vocab_size
from raykd.recipe.models import Checkpoint, FromConfig, PretrainedTokenizer, Pruned, WordsTokenizer

BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
LLAMA = {**BERT, "num_key_value_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


def words(folder, *texts, extra=()):
    build_tokenizer(WordsTokenizer(kind="words", extra=list(extra)), list(texts), folder)
    return load_tokenizer(folder)


def test_tokens_that_only_one_of_two_like_tokenizers_has_are_cut(tmp_path):
    student, teacher = words(tmp_path / "a", "a b c d"), words(tmp_path / "b", "a b c d")
    assert shared_vocab_size(student, teacher) == len(student)
    teacher.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert shared_vocab_size(student, teacher) == len(student) == len(teacher) - 1


def test_tokenizers_of_one_width_that_encode_differently_are_refused(tmp_path):
    student, teacher = words(tmp_path / "a", "a b c d"), words(tmp_path / "b", "a b c e")
    assert len(student) == len(teacher)
    with pytest.raises(ModelError, match=r"the tokenizers differ, .*'d' is \[\d+\] to the student's and \[2\] to the"):
        shared_vocab_size(student, teacher)


def from_config(kind):
    settings = {"bert": BERT, "llama": LLAMA, "t5": T5, "gemma2": {**LLAMA, "head_dim": 8}}[kind]
    return FromConfig(kind="config", model_type=kind, settings=settings)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_model_has_the_head_of_its_task(kind, shared_tokenizer):
    tokenizer = load_tokenizer(shared_tokenizer)
    ids = torch.tensor([[5, 6, 7, tokenizer.eos_token_id]] * 2)
    for task, labels, width in (("classification", ["no", "yes", "?"], 3), ("regression", None, 1)):
        model = load_model(from_config(kind), tokenizer, task, labels)
        assert model(input_ids=ids).logits.shape == (2, width)
        assert model.config.pad_token_id == tokenizer.pad_token_id
        kinds = {"classification": "single_label_classification", "regression": "regression"}
        assert model.config.problem_type == kinds[task]
    span = load_model(from_config(kind), tokenizer, "extractive_qa")(input_ids=ids)
    assert span.start_logits.shape == span.end_logits.shape == (2, 4)


def test_a_pretrained_encoder_gets_a_head_and_keeps_its_body_cut_or_whole(shared_tokenizer, tmp_path):
    tokenizer = load_tokenizer(shared_tokenizer)
    config = load_model(from_config("bert"), tokenizer, "regression").config
    body = AutoModelForMaskedLM.from_config(config)
    body.save_pretrained(tmp_path)
    for spec, last in (
        (Checkpoint(kind="checkpoint", path=str(tmp_path)), 2),
        (Pruned(kind="pruned", path=str(tmp_path), layers=[0, 2]), 1),
    ):
        made = load_model(spec, tokenizer, "classification", ["no", "yes"])
        assert made.config.label2id == {"no": 0, "yes": 1} and made.classifier.weight.shape == (2, 16)
        kept, whole = made.bert.encoder.layer[last], body.bert.encoder.layer[2]
        assert torch.equal(kept.output.dense.weight, whole.output.dense.weight)


def test_a_trained_classifier_keeps_the_order_of_its_classes(shared_tokenizer, tmp_path):
    tokenizer = load_tokenizer(shared_tokenizer)
    load_model(from_config("bert"), tokenizer, "classification", ["no", "yes"]).save_pretrained(tmp_path)
    spec = Checkpoint(kind="checkpoint", path=str(tmp_path))
    assert load_model(spec, tokenizer, "classification", ["no", "yes"]).config.id2label == {0: "no", 1: "yes"}
    for task, labels in (
        ("classification", ["yes", "no"]),
        ("classification", ["no", "yes", "?"]),
        ("regression", None),
    ):
        with pytest.raises(ModelError, match=r"has been trained for the classes \['no', 'yes'\], in this order, not"):
            load_model(spec, tokenizer, task, labels)


def test_a_task_that_an_architecture_has_no_head_for(shared_tokenizer):
    with pytest.raises(ModelError, match="transformers has no gemma2 model for the task extractive_qa"):
        load_model(from_config("gemma2"), load_tokenizer(shared_tokenizer), "extractive_qa")


def test_a_model_that_does_not_write_needs_no_end_of_sequence(tmp_path):
    tokenizer = words(tmp_path / "words", "a b")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    spec = PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "endless"))
    build_tokenizer(spec, [], tmp_path / "copy", generates=False)
    assert load_tokenizer(tmp_path / "copy", generates=False).eos_token_id is None
    with pytest.raises(ModelError, match=r"endless: the tokenizer has no end-of-sequence token"):
        build_tokenizer(spec, [], tmp_path / "copy")
