"""The real vLLM engine against the transformers engine, and how it dies. Tests share it: it takes seconds to start."""

import importlib.util
import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import word

from raykd import reaper
from raykd.engines import vllm as engines
from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.engines.vllm import MARK
from raykd.errors import EngineDead, EngineError
from raykd.recipe.generation import SampledPayload, Sampling, TextPayload, TopKPayload, TransformersEngine, VllmEngine

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build on this platform"),
    pytest.mark.timeout(300),
]
PROMPTS = [f"{word(i)} =>" for i in range(40)]
VLLM = VllmEngine(kind="vllm", arguments={"enforce_eager": True, "dtype": "float32", "max_num_seqs": 32})


@pytest.fixture(scope="module")
def config(tiny_models):
    before = dict(os.environ)
    yield EngineConfig(
        engine=VLLM,
        model=str(tiny_models["llama"]),
        sampling=Sampling(max_tokens=8),
        seed=0,
        threads=1,
        payload=TopKPayload(kind="top_k", k=4),
    )
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def engine(config):
    engine = open_engine(config)
    yield engine
    engine.close()
    assert processes(engine) == []


@pytest.fixture(scope="module")
def reference(config):
    return open_engine(replace(config, engine=TransformersEngine(kind="transformers")))


def processes(engine) -> list[int]:
    return sorted(pid for pid, _ in reaper.marked(f"{MARK}={engine.mark}".encode()))


@pytest.mark.parametrize(
    ("payload", "most"),
    [(TopKPayload(kind="top_k", k=64), 64), (TopKPayload(kind="top_k", k=4), 20), (TextPayload(kind="text"), 20)],
)
def test_the_engine_is_opened_for_the_log_probabilities_of_the_payload(config, monkeypatch, payload, most):
    """vLLM refuses every request for more than max_logprobs."""
    opened: dict = {}
    double = SimpleNamespace(from_engine_args=lambda arguments, **_: opened.update(arguments))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(EngineArgs=dict))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.llm_engine", SimpleNamespace(LLMEngine=double))
    engine = object.__new__(engines.VllmEngine)
    engine.config, engine.folder, engine.arguments = replace(config, payload=payload), config.model, {"seed": 3}
    engine._start()
    assert (opened["max_logprobs"], opened["seed"]) == (most, 3)


def test_answers_are_those_of_transformers(engine, reference):
    expected, found = reference.generate(PROMPTS), engine.generate(PROMPTS)
    same = [i for i in range(40) if np.array_equal(found[i][0].token_ids, expected[i][0].token_ids)]
    assert len(same) >= 38  # random weights leave near ties, which the engines round their own way
    for i in same:
        mine, other = found[i][0], expected[i][0]
        assert (mine.text, mine.finish_reason) == (other.text, other.finish_reason)
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-3)
        assert mine.payload["top_ids"].shape == (len(mine.token_ids), 4)
        np.testing.assert_allclose(mine.payload["top_logprobs"], other.payload["top_logprobs"], atol=1e-3)
    assert engine.output_tokens == sum(len(a.token_ids) for (a,) in found)


def test_scores_are_those_of_transformers(engine, reference):
    targets = [word(i).upper() for i in range(40)]
    for mine, other in zip(engine.score(PROMPTS, targets), reference.score(PROMPTS, targets), strict=True):
        assert np.array_equal(mine.token_ids, other.token_ids) and mine.text == other.text
        np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-3)
        np.testing.assert_allclose(mine.payload["top_logprobs"], other.payload["top_logprobs"], atol=1e-3)
        assert (mine.payload["top_ids"] == other.payload["top_ids"]).mean() > 0.9  # near ties again


def test_what_does_not_fit_is_rejected_and_the_rest_written(engine):
    long, empty, good = engine.generate(["a " * 60, "", "a b =>"])
    assert isinstance(long, Rejected) and "context of 64" in long.reason
    assert empty == Rejected("the prompt has no tokens") and len(good) == 1
    long, empty, good = engine.score(["a b =>", "", "a b =>"], ["a " * 62, "A", "A B"])
    assert isinstance(long, Rejected) and isinstance(empty, Rejected) and len(good.token_ids) == 3


def test_samples_48_and_a_sample_depends_on_its_seed_alone(engine):
    engine.config = replace(engine.config, sampling=Sampling(max_tokens=8, n=48, temperature=1.0))
    several = engine.generate(PROMPTS[:2], range(48), [5, 6])
    assert [len(answers) for answers in several] == [48, 48]
    assert len({a.text for a in several[0]}) > 24
    alone = engine.generate([PROMPTS[7], PROMPTS[1]], range(40, 44), [9, 6])[1]
    assert [a.text for a in alone] == [a.text for a in several[1][40:44]]


def test_unknown_options_are_named(config):
    bad = replace(config, sampling=Sampling(max_tokens=8, options={"min_pp": 0.1}))
    with pytest.raises(EngineError, match="sampling.options: min_pp: unknown; did you mean min_p?"):
        open_engine(bad)
    bad = replace(config, engine=VllmEngine(kind="vllm", arguments={"max_seqs": 1}))
    with pytest.raises(EngineError, match="engine.arguments: max_seqs: unknown; did you mean max_num_seqs"):
        open_engine(bad)


def test_one_that_hangs_is_noticed_and_leaves_nothing(config):
    """With a payload that vLLM cannot record itself."""
    engine = open_engine(replace(config, payload=SampledPayload(kind="sampled", draws=20), hang_seconds=3.0))
    for (answer,) in engine.generate(PROMPTS[:4]):
        lengths = answer.payload["sampled_lengths"]
        assert len(lengths) == len(answer.token_ids)
        assert answer.payload["sampled_counts"].sum() == 20 * len(lengths)
    (scored,) = engine.score(PROMPTS[:1], ["A B"])
    assert scored.payload["sampled_counts"].sum() == 20 * len(scored.token_ids) == 20 * 3
    for pid in processes(engine):
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(EngineDead, match="vLLM hangs: nothing heard for"):
        engine.generate(PROMPTS)
    assert 2 < time.monotonic() - begun < 10
    engine.close()
    assert processes(engine) == []


def test_one_that_is_killed_is_noticed_and_leaves_nothing(engine):
    """Last, because it ends the shared one."""
    for pid in processes(engine):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="vLLM died"):
        for _ in range(100):
            engine.generate(PROMPTS)
    engine.close()
    assert processes(engine) == []
