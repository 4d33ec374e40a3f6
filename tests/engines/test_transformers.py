"""The transformers engine, held to decoding and scoring by hand: one prompt, no padding, no cache."""

import numpy as np
import pytest
import torch
from conftest import LLAMA, T5, word
from transformers import GenerationConfig

from raykd.engines.budget import Budget
from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.engines.transformers import TransformersEngine
from raykd.errors import EngineError, ModelError
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.recipe.generation import HiddenPayload, SampledPayload, Sampling, TextPayload, TopKPayload
from raykd.recipe.generation import TransformersEngine as Spec
from raykd.recipe.models import Checkpoint, FromConfig

PROMPTS = [f"{word(i)} =>" for i in range(40)]
KINDS = ["t5", "llama", "gemma2"]
WIDE = {  # random weights so large that answers differ; a cap far below Gemma's 30, so that it bends their logits
    "t5": {**T5, "initializer_factor": 3.0},
    "llama": {**LLAMA, "initializer_range": 0.2},
    "gemma2": {
        **LLAMA,
        "tie_word_embeddings": False,
        "initializer_range": 0.05,
        "head_dim": 64,
        "final_logit_softcapping": 0.5,
    },
}


@pytest.fixture(scope="module")
def folders(shared_tokenizer, tmp_path_factory):
    """Folders of tiny models."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    tokenizer = load_tokenizer(shared_tokenizer)
    for kind, folder in found.items():
        torch.manual_seed(0)
        spec = FromConfig(kind="config", model_type=kind, settings=WIDE[kind])
        load_model(spec, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return found


@pytest.fixture
def opened():
    """Opens engines, and closes them after the test."""
    engines = []

    def open_one(folder, payload=None, batch_tokens=200, seed=0, **sampling) -> TransformersEngine:
        sampling = Sampling(**{"max_tokens": 8, **sampling})
        spec, payload = Spec(kind="transformers", batch_tokens=batch_tokens), payload or TextPayload(kind="text")
        config = EngineConfig(engine=spec, model=str(folder), sampling=sampling, seed=seed, threads=1, payload=payload)
        engines.append(open_engine(config))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def plain(folder):
    """The model and tokenizer as transformers loads them."""
    tokenizer = load_tokenizer(folder)
    return load_model(Checkpoint(kind="checkpoint", path=str(folder)), tokenizer).eval(), tokenizer


@torch.no_grad()
def logits_by_hand(folder, prompt, answer):
    """The model's own logits (T, V) of an answer's positions: one forward pass of one row."""
    model, tokenizer = plain(folder)
    encoder = model.config.is_encoder_decoder
    source = encode_inputs(tokenizer, [prompt], encoder)[0]
    answer = list(answer)
    if encoder:
        decoder = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        return model(input_ids=torch.tensor([source]), decoder_input_ids=decoder).logits[0]
    return model(input_ids=torch.tensor([source + answer[:-1]])).logits[0, len(source) - 1 :]


def by_hand(folder, prompt, tokens=8, end=1):
    """Greedy decoding one token at a time."""
    made: list[int] = []
    while len(made) < tokens and end not in made:
        made.append(int(logits_by_hand(folder, prompt, [*made, end])[-1].argmax()))
    return made


def flat(results):
    return [(a.text, a.token_ids.tolist(), a.finish_reason) for answers in results for a in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_gives_what_one_prompt_alone_gives(folders, opened, kind):
    engine = opened(folders[kind])
    answers = engine.generate(PROMPTS)
    assert [len(a) for a in answers] == [1] * 40
    assert len({tuple(a.token_ids) for (a,) in answers}) > 5
    for prompt, (answer,) in list(zip(PROMPTS, answers, strict=True))[:6]:
        assert answer.token_ids.tolist() == by_hand(folders[kind], prompt)
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 1 else "length")
        assert answer.token_ids.dtype == np.int32 and answer.logprobs.dtype == np.float32
    assert engine.output_tokens == sum(len(a.token_ids) for (a,) in answers)
    assert engine.prompt_tokens == sum(len(row) for row in engine._encode(PROMPTS))


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_batch_does_not_change_greedy_answers(folders, opened, kind):
    one, many, found = (opened(folders[kind], batch_tokens=size).generate(PROMPTS) for size in (1, 10_000, None))
    assert flat(one) == flat(many) == flat(found)
    for (a,), (b,) in zip(one, many, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_beams_are_those_of_transformers(folders, opened, kind):
    engine = opened(folders[kind], n=3, options={"num_beams": 4, "length_penalty": 0.6})
    answers = engine.generate(PROMPTS[:6], range(3))
    model, tokenizer = plain(folders[kind])
    for prompt, beams in zip(PROMPTS, answers, strict=False):
        source = torch.tensor([encode_inputs(tokenizer, [prompt], kind == "t5")[0]])
        made = model.generate(
            source, max_new_tokens=8, num_beams=4, num_return_sequences=3, length_penalty=0.6, do_sample=False
        )
        expected = made[:, 1 if kind == "t5" else source.shape[1] :].tolist()
        assert [a.token_ids.tolist() for a in beams] == [engine._cut(ids) for ids in expected]
    assert flat(engine.generate(PROMPTS[:6], range(1, 3))) == flat([beams[1:] for beams in answers])


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_and_top_k_are_those_of_the_models_logits(folders, opened, kind):
    engine = opened(folders[kind], TopKPayload(kind="top_k", k=5), n=2, temperature=0.7, top_k=6)
    for prompt, answers in zip(PROMPTS[:6], engine.generate(PROMPTS[:6], range(2)), strict=True):
        for answer in answers:
            expected = logits_by_hand(folders[kind], prompt, answer.token_ids).log_softmax(-1)
            chosen = expected.gather(1, torch.from_numpy(answer.token_ids).long()[:, None])[:, 0]
            np.testing.assert_allclose(answer.logprobs, chosen, atol=1e-4)
            values, ids = expected.topk(5)
            np.testing.assert_allclose(answer.payload["top_logprobs"], values, atol=1e-4)
            assert answer.payload["top_ids"].tolist() == ids.tolist()
            assert answer.payload["top_ids"].dtype == np.int32 and set(answer.payload) == {"top_ids", "top_logprobs"}


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_times_the_head_is_the_models_logits(folders, opened, kind):
    engine = opened(folders[kind], HiddenPayload(kind="hidden"))
    head = plain(folders[kind])[0].get_output_embeddings().weight.detach().numpy()
    for prompt, (answer,) in zip(PROMPTS[:6], engine.generate(PROMPTS[:6]), strict=True):
        hidden = answer.payload["hidden"]
        assert hidden.dtype == np.float16 and len(hidden) == len(answer.token_ids)
        logits = hidden.astype(np.float32) @ head.T
        if kind == "gemma2":
            assert np.abs(logits).max() > 0.5  # the cap matters
            logits = np.tanh(logits / 0.5) * 0.5
        np.testing.assert_allclose(logits, logits_by_hand(folders[kind], prompt, answer.token_ids), atol=1e-2)


def test_sampled_counts_follow_the_distribution(folders, opened):
    engine = opened(folders["t5"], SampledPayload(kind="sampled", draws=50), batch_tokens=10_000)
    target = "A B C D E F G"
    answers = engine.score(PROMPTS[:1] * 400, [target] * 400)
    chances = logits_by_hand(folders["t5"], PROMPTS[0], answers[0].token_ids).softmax(-1).numpy()
    total = np.zeros_like(chances)
    for answer in answers:
        ids, counts, lengths = (answer.payload[f"sampled_{name}"] for name in ("ids", "counts", "lengths"))
        assert (ids.dtype, counts.dtype, lengths.dtype) == (np.int32, np.uint8, np.int32)
        assert lengths.sum() == len(ids) == len(counts) and len(lengths) == 8
        position = np.repeat(np.arange(8), lengths)
        assert np.bincount(position, counts).tolist() == [50] * 8
        assert (np.diff(position * len(chances[0]) + ids) > 0).all()
        np.add.at(total, (position, ids), counts)
    share, error = total / (50 * 400), np.sqrt(chances * (1 - chances) / (50 * 400))
    assert (np.abs(share - chances) < 5 * error + 1e-4).all()
    flatness = np.abs(chances - 1 / chances.shape[1]).max()
    assert flatness > 10 * error.max()  # a uniform draw would not pass


def test_sampled_draws_come_from_the_configs_seed(folders, opened):
    payload = SampledPayload(kind="sampled")
    first, same, other = (
        opened(folders["llama"], payload, seed=seed).score(PROMPTS[:3], ["A B"] * 3)[0].payload["sampled_ids"].tolist()
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_a_written_answer_gives_what_writing_gave(folders, opened, kind):
    engine = opened(folders[kind], TopKPayload(kind="top_k", k=3))
    targets = [f"{word(i)} A B" for i in range(40)]
    scored = engine.score(PROMPTS, targets)
    for prompt, target, answer in list(zip(PROMPTS, targets, scored, strict=True))[:6]:
        assert answer.token_ids.tolist() == encode_targets(engine.tokenizer, [target])[0]
        expected = logits_by_hand(folders[kind], prompt, answer.token_ids).log_softmax(-1)
        chosen = expected.gather(1, torch.from_numpy(answer.token_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(answer.logprobs, chosen, atol=1e-4)
        assert (answer.text, answer.finish_reason) == (target, "stop")
    written = [answer for (answer,) in engine.generate(PROMPTS)]
    again = engine.payloads(engine._encode(PROMPTS), [a.token_ids.tolist() for a in written])
    for a, b in zip(written, again, strict=True):
        np.testing.assert_allclose(a.payload["top_logprobs"], b["top_logprobs"], atol=1e-4)


def test_the_text_of_a_greedy_answer_scores_as_it_was_written(folders, opened):
    engine = opened(folders["t5"], options={"forced_eos_token_id": 1, "suppress_tokens": [0, 2]})
    answers = [answer for (answer,) in engine.generate(PROMPTS)]
    for answer, scored in zip(answers, engine.score(PROMPTS, [a.text for a in answers]), strict=True):
        assert scored.token_ids.tolist() == answer.token_ids.tolist()
        np.testing.assert_allclose(scored.logprobs, answer.logprobs, atol=1e-4)


def test_samples_differ_and_further_ones_do_not_repeat_the_first(folders, opened):
    engine = opened(folders["t5"], n=5, temperature=1.0)
    first, again, further = (engine.generate(PROMPTS[:3], r) for r in (range(5), range(5), range(5, 10)))
    for answers in first:
        assert len(answers) == 5 and len({a.text for a in answers}) > 1
    assert flat(first) == flat(again)
    assert flat(first) != flat(further) and [len(answers) for answers in further] == [5] * 3


def test_top_k_0_is_all_and_top_k_is_kept(folders, opened):
    chances = logits_by_hand(folders["llama"], PROMPTS[0], [1]).softmax(-1)[0]
    for top_k in (0, 2):
        engine = opened(folders["llama"], temperature=3.0, top_k=top_k, max_tokens=1, n=300, batch_tokens=100_000)
        drawn = {int(a.token_ids[0]) for a in engine.generate(PROMPTS[:1], range(300))[0]}
        if top_k:
            assert drawn <= set(chances.topk(2).indices.tolist())
        else:
            assert len(drawn) > 10
        resolved = engine.model._prepare_generation_config(GenerationConfig(**engine.options))[0]
        assert resolved.top_k == top_k  # and not transformers' default of 50


@pytest.mark.parametrize("sharp", [{"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}])
def test_temperature_and_top_p_are_kept(folders, opened, sharp):
    greedy = flat(opened(folders["t5"]).generate(PROMPTS[:8]))
    assert flat(opened(folders["t5"], **sharp).generate(PROMPTS[:8])) == greedy
    assert flat(opened(folders["t5"], temperature=1.0).generate(PROMPTS[:8])) != greedy


def test_the_models_own_defaults_do_not_decode(folders, opened, tmp_path):
    model, tokenizer = plain(folders["t5"])
    model.generation_config.update(num_beams=3, repetition_penalty=1.9, no_repeat_ngram_size=1, max_length=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert flat(opened(tmp_path).generate(PROMPTS)) == flat(opened(folders["t5"]).generate(PROMPTS))


def test_what_does_not_fit_is_rejected_and_the_rest_written(folders, opened):
    engine = opened(folders["llama"])
    long, empty, good = engine.generate(["a " * 60, "", "a b =>"])
    assert long == Rejected("prompt of 60 tokens + max_tokens 8 > the model's context of 64")
    assert empty == Rejected("the prompt has no tokens") and len(good) == 1
    long, empty, good = engine.score(["a " * 30, "", "a b =>"], ["A " * 40, "A", "A"])
    assert long == Rejected("prompt of 30 tokens + target tokens 41 > the model's context of 64")
    assert empty == Rejected("the prompt has no tokens") and good.text == "A"
    assert opened(folders["t5"]).score([""], ["A"]) == [Rejected("the prompt has no tokens")]
    assert engine.generate([]) == engine.score([], []) == engine.payloads([], []) == []


@pytest.mark.parametrize(
    "sampling, message",
    [
        ({"options": {"num_beans": 2}}, "num_beans: transformers has no such option; did you mean num_beams"),
        ({"options": {"max_length": 2}}, "max_length: not here; set max_tokens beside options"),
        ({"options": {"num_beams": 2}, "n": 3, "temperature": 1.0}, "2 beams give at most 2 samples, not 3"),
        ({"options": {"early_stopping": "perhaps"}}, "early_stopping"),
        ({"temperature": 1.0, "seeded": True}, "cannot seed each sample"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(folders, opened, sampling, message):
    with pytest.raises(EngineError, match=message) as caught:
        opened(folders["t5"], **sampling)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_one_line(opened, tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        opened(tmp_path / "none")


def test_a_head_it_does_not_know_is_refused(folders, opened, monkeypatch):
    monkeypatch.setattr(TransformersEngine, "_logits", lambda self, hidden, weight: hidden @ weight.T)
    opened(folders["llama"])
    with pytest.raises(EngineError, match="model_type gemma2: its logits are not those of its head"):
        opened(folders["gemma2"])


@pytest.mark.parametrize("batch_tokens", [None, 5000])
def test_a_batch_that_does_not_fit_into_memory_is_halved_for_good(folders, opened, monkeypatch, batch_tokens):
    engine = opened(folders["llama"], batch_tokens=batch_tokens)
    expected, sizes, write = flat(engine.generate(PROMPTS)), [], engine._write

    def narrow(rows, samples):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return write(rows, samples)

    monkeypatch.setattr(engine, "_write", narrow)
    assert flat(engine.generate(PROMPTS)) == expected
    failed = [i for i, size in enumerate(sizes) if size > 3]
    assert failed == list(range(len(failed))) and failed  # once it fits, it is never tried again
    assert not engine.writing.growing


def test_one_row_that_does_not_fit_into_memory_is_an_error(folders, opened, monkeypatch):
    engine = opened(folders["llama"])

    def never(rows, samples):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "_write", never)
    with pytest.raises(EngineError, match="one row of .* tokens does not fit into the GPU's memory"):
        engine.generate(PROMPTS)


def test_the_budget_doubles_while_batches_get_faster():
    budget = Budget(4096, growing=True)
    for _ in range(20):
        budget.learn(100, seconds=1e-9)  # no whole batch: says nothing
        size = budget.tokens
        budget.learn(size, seconds=1 + size / 16_384)  # a fixed cost, which larger batches spread
    assert (budget.tokens, budget.growing) == (131_072, False)
    fixed = Budget(4096, growing=False)
    fixed.learn(4096, seconds=1e-9)
    assert fixed.tokens == 4096


def test_two_calls_at_the_same_time_give_what_one_after_the_other_gives(folders, opened):
    from concurrent.futures import ThreadPoolExecutor

    engine = opened(folders["llama"])
    alone = [flat(engine.generate(part)) for part in (PROMPTS[:20], PROMPTS[20:])]
    with ThreadPoolExecutor(2) as pool:
        assert [flat(found) for found in pool.map(engine.generate, (PROMPTS[:20], PROMPTS[20:]))] == alone


def test_special_tokens_are_left_to_a_chat_template(folders, tmp_path):
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = plain(folders["llama"])
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = []
    for special_tokens in (True, False):
        spec, sampling = Spec(kind="transformers", batch_tokens=500), Sampling(max_tokens=8)
        config = EngineConfig(
            engine=spec, model=str(tmp_path), sampling=sampling, seed=0, threads=1, special_tokens=special_tokens
        )
        engine = open_engine(config)
        rows += engine._encode(["a b"])
        engine.close()
    assert rows[0] == [2, *rows[1]] and len(rows[1]) == 2


def test_bfloat16_keeps_its_numbers_close(folders):
    spec, sampling = Spec(kind="transformers", dtype="bfloat16", batch_tokens=500), Sampling(max_tokens=8)
    config = EngineConfig(engine=spec, model=str(folders["t5"]), sampling=sampling, seed=0, threads=1)
    engine = open_engine(config)
    (answer,) = engine.score(PROMPTS[:1], ["A B"])
    expected = logits_by_hand(folders["t5"], PROMPTS[0], answer.token_ids).log_softmax(-1)
    chosen = expected.gather(1, torch.from_numpy(answer.token_ids).long()[:, None])[:, 0]
    np.testing.assert_allclose(answer.logprobs, chosen, rtol=0.05)
    assert engine.model.dtype == torch.bfloat16
    engine.close()
