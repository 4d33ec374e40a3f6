"""What an encoder's head is taught and answers, as numbers and as text: a class, a number, a span of its prompt.

A class is its place among the labels; a number, the bits of its float32; a span, its first and last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raykd.recipe.models import Task
from raykd.training import batches

LONGEST = 30  # tokens of an answered span


def task_of(config: Any) -> Task:
    """The task of a saved model."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForQuestionAnswering"):
        return "extractive_qa"
    if architecture.endswith("ForSequenceClassification"):
        return "regression" if config.num_labels == 1 else "classification"
    return "generation"


def numbers(task: Task, labels: Sequence[str] | None, tokenizer: Any, prompt: str, target: str) -> list[int]:
    """A target's text as numbers. Raises ValueError, with the reason, for a text that cannot be one."""
    if task == "classification":
        known = list(labels or ())
        if target.strip() not in known:
            raise ValueError(f"{target.strip()!r:.40} is none of the labels {', '.join(known)}")
        return [known.index(target.strip())]
    if task == "regression":
        try:
            return [int(np.float32(float(target)).view(np.int32))]
        except ValueError:
            raise ValueError(f"{target!r:.40} is no number") from None
    start = prompt.find(target.strip())
    if start < 0:
        raise ValueError(f"{target.strip()!r:.40} is no part of the input")
    offsets = tokenizer(prompt, return_offsets_mapping=True).offset_mapping
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(target.strip()) and b > start and b > a]
    return [inside[0], inside[-1]]


def tensor(task: Task, targets: list[np.ndarray]) -> torch.Tensor:
    """Targets as a Student takes them: (B, 1) classes, (B, 1) float numbers or (B, 2) places."""
    made = np.stack([np.asarray(target, np.int32) for target in targets])
    return torch.from_numpy(made.view(np.float32).copy() if task == "regression" else made.astype(np.int64))


@torch.no_grad()
def answers(model: Any, task: Task, sources: list, pad: int) -> list[tuple[list[int], list[float]]]:
    """What a model says to encoded prompts, as numbers, and the log-probability of each; a regression has none."""
    tensors = {name: t.to(model.device) for name, t in batches.pad_right(sources, pad).items()}
    found = model(**tensors)
    if task == "classification":
        logprobs, classes = found.logits.float().log_softmax(1).max(1, keepdim=True)
        return list(zip(classes.tolist(), logprobs.tolist(), strict=True))
    if task == "regression":
        return [([int(np.float32(value).view(np.int32))], []) for value in found.logits[:, 0].tolist()]
    hidden = tensors["attention_mask"] == 0
    start, end = (x.float().masked_fill(hidden, -1e30) for x in (found.start_logits, found.end_logits))
    width = start.shape[1]
    allowed = torch.ones(width, width, dtype=torch.bool, device=start.device).triu().tril(LONGEST - 1)
    both = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, -torch.inf).flatten(1).argmax(1)
    places = torch.stack([both // width, both % width], 1)
    logprobs = torch.stack([start.log_softmax(1), end.log_softmax(1)], 1).gather(2, places[:, :, None])[:, :, 0]
    return list(zip(places.tolist(), logprobs.tolist(), strict=True))


def text(task: Task, labels: Sequence[str] | None, tokenizer: Any, source: Any, said: Any) -> str:
    """Numbers as text; of a span, as the tokenizer writes its tokens."""
    if task == "classification":
        return list(labels or ())[said[0]]
    if task == "regression":
        return f"{np.int32(said[0]).view(np.float32):.6g}"
    return tokenizer.decode(list(source[said[0] : said[1] + 1]), skip_special_tokens=True).strip()


def stretch(tokenizer: Any, prompt: str, said: list[int]) -> str:
    """A span as it stands in the prompt."""
    offsets = tokenizer(prompt, return_offsets_mapping=True).offset_mapping
    return prompt[offsets[said[0]][0] : offsets[said[1]][1]]
