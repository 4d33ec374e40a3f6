"""The engine of encoders with a head: the class, number or span that a model predicts for a prompt, as text."""

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
    """A classification, regression or extractive QA model. One thread runs it, in batches by length."""

    def __init__(self, config: EngineConfig):
        self.config, self.prompt_tokens, self.output_tokens = config, 0, 0
        self.tokenizer = load_tokenizer(config.model, generates=False)
        saved = saved_configuration(config.model)
        self.task: Task = task_heads.task_of(saved)
        spec = Checkpoint(kind="checkpoint", path=config.model)
        self.labels = [saved.id2label[i] for i in range(saved.num_labels)] if self.task == "classification" else None
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self.model = load_model(spec, self.tokenizer, self.task, self.labels).to(device).eval()
        self.context = getattr(saved, "max_position_embeddings", None) or 10**9
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(config.threads,))

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate, with one sample. Raises EngineError where more are requested."""
        if samples != range(1):
            raise EngineError(f"{self.config.model}: an encoder answers once, sampling.n asks for {samples.stop}")
        return self.thread.submit(self._predict, prompts).result()

    def _predict(self, prompts: list[str]) -> list[list[PseudoTarget] | Rejected]:
        rows = encode_inputs(self.tokenizer, prompts, False, self.config.special_tokens)
        results: list[list[PseudoTarget] | Rejected] = [
            Rejected(f"prompt of {len(row)} tokens > the model's context of {self.context}") for row in rows
        ]
        fitting = [i for i, row in enumerate(rows) if 0 < len(row) <= self.context]
        for batch in batches.by_length([len(rows[i]) for i in fitting], BATCH_TOKENS):
            places = [fitting[j] for j in batch]
            predictions = task_heads.predict(
                self.model, self.task, [rows[i] for i in places], self.tokenizer.pad_token_id
            )
            for i, prediction in zip(places, predictions, strict=True):
                results[i] = [self._pseudo_target(prompts[i], rows[i], prediction)]
                self.prompt_tokens += len(rows[i])
        return results

    def _pseudo_target(self, prompt: str, prompt_ids: list[int], prediction: task_heads.HeadPrediction) -> PseudoTarget:
        head_target = prediction.head_target
        if self.task == "extractive_qa":
            text = task_heads.span_text(self.tokenizer, prompt, head_target)
        else:
            text = task_heads.decode(self.task, self.labels, self.tokenizer, prompt_ids, head_target)
        return PseudoTarget(
            text=text,
            token_ids=np.array(head_target, np.int32),
            logprobs=np.array(prediction.logprobs, np.float32),
            finish_reason="stop",
        )

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """Raises EngineError: a head writes no tokens."""
        raise EngineError(f"{self.config.model}: an encoder writes nothing that could be scored")

    def close(self) -> None:
        """Release the model."""
        self.thread.shutdown()
        del self.model
