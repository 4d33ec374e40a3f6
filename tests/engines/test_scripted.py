"""The shipped double behind the one interface."""

from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.recipe.generation import Sampling, ScriptedEngine


def test_the_scripted_engine_refuses_by_value_error():
    spec = ScriptedEngine(kind="scripted", function="test_scripted:script")
    engine = open_engine(EngineConfig(spec, "", Sampling(n=2, temperature=1.0), seed=0, threads=1))
    answers, refusal = engine.generate(["a b", "bad"], range(2))
    assert [a.text for a in answers] == ["a b 0", "a b 1"]
    assert refusal == Rejected("no bad words")
    assert engine.prompt_tokens == 2


def script(prompt, sample):
    if prompt == "bad":
        raise ValueError("no bad words")
    return f"{prompt} {sample}"
