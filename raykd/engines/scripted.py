"""A test double that writes a function's results; also for measuring the machinery without a model."""

from __future__ import annotations

import importlib

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected, text_only


class ScriptedEngine:
    """Writes `function(prompt, sample) -> text`; a ValueError of the function rejects the prompt."""

    def __init__(self, config: EngineConfig):
        module, name = config.engine.function.split(":")  # type: ignore[union-attr]
        self.function = getattr(importlib.import_module(module), name)
        self.prompt_tokens = self.output_tokens = 0

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate; the seeds are not used."""
        return [self._samples(prompt, samples) for prompt in prompts]

    def _samples(self, prompt: str, samples: range) -> list[PseudoTarget] | Rejected:
        try:
            texts = [self.function(prompt, sample) for sample in samples]
        except ValueError as error:
            return Rejected(str(error))
        self.prompt_tokens += len(prompt.split())
        self.output_tokens += sum(len(text.split()) for text in texts)
        return [text_only(text) for text in texts]

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """As Engine.score, without tokens."""
        return [text_only(target) for target in targets]

    def close(self) -> None:
        """Does nothing: there is nothing to release."""


def echo(prompt: str, sample: int) -> str:
    """The prompt itself."""
    return prompt
