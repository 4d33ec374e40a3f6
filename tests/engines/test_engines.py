"""Engines behind the one interface. vLLM is the real one; it takes seconds to start, so its tests share it."""

import importlib.util

import pytest
from conftest import word

from raykd.engines import Opening, Refusal, open_engine
from raykd.recipe import Sampling, ScriptedEngine, TransformersEngine, VllmEngine

PROMPTS = [f"{word(i)} =>" for i in range(40)]
TRANSFORMERS = TransformersEngine(kind="transformers", batch_tokens=64)
VLLM = VllmEngine(kind="vllm", arguments={"enforce_eager": True, "dtype": "float32", "max_num_seqs": 32})
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has no build on this platform")


def opening(spec, folder, **sampling):
    return Opening(spec, str(folder), Sampling(**{"max_tokens": 8, **sampling}), seed=0, threads=1)


def test_the_scripted_engine_refuses_by_value_error():
    spec = ScriptedEngine(kind="scripted", function="test_engines:script")
    engine = open_engine(opening(spec, "", n=2, temperature=1.0))
    answers, refusal = engine.generate(["a b", "bad"])
    assert [a.text for a in answers] == ["a b 0", "a b 1"]
    assert refusal == Refusal("no bad words")
    assert engine.prompt_tokens == 2


def script(prompt, sample):
    if prompt == "bad":
        raise ValueError("no bad words")
    return f"{prompt} {sample}"


@pytest.fixture(scope="module")
def vllm_answers(tiny_models, tmp_path_factory):
    """What the real vLLM says, from a process of its own: it would keep its threads and settings in this one."""
    import subprocess
    import sys

    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[3]); import test_engines as t;"
        "from raykd.engines import open_engine;"
        "greedy = open_engine(t.opening(t.VLLM, sys.argv[1])); long = ['a ' * 60, '', 'a b =>'];"
        "made = [greedy.generate(t.PROMPTS), greedy.generate(long)];"
        "greedy.parameters.n, greedy.parameters.temperature = 48, 1.0; made.append(greedy.generate(t.PROMPTS[:2]));"
        "pickle.dump(made, open(sys.argv[2], 'wb'))"
    )
    out = tmp_path_factory.mktemp("vllm") / "answers"
    from pathlib import Path

    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, str(tiny_models["llama"]), str(out), here]
    import os

    environment = {**os.environ, "PYTHONPATH": str(Path(here).parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    import pickle

    return pickle.loads(out.read_bytes())


@needs_vllm
def test_vllm_gives_what_transformers_gives(vllm_answers, tiny_models):
    expected = open_engine(opening(TRANSFORMERS, tiny_models["llama"])).generate(PROMPTS)
    same = sum(a[0].token_ids == b[0].token_ids for a, b in zip(vllm_answers[0], expected, strict=True))
    assert same >= 38  # random weights leave near ties, which the engines round their own way
    for (answer,) in vllm_answers[0]:
        assert len(answer.logprobs) == len(answer.token_ids)
        assert all(value <= 0 for value in answer.logprobs)


@needs_vllm
def test_vllm_refuses_what_does_not_fit_and_samples_48(vllm_answers):
    long, empty, good = vllm_answers[1]
    assert isinstance(long, Refusal) and "context of 64" in long.reason
    assert isinstance(empty, Refusal) and len(good) == 1
    assert [len(answers) for answers in vllm_answers[2]] == [48, 48]
