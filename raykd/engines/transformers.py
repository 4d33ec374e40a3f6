"""The transformers engine: encoder-decoder models, and decoder-only ones where vLLM has no build."""

from __future__ import annotations

import torch

from raykd import batches, models
from raykd.engines import Answer, Opening, Refusal, too_long
from raykd.recipe import Checkpoint

UNBOUNDED = 10**9  # T5 has no longest input


class TransformersEngine:
    """Generates in batches of a token budget, longest prompts first: padding is small, and memory shows at once."""

    def __init__(self, opening: Opening):
        torch.set_num_threads(opening.threads)
        torch.manual_seed(opening.seed)
        folder = models.local(opening.model)
        self.budget, self.sampling = opening.spec.batch_tokens, opening.sampling  # type: ignore[union-attr]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = models.load_tokenizer(folder)
        self.model = models.load(Checkpoint(kind="checkpoint", path=str(folder)), self.tokenizer).to(self.device).eval()
        self.encoder = self.model.config.is_encoder_decoder
        self.context = getattr(self.model.config, "max_position_embeddings", None) or UNBOUNDED
        self.prompt_tokens = self.output_tokens = 0

    def generate(self, prompts: list[str]) -> list[list[Answer] | Refusal]:
        rows = models.encode_inputs(self.tokenizer, prompts, self.encoder)
        refusals = [self._refusal(row) for row in rows]
        results: list = list(refusals)
        todo = [i for i, refusal in enumerate(refusals) if refusal is None]
        samples = self.sampling.n
        for batch in batches.by_length([len(rows[i]) * samples for i in todo], self.budget):
            chosen = [todo[i] for i in batch]
            for i, answers in zip(chosen, self._batch([rows[i] for i in chosen]), strict=True):
                results[i] = answers
        return results

    def _refusal(self, row: list[int]) -> Refusal | None:
        if not row:
            return Refusal("the prompt has no tokens")
        if not self.encoder:
            return too_long(len(row), self.sampling, self.context)
        longest = max(len(row), self.sampling.max_tokens)  # encoder and decoder have places of their own
        return Refusal(f"{longest} tokens > the model's context of {self.context}") if longest > self.context else None

    @torch.inference_mode()
    def _batch(self, rows: list[list[int]]) -> list[list[Answer]]:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if self.encoder:
            tensors = batches.collate(rows, rows, pad, causal=False)
            tensors.pop("labels")
        else:
            tensors = batches.pad_left(rows, pad)
        sampling = self.sampling
        how: dict = {"do_sample": False}
        if sampling.temperature > 0:
            how = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
            how["num_return_sequences"] = sampling.n
        made = self.model.generate(  # type: ignore[operator]
            **{k: v.to(self.device) for k, v in tensors.items()},
            max_new_tokens=sampling.max_tokens,
            pad_token_id=pad,
            eos_token_id=end,
            **how,
        )
        skip = 1 if self.encoder else tensors["input_ids"].shape[1]
        outputs = [self._cut(ids, end) for ids in made[:, skip:].tolist()]
        texts = self.tokenizer.batch_decode(outputs, skip_special_tokens=True)
        self.prompt_tokens += sum(map(len, rows))
        self.output_tokens += sum(map(len, outputs))
        answers = [
            Answer(text.strip(), ids, [], "stop" if ids and ids[-1] == end else "length")
            for text, ids in zip(texts, outputs, strict=True)
        ]
        return [answers[i : i + sampling.n] for i in range(0, len(answers), sampling.n)]

    @staticmethod
    def _cut(ids: list[int], end: int) -> list[int]:
        return ids[: ids.index(end) + 1] if end in ids else ids

    def close(self) -> None:
        del self.model
