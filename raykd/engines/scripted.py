"""A double that answers from a function: for tests, and for measuring the machinery alone."""

from __future__ import annotations

import importlib

from raykd.engines import Answer, Opening, Refusal


class ScriptedEngine:
    """Answers each prompt by `function(prompt, sample) -> text`; a ValueError is a refusal of that prompt."""

    def __init__(self, opening: Opening):
        module, name = opening.spec.function.split(":")  # type: ignore[union-attr]
        self.function = getattr(importlib.import_module(module), name)
        self.samples = opening.sampling.n
        self.prompt_tokens = self.output_tokens = 0

    def generate(self, prompts: list[str]) -> list[list[Answer] | Refusal]:
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: str) -> list[Answer] | Refusal:
        try:
            texts = [self.function(prompt, sample) for sample in range(self.samples)]
        except ValueError as error:
            return Refusal(str(error))
        self.prompt_tokens += len(prompt.split())
        self.output_tokens += sum(len(text.split()) for text in texts)
        return [Answer(text, [], [], "stop") for text in texts]

    def close(self) -> None:
        pass


def echo(prompt: str, sample: int) -> str:
    """The prompt itself."""
    return prompt
