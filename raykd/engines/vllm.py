"""The vLLM engine: decoder-only models, on vLLM's asynchronous engine in a process of its own."""

from __future__ import annotations

import asyncio
import difflib
import os
import threading
import time
import uuid
from typing import Any

import numpy as np

from raykd import models
from raykd.engines import Answer, Opening, Refusal, too_long
from raykd.errors import EngineDead, EngineError
from raykd.recipe import TextPayload, TopKPayload
from raykd.sweep import sweeper

MARK = "RAYKD_ENGINE"  # in the environment of the engine's processes, so that none outlives the process that holds it
STARTING = 1800.0  # seconds that an engine may take to start: a large model is read, graphs are captured


class VllmEngine:
    """A `vllm.AsyncLLM`. Prompts go in as token ids, encoded as in training; many calls share the engine."""

    def __init__(self, opening: Opening):
        # vLLM reads these when it is imported, and its engine process inherits them
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(opening.threads)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self.arguments = opening.spec.arguments  # type: ignore[union-attr]
        if self.arguments.get("enforce_eager"):
            # vLLM compiles its sampler even so: half a minute at every start
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
        self.opening = opening
        self.folder = models.local(opening.model)
        self.tokenizer = models.load_tokenizer(self.folder)
        self.prompt_tokens = self.output_tokens = 0
        self.heard = time.monotonic()  # when the engine's process last said anything
        self.asked = 0  # and not answered yet
        self.asked_ever = 0
        self.annotator = self._annotator()
        self.mark = uuid.uuid4().hex
        self.sweeper = sweeper(f"{MARK}={self.mark}")
        os.environ[MARK] = self.mark
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="vllm").start()
        try:
            self._parameters(range(opening.sampling.n))  # before the start, which takes long
            self.engine: Any = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(STARTING)
        except BaseException:
            self.close()
            raise
        self.context = self.engine.model_config.max_model_len

    # ------------------------------------------------------------------------------------------- answering

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[Answer] | Refusal]:
        rows = self._encode(prompts)
        empty = Refusal("the prompt has no tokens")
        results: list = [too_long(len(row), self.opening.sampling, self.context) if row else empty for row in rows]
        todo = [i for i, refusal in enumerate(results) if refusal is None]
        parameters = self._parameters(samples)
        calls = []
        for i in todo:
            one = parameters
            if seeds is not None:
                one = parameters.clone()
                one.seed = (seeds[i] + samples.start) % 2**32
            calls.append((rows[i], one))
        outputs = self._ask(calls)
        for i, output in zip(todo, outputs, strict=True):
            results[i] = output if isinstance(output, Refusal) else self._samples(output)
        self._annotate(rows, results)
        return results

    def score(self, prompts: list[str], targets: list[str]) -> list[Answer | Refusal]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rows = self._encode(prompts)
        wanted = models.encode_targets(self.tokenizer, targets)
        results: list = []
        for row, target in zip(rows, wanted, strict=True):
            length = len(row) + len(target)
            long = Refusal(f"prompt and target of {length} tokens >= the model's context of {self.context}")
            results.append(long if length >= self.context else None if row else Refusal("the prompt has no tokens"))
        todo = [i for i, refusal in enumerate(results) if refusal is None]
        calls = []
        for i in todo:
            one = SamplingParams(
                max_tokens=1,
                temperature=0,
                prompt_logprobs=self._width() or 0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            calls.append((rows[i] + wanted[i], one))
        for i, output in zip(todo, self._ask(calls), strict=True):
            if isinstance(output, Refusal):
                results[i] = output
                continue
            self.prompt_tokens += len(rows[i]) + len(wanted[i])
            ids = np.asarray(wanted[i], np.int32)
            logprobs, payload = self._recorded(output.prompt_logprobs, len(ids))
            results[i] = Answer(targets[i], ids, logprobs, "stop", payload)
        self._annotate(rows, [[r] if isinstance(r, Answer) else r for r in results])
        return results

    def close(self) -> None:
        """End the engine's processes, also where they hang."""
        engine, self.engine = getattr(self, "engine", None), None
        if engine is not None and self.alive():
            engine.shutdown()
        if self.sweeper.stdin is not None and not self.sweeper.stdin.closed:
            self.sweeper.stdin.close()
            self.sweeper.wait()
        self.loop.call_soon_threadsafe(self.loop.stop)

    def alive(self) -> bool:
        """Whether the engine's process said something lately, or has nothing to do."""
        return not self.asked or time.monotonic() - self.heard < self.opening.hang_seconds

    # ------------------------------------------------------------------------------------------- the engine

    async def _start(self) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        given = {"model": str(self.folder), "seed": self.opening.seed, "disable_log_stats": True, **self.arguments}
        try:
            engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**given))
        except TypeError as error:
            raise EngineError(f"engine.arguments: {_unknown(error, given, AsyncEngineArgs)}") from None
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM does not start on {self.folder}: {str(error).splitlines()[0]}") from error
        listen = engine.engine_core.get_output_async

        async def heard() -> Any:
            outputs = await listen()
            self.heard = time.monotonic()
            return outputs

        engine.engine_core.get_output_async = heard  # every step passes here: the sign of life
        return engine

    def _ask(self, calls: list[tuple[list[int], Any]]) -> list[Any]:
        """The engine's output to each (token ids, parameters), or a Refusal. Raises EngineDead."""
        if not calls:
            return []
        if not self.asked:
            self.heard = time.monotonic()
        self.asked += len(calls)
        future = asyncio.run_coroutine_threadsafe(self._all(calls), self.loop)
        try:
            while True:
                try:
                    return future.result(timeout=min(1.0, self.opening.hang_seconds / 4))
                except TimeoutError:
                    if future.done():
                        raise
                    if not self.alive():
                        future.cancel()
                        silent = time.monotonic() - self.heard
                        raise EngineDead(f"vLLM hangs: nothing heard for {silent:.0f} s") from None
        finally:
            self.asked -= len(calls)

    async def _all(self, calls: list[tuple[list[int], Any]]) -> list[Any]:
        return await asyncio.gather(*(self._one(ids, parameters) for ids, parameters in calls))

    async def _one(self, ids: list[int], parameters: Any) -> Any:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            self.asked_ever += 1
            request = self.engine.generate(tokens_input(ids), parameters, str(self.asked_ever))
            (output,) = [output async for output in request]  # asked for the final one only
            return output
        except (EngineDeadError, EngineGenerateError) as error:
            cause = error.__cause__ or error
            raise EngineDead(f"vLLM died: {str(cause).splitlines()[0] or type(cause).__name__}") from None
        except (ValueError, VLLMClientError) as error:  # a request that vLLM will not serve
            return Refusal(str(error).splitlines()[0])

    # ---------------------------------------------------------------------------------- requests and answers

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return models.encode_inputs(self.tokenizer, prompts, encoder=False, special_tokens=self.opening.special_tokens)

    def _width(self) -> int | None:
        """Log-probabilities per position beside that of the token itself; None where nobody asked for any."""
        payload = self.opening.payload
        if isinstance(payload, TextPayload) and not payload.logprobs:
            return None
        return payload.k if isinstance(payload, TopKPayload) else 0

    def _parameters(self, samples: range) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.opening.sampling
        options = {"stop_token_ids": [self.tokenizer.eos_token_id], **sampling.options}
        options.setdefault("detokenize", bool(options.get("stop")))  # else whole texts are decoded at the end
        try:
            return SamplingParams(
                n=len(samples),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                logprobs=self._width(),
                flat_logprobs=True,  # otherwise log-probabilities halve the throughput
                output_kind=RequestOutputKind.FINAL_ONLY,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise EngineError(f"sampling.options: {_unknown(error, options, SamplingParams)}") from None

    def _samples(self, output: Any) -> list[Answer]:
        self.prompt_tokens += len(output.prompt_token_ids)
        found = []
        for sample in output.outputs:
            ids = np.asarray(sample.token_ids, np.int32)
            self.output_tokens += len(ids)
            logprobs, payload = self._recorded(sample.logprobs, len(ids))
            text = sample.text or self.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(Answer(text.strip(), ids, logprobs, sample.finish_reason or "stop", payload))
        return found

    def _recorded(self, flat: Any, length: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log-probabilities of the last `length` tokens, and the most likely ones, from vLLM's flat lists."""
        if flat is None:
            return np.zeros(0, np.float32), {}
        width = (self._width() or 0) + 1  # the token itself comes first
        logprobs = np.asarray(flat.logprobs[-length * width :], np.float32).reshape(length, width)
        if width == 1:
            return logprobs[:, 0], {}
        ids = np.asarray(flat.token_ids[-length * width :], np.int32).reshape(length, width)
        return logprobs[:, 0], {"top_ids": ids[:, 1:], "top_logprobs": logprobs[:, 1:]}

    def _annotator(self) -> Any:
        """A copy of the model that reads what vLLM wrote, for payloads that vLLM cannot record; else None."""
        if self.opening.payload.kind not in ("sampled", "hidden"):
            return None
        from dataclasses import replace

        from raykd.engines.transformers import TransformersEngine
        from raykd.recipe import TransformersEngine as Spec

        return TransformersEngine(replace(self.opening, spec=Spec(kind="transformers")))

    def _annotate(self, rows: list[list[int]], results: list) -> None:
        if self.annotator is None:
            return
        places = [(i, j) for i, found in enumerate(results) if isinstance(found, list) for j in range(len(found))]
        payloads = self.annotator.payloads(
            [rows[i] for i, _ in places], [results[i][j].token_ids.tolist() for i, j in places]
        )
        for (i, j), payload in zip(places, payloads, strict=True):
            results[i][j] = results[i][j]._replace(payload=payload)


def _unknown(error: Exception, given: dict[str, Any], taker: type) -> str:
    """What is wrong with options, with the nearest known name for one that does not exist."""
    import inspect

    known = inspect.signature(taker).parameters
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            return f"{name}: unknown{near and f'; did you mean {near[0]}?' or ''}"
    return str(error).splitlines()[0]
