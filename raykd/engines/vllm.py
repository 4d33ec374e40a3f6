"""The vLLM engine: decoder-only models, on a vLLM engine in a process of its own."""

from __future__ import annotations

import difflib
import os
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected, too_long
from raykd.errors import EngineDead, EngineError
from raykd.models.files import model_folder
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.reaper import reaper
from raykd.recipe.generation import TextPayload, TopKPayload

MARK = "RAYKD_ENGINE"  # in the environment of the engine's processes, so that none outlives the process that holds it
STARTING = 1800.0  # seconds that an engine may take to start: a large model is read, graphs are captured


@dataclass
class _Call:
    """Requests that somebody waits for together."""

    outputs: list[Any]  # in order: vLLM's output, or a Refusal
    left: int
    done: Future = field(default_factory=Future)

    def answer(self, i: int, output: Any) -> None:
        self.outputs[i] = output
        self.left -= 1
        if not self.left:
            self.done.set_result(None)


class VllmEngine:
    """A vLLM engine that many calls share. Prompts go in as token ids, encoded as in training.

    One thread talks to vLLM: it hands over what was asked since it last looked and takes what is finished, while the
    engine's own process goes on. vLLM's `AsyncLLM` does the same with a task of an event loop per request, for twice
    this process's time.
    """

    def __init__(self, opening: EngineConfig):
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
        self.folder = model_folder(opening.model)
        self.tokenizer = load_tokenizer(self.folder)
        self.prompt_tokens = self.output_tokens = 0
        self.heard = time.monotonic()  # when the engine's process last said anything
        self.asked = 0  # and not answered yet
        self.annotator = self._annotator()
        self.mark = uuid.uuid4().hex
        self.reaper = reaper(f"{MARK}={self.mark}")
        os.environ[MARK] = self.mark
        self.requests: queue.SimpleQueue = queue.SimpleQueue()  # (token ids, parameters, call, place in it), or None
        self.failed: BaseException | None = None
        started: Future = Future()
        try:
            self._parameters(range(opening.sampling.n))  # before the start, which takes long
            threading.Thread(target=self._serve, args=(started,), daemon=True, name="vllm").start()
            self.engine: Any = started.result(STARTING)
        except BaseException:
            self.close()
            raise
        self.context = self.engine.model_config.max_model_len

    # ------------------------------------------------------------------------------------------- answering

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        rows = self._encode(prompts)
        empty = Rejected("the prompt has no tokens")
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
            results[i] = output if isinstance(output, Rejected) else self._samples(output)
        self._annotate(rows, results)
        return results

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rows = self._encode(prompts)
        wanted = encode_targets(self.tokenizer, targets)
        results: list = []
        for row, target in zip(rows, wanted, strict=True):
            length = len(row) + len(target)
            long = Rejected(f"prompt and target of {length} tokens >= the model's context of {self.context}")
            results.append(long if length >= self.context else None if row else Rejected("the prompt has no tokens"))
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
            if isinstance(output, Rejected):
                results[i] = output
                continue
            self.prompt_tokens += len(rows[i]) + len(wanted[i])
            ids = np.asarray(wanted[i], np.int32)
            logprobs, payload = self._recorded(output.prompt_logprobs, len(ids))
            results[i] = PseudoTarget(targets[i], ids, logprobs, "stop", payload)
        self._annotate(rows, [[r] if isinstance(r, PseudoTarget) else r for r in results])
        return results

    def close(self) -> None:
        """End the engine's processes, also where they hang."""
        engine, self.engine = getattr(self, "engine", None), None
        if engine is not None and self.alive():
            engine.engine_core.shutdown()
        if self.reaper.stdin is not None and not self.reaper.stdin.closed:
            self.reaper.stdin.close()
            self.reaper.wait()
        self.requests.put(None)

    def alive(self) -> bool:
        """Whether the engine's process said something lately, or has nothing to do."""
        return not self.asked or time.monotonic() - self.heard < self.opening.hang_seconds

    # ------------------------------------------------------------------------------------------- the engine

    def _start(self) -> Any:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        given = {"model": str(self.folder), "seed": self.opening.seed, "disable_log_stats": True, **self.arguments}
        try:
            return LLMEngine.from_engine_args(EngineArgs(**given), enable_multiprocessing=True)
        except TypeError as error:
            raise EngineError(f"engine.arguments: {_unknown(error, given, EngineArgs)}") from None
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM does not start on {self.folder}: {str(error).splitlines()[0]}") from error

    def _serve(self, started: Future) -> None:
        """The thread that talks to vLLM, from its start to its end."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        running: dict[str, tuple[_Call, int]] = {}
        asked_ever = 0
        try:
            engine = self._start()
            started.set_result(engine)
            while True:
                while not (running and self.requests.empty()):  # with nothing to do, wait
                    request = self.requests.get()
                    if request is None:
                        return
                    ids, parameters, call, i = request
                    asked_ever += 1
                    try:
                        engine.add_request(str(asked_ever), tokens_input(ids), parameters)
                        running[str(asked_ever)] = call, i
                    except (ValueError, VLLMClientError) as error:  # a request that vLLM will not serve
                        call.answer(i, Rejected(str(error).splitlines()[0]))
                outputs = engine.step()
                self.heard = time.monotonic()  # every step passes here: the sign of life
                for output in outputs:  # asked for final ones only
                    call, i = running.pop(output.request_id)
                    call.answer(i, output)
        except BaseException as error:
            self.failed = error
            if not started.done():
                started.set_exception(error)

    def _ask(self, calls: list[tuple[list[int], Any]]) -> list[Any]:
        """The engine's output to each (token ids, parameters), or a Refusal. Raises EngineDead."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if not calls:
            return []
        if not self.asked:
            self.heard = time.monotonic()
        self.asked += len(calls)
        call = _Call([None] * len(calls), len(calls))
        for i, (ids, parameters) in enumerate(calls):
            self.requests.put((ids, parameters, call, i))
        try:
            while True:
                try:
                    call.done.result(timeout=min(1.0, self.opening.hang_seconds / 4))
                    return call.outputs
                except TimeoutError:
                    core = self.engine.engine_core
                    if core.resources.engine_dead:  # vLLM notices, but does not wake who waits for it
                        core.outputs_queue.put(EngineDeadError())
                    failed = self.failed
                    if isinstance(failed, EngineDeadError | EngineGenerateError):
                        cause = failed.__cause__ or failed
                        raise EngineDead(f"vLLM died: {str(cause).splitlines()[0] or type(cause).__name__}") from None
                    if failed is not None:
                        raise EngineError(f"vLLM: {type(failed).__name__}: {failed}") from failed
                    if not self.alive():
                        silent = time.monotonic() - self.heard
                        raise EngineDead(f"vLLM hangs: nothing heard for {silent:.0f} s") from None
        finally:
            self.asked -= len(calls)

    # ---------------------------------------------------------------------------------- requests and answers

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return encode_inputs(self.tokenizer, prompts, encoder=False, special_tokens=self.opening.special_tokens)

    def _width(self) -> int | None:
        """Log-probabilities per position beside that of the token itself; None where nobody asked for any."""
        payload = self.opening.payload
        if isinstance(payload, TextPayload) and not payload.logprobs:
            return None
        return payload.k if isinstance(payload, TopKPayload) else 0

    def _detokenizes(self) -> bool:
        """Whether the engine writes texts itself, which stop strings ask for."""
        options = self.opening.sampling.options
        return bool(options.get("detokenize", options.get("stop")))

    def _parameters(self, samples: range) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.opening.sampling
        options = {"stop_token_ids": [self.tokenizer.eos_token_id], **sampling.options}
        options["detokenize"] = self._detokenizes()  # else whole texts are decoded at the end
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

    def _samples(self, output: Any) -> list[PseudoTarget]:
        self.prompt_tokens += len(output.prompt_token_ids)
        found = []
        for sample in output.outputs:
            ids = np.asarray(sample.token_ids, np.int32)
            self.output_tokens += len(ids)
            logprobs, payload = self._recorded(sample.logprobs, len(ids))
            text = sample.text if self._detokenizes() else self.tokenizer.decode(ids, skip_special_tokens=True)
            found.append(PseudoTarget(text.strip(), ids, logprobs, sample.finish_reason or "stop", payload))
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
        from raykd.recipe.generation import TransformersEngine as Spec

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
