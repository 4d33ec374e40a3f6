"""A double that answers from a function: for tests, and for measuring the machinery alone."""

from __future__ import annotations

import importlib

import numpy as np

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected

NO_TOKENS = np.zeros(0, np.int32)
NO_LOGPROBS = np.zeros(0, np.float32)


class ScriptedEngine:
    """Answers each prompt by `function(prompt, sample) -> text`; a ValueError is a refusal of that prompt."""

    def __init__(self, opening: EngineConfig):
        module, name = opening.spec.function.split(":")  # type: ignore[union-attr]
        self.function = getattr(importlib.import_module(module), name)
        self.prompt_tokens = self.output_tokens = 0

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        return [self._answer(prompt, samples) for prompt in prompts]

    def _answer(self, prompt: str, samples: range) -> list[PseudoTarget] | Rejected:
        try:
            texts = [self.function(prompt, sample) for sample in samples]
        except ValueError as error:
            return Rejected(str(error))
        self.prompt_tokens += len(prompt.split())
        self.output_tokens += sum(len(text.split()) for text in texts)
        return [PseudoTarget(text, NO_TOKENS, NO_LOGPROBS, "stop") for text in texts]

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        return [PseudoTarget(target, NO_TOKENS, NO_LOGPROBS, "stop") for target in targets]

    def close(self) -> None:
        pass


def echo(prompt: str, sample: int) -> str:
    """The prompt itself."""
    return prompt
