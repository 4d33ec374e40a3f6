"""The vLLM engine: decoder-only models."""

from __future__ import annotations

import os
from typing import Any

from raykd import models
from raykd.engines import Answer, Opening, Refusal, too_long
from raykd.errors import EngineError


class VllmEngine:
    """A `vllm.LLM` in this process. Prompts go in as token ids, encoded as in training."""

    def __init__(self, opening: Opening):
        # vLLM reads these when it is imported; in-process, so that no engine outlives the actor that holds it
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(opening.threads)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        arguments = opening.spec.arguments  # type: ignore[union-attr]
        if arguments.get("enforce_eager"):
            # vLLM compiles its sampler even so: half a minute at every start
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
        import torch
        from vllm import LLM, SamplingParams

        torch.set_num_threads(opening.threads)
        folder = models.local(opening.model)
        self.tokenizer = models.load_tokenizer(folder)
        self.sampling = opening.sampling
        try:
            self.llm = LLM(str(folder), seed=opening.seed, **arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise EngineError(f"vLLM does not start on {folder}: {str(error).splitlines()[0]}") from error
        self.context = self.llm.llm_engine.model_config.max_model_len
        sampling = opening.sampling
        self.parameters = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[self.tokenizer.eos_token_id],
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
        )
        self.prompt_tokens = self.output_tokens = 0

    def generate(self, prompts: list[str]) -> list[list[Answer] | Refusal]:
        rows = models.encode_inputs(self.tokenizer, prompts, encoder=False)
        empty = Refusal("the prompt has no tokens")
        results: list = [too_long(len(row), self.sampling, self.context) if row else empty for row in rows]
        todo = [i for i, refusal in enumerate(results) if refusal is None]
        requests: Any = [{"prompt_token_ids": rows[i]} for i in todo]
        outputs = self.llm.generate(requests, self.parameters, use_tqdm=False) if requests else []
        for i, output in zip(todo, outputs, strict=True):
            results[i] = [self._answer(sample) for sample in output.outputs]
            self.prompt_tokens += len(rows[i])
        return results

    def _answer(self, sample) -> Answer:
        ids = list(sample.token_ids)
        self.output_tokens += len(ids)
        return Answer(
            sample.text.strip(), ids, list(sample.logprobs.logprobs[: len(ids)]), sample.finish_reason or "stop"
        )

    def close(self) -> None:
        del self.llm
