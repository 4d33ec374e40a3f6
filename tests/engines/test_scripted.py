"""The shipped double behind the one interface."""

from raykd.engines.engine import EngineConfig, Rejected, open_engine
from raykd.recipe.generation import Sampling, ScriptedEngine


def test_a_value_error_rejects_the_prompt():
    spec = ScriptedEngine(kind="scripted", function="test_scripted:script")
    sampling = Sampling(n=2, temperature=1.0)
    engine = open_engine(EngineConfig(engine=spec, model="", sampling=sampling, seed=0, threads=1))
    samples, rejected = engine.generate(["a b", "bad"], range(2))
    assert [sample.text for sample in samples] == ["a b 0", "a b 1"]
    assert rejected == Rejected("no bad words")
    assert engine.prompt_tokens == 2


def script(prompt, sample):
    if prompt == "bad":
        raise ValueError("no bad words")
    return f"{prompt} {sample}"
