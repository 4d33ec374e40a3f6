"""Cut models: they compute what the larger model computes with these layers alone, and stay Hugging Face models."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from raykd.errors import ModelError
from raykd.models.files import check_model, is_encoder_decoder, parameter_count
from raykd.models.load import load_model
from raykd.models.tokenizers import load_tokenizer
from raykd.recipe.models import Checkpoint, FromConfig, Pruned
from raykd.report.sections import model_text

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
SIDES = {"d_model": 16, "encoder_layers": 3, "decoder_layers": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
SIDES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 4, "num_heads": 2}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "llama": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen3": {**SMALL, **HEADS, "tie_word_embeddings": True},
    "gemma2": {**SMALL, **HEADS, "sliding_window": 2},  # every other layer sees two tokens
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
    "bert": SMALL,
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2},
    "t5": T5,
    "bart": SIDES,
}
ENCODERS, TWO_SIDED = ("bert", "distilbert"), ("t5", "bart")
GENERATING = [kind for kind in MODELS if kind not in ENCODERS]
KEPT = [[0, 1, 2], [0, 2], [1], [1, 2]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shared_tokenizer):
    """A folder of each kind of model, with random weights larger than the usual, so that every layer counts."""
    tokenizer = load_tokenizer(shared_tokenizer)
    found = {}
    for kind, settings in MODELS.items():
        torch.manual_seed(0)
        spec = FromConfig(kind="config", model_type=kind, settings=settings)
        model = load(kind, spec, tokenizer)
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or "bias" in name:
                torch.nn.init.normal_(weight, std=0.3)
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind])
        tokenizer.save_pretrained(found[kind])
    return found


def load(kind, spec, tokenizer):
    head = ("classification", ["a", "b", "c"]) if kind in ENCODERS else ()
    return load_model(spec, tokenizer, *head)


def cut_of(folders, kind, kept, decoder=None):
    sides = {"encoder_layers": kept, "decoder_layers": decoder or kept} if kind in TWO_SIDED else {"layers": kept}
    return Pruned(kind="pruned", path=str(folders[kind]), **sides)


def loaded(folders, kind, spec=None):
    tokenizer = load_tokenizer(folders[kind])
    return load(kind, spec or Checkpoint(kind="checkpoint", path=str(folders[kind])), tokenizer).eval()


def batch(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 19, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    inputs = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    return {**inputs, "decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else inputs


def without(model, dropped):
    """The model itself, with the layers of these names letting their input through."""
    for name, module in model.named_modules():
        if re.sub(r"^(model|transformer|bert|distilbert)\.", "", name) in dropped:

            def through(_, given, named, out):
                hidden = given[0] if given else named["hidden_states"]
                return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

            module.register_forward_hook(through, with_kwargs=True)
            dropped.remove(re.sub(r"^(model|transformer|bert|distilbert)\.", "", name))
    assert not dropped
    return model


LISTS = {"gpt2": "h", "opt": "decoder.layers", "bert": "encoder.layer", "distilbert": "transformer.layer"}


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_gives_what_the_larger_model_gives_with_these_layers(folders, kind, kept):
    decoder = [*kept, 3] if kept == [0, 1, 2] else kept
    made = loaded(folders, kind, cut_of(folders, kind, kept, decoder))
    if kind in TWO_SIDED:
        at = {"t5": "block", "bart": "layers"}[kind]
        dropped = [f"encoder.{at}.{i}" for i in range(3) if i not in kept]
        dropped += [f"decoder.{at}.{i}" for i in range(4) if i not in decoder]
    else:
        dropped = [f"{LISTS.get(kind, 'layers')}.{i}" for i in range(3) if i not in kept]
    large = loaded(folders, kind)
    inputs = batch(large)
    with torch.no_grad():
        whole, got = large(**inputs).logits, made(**inputs).logits
        expected = without(large, dropped)(**inputs, use_cache=False).logits if dropped else whole
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if len(kept) < 3:
        assert (got - whole).abs().max() > 1e-2  # so the test can fail


@pytest.mark.parametrize("kind", MODELS)
def test_is_saved_loaded_and_known_by_its_configuration(folders, kind, tmp_path):
    spec = cut_of(folders, kind, [0, 2], [1, 3])
    made = loaded(folders, kind, spec)
    made.save_pretrained(tmp_path)
    family = AutoModelForSeq2SeqLM if kind in TWO_SIDED else AutoModelForCausalLM
    again = (AutoModelForSequenceClassification if kind in ENCODERS else family).from_pretrained(tmp_path).eval()
    inputs = batch(made)
    assert torch.equal(again(**inputs).logits, made(**inputs).logits)
    assert parameter_count(spec) == parameter_count(Checkpoint(kind="checkpoint", path=str(tmp_path)))
    assert parameter_count(spec) < parameter_count(Checkpoint(kind="checkpoint", path=str(folders[kind])))
    assert is_encoder_decoder(spec) == (kind in TWO_SIDED)
    numbers = [m.layer_idx for m in made.modules() if getattr(m, "layer_idx", None) is not None]
    assert set(numbers) <= {0, 1}


@pytest.mark.parametrize("kind", GENERATING)
def test_writes_the_same_with_a_cache_and_without(folders, kind):
    made = loaded(folders, kind, cut_of(folders, kind, [0, 2], [1, 3]))
    made.generation_config.eos_token_id = None
    inputs = {name: value[1:] for name, value in batch(made).items() if name != "decoder_input_ids"}
    texts = [made.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*texts) and texts[0].shape[1] >= 9


def test_each_layer_keeps_its_own_kind(folders):
    assert loaded(folders, "gemma2").config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    made = loaded(folders, "gemma2", cut_of(folders, "gemma2", [1, 2]))
    assert made.config.layer_types == ["full_attention", "sliding_attention"]


def test_the_generation_settings_of_the_larger_model_stay(folders, tmp_path):
    model = loaded(folders, "llama")
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(tmp_path)
    spec = Pruned(kind="pruned", path=str(tmp_path), layers=[1])
    assert load_model(spec, load_tokenizer(folders["llama"])).generation_config.repetition_penalty == 1.25


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("llama", {"layers": [0, 3]}, r"layers: .* has 3 layers, 0 to 2; there is no layer 3"),
        ("t5", {"decoder_layers": [4]}, r"decoder_layers: .* has 4 layers, 0 to 3; there is no layer 4"),
        ("t5", {"layers": [0]}, "is an encoder-decoder model: give encoder_layers, decoder_layers or both instead"),
        ("bert", {"decoder_layers": [0]}, "is no encoder-decoder model: give layers instead"),
    ],
)
def test_layers_that_are_not_there_are_refused(folders, kind, fields, words):
    spec = Pruned(kind="pruned", path=str(folders[kind]), **fields)
    for fails in (check_model, parameter_count, lambda spec: loaded(folders, kind, spec)):
        with pytest.raises(ModelError, match=words) as error:
            fails(spec)
        assert "\n" not in str(error.value)


def test_one_side_may_stay_whole(folders):
    made = loaded(folders, "bart", Pruned(kind="pruned", path=str(folders["bart"]), decoder_layers=[0]))
    assert (made.config.encoder_layers, made.config.decoder_layers) == (3, 1)


def test_models_that_share_their_layers_cannot_be_pruned(folders, tmp_path):
    tokenizer = load_tokenizer(folders["bert"])
    settings = {**SMALL, "embedding_size": 8}
    load_model(
        FromConfig(kind="config", model_type="albert", settings=settings), tokenizer, "regression"
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not hold its 3 layers in one list, so none can be pruned"):
        load_model(Pruned(kind="pruned", path=str(tmp_path), layers=[0]), tokenizer, "regression")


def test_attention_that_knows_its_layers_number_is_not_renumbered(folders, tmp_path):
    tokenizer = load_tokenizer(folders["gpt2"])
    settings = {**MODELS["gpt2"], "scale_attn_by_inverse_layer_idx": True}
    load_model(FromConfig(kind="config", model_type="gpt2", settings=settings), tokenizer).save_pretrained(tmp_path)
    load_model(Pruned(kind="pruned", path=str(tmp_path), layers=[0, 1]), tokenizer)
    with pytest.raises(ModelError, match="divides attention by a layer's number"):
        load_model(Pruned(kind="pruned", path=str(tmp_path), layers=[0, 2]), tokenizer)


def test_the_report_names_what_was_kept():
    assert model_text(Pruned(kind="pruned", path="big", layers=[0, 2])) == "layers 0, 2 of big"
    both = Pruned(kind="pruned", path="big", encoder_layers=[0], decoder_layers=[1, 2])
    assert model_text(both) == "encoder layers 0 and decoder layers 1, 2 of big"
