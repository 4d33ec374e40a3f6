"""Encoders with a head: the class, number or span that a model gives to a prompt, as text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected
from raykd.errors import EngineError
from raykd.models import task_heads
from raykd.models.files import saved_configuration
from raykd.models.load import load_model
from raykd.models.tokenizers import encode_inputs, load_tokenizer
from raykd.recipe.models import Checkpoint, Task
from raykd.training import batches

BATCH_TOKENS = 8192


class EncoderEngine:
    """A classifier, a regression or an extractive reader, worked on by one thread, in batches by length."""

    def __init__(self, opening: EngineConfig):
        self.opening, self.prompt_tokens, self.output_tokens = opening, 0, 0
        self.tokenizer = load_tokenizer(opening.model, generates=False)
        config = saved_configuration(opening.model)
        self.task: Task = task_heads.task_of(config)
        spec = Checkpoint(kind="checkpoint", path=opening.model)
        self.labels = [config.id2label[i] for i in range(config.num_labels)] if self.task == "classification" else None
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self.model = load_model(spec, self.tokenizer, self.task, self.labels).to(device).eval()
        self.longest = getattr(config, "max_position_embeddings", None) or 10**9
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(opening.threads,))

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        if samples != range(1):
            raise EngineError(f"{self.opening.model}: an encoder answers once, sampling.n asks for {samples.stop}")
        return self.thread.submit(self._answer, prompts).result()

    def _answer(self, prompts: list[str]) -> list[list[PseudoTarget] | Rejected]:
        rows = encode_inputs(self.tokenizer, prompts, False, self.opening.special_tokens)
        found: list[list[PseudoTarget] | Rejected] = [Rejected("") for _ in prompts]
        fits = []
        for at, row in enumerate(rows):
            if 0 < len(row) <= self.longest:
                fits.append(at)
            else:
                found[at] = Rejected(f"prompt of {len(row)} tokens > the model's context of {self.longest}")
        for piece in batches.by_length([len(rows[at]) for at in fits], BATCH_TOKENS):
            here = [fits[i] for i in piece]
            said = task_heads.answers(self.model, self.task, [rows[at] for at in here], self.tokenizer.pad_token_id)
            for at, (numbers, logprobs) in zip(here, said, strict=True):
                if self.task == "extractive_qa":
                    text = task_heads.stretch(self.tokenizer, prompts[at], numbers)
                else:
                    text = task_heads.text(self.task, self.labels, self.tokenizer, rows[at], numbers)
                found[at] = [PseudoTarget(text, np.array(numbers, np.int32), np.array(logprobs, np.float32), "stop")]
                self.prompt_tokens += len(rows[at])
        return found

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        raise EngineError(f"{self.opening.model}: an encoder writes nothing that could be scored")

    def close(self) -> None:
        self.thread.shutdown()
        del self.model
