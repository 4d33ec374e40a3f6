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
from typing import Any, NamedTuple

import numpy as np

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected, reject
from raykd.errors import EngineDead, EngineError
from raykd.models.files import model_folder
from raykd.models.tokenizers import encode_inputs, encode_targets, load_tokenizer
from raykd.reaper import reaper
from raykd.recipe.generation import TextPayload, TopKPayload

MARK = "RAYKD_ENGINE"  # in the environment of the engine's processes, so that none outlives the process that holds it
STARTING = 1800.0  # seconds that an engine may take to start: a large model is read, graphs are captured


@dataclass
class _Call:
    """The requests of one call, whose outputs a caller waits for."""

    outputs: list[Any]  # in order: vLLM's output, or a Rejected
    left: int
    done: Future = field(default_factory=Future)

    def finish(self, i: int, output: Any) -> None:
        self.outputs[i] = output
        self.left -= 1
        if not self.left:
            self.done.set_result(None)


class _Request(NamedTuple):
    """A request to vLLM, and the place of its output in a call."""

    ids: list[int]
    parameters: Any  # SamplingParams
    call: _Call
    place: int


class VllmEngine:
    """A vLLM engine that many calls share. Prompts go in as token ids, encoded as in training.

    One thread talks to vLLM: it hands over the requests that came since its last turn and takes the outputs that are
    finished, while the engine's own process goes on. vLLM's `AsyncLLM` does the same with a task of an event loop per
    request, for twice this process's time.
    """

    def __init__(self, config: EngineConfig):
        # vLLM reads these when it is imported, and its engine process inherits them
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self.arguments = config.engine.arguments  # type: ignore[union-attr]
        if self.arguments.get("enforce_eager"):
            # vLLM compiles its sampler even so: half a minute at every start
            os.environ["TORCHDYNAMO_DISABLE"] = "1"
        self.config = config
        self.folder = model_folder(config.model)
        self.tokenizer = load_tokenizer(self.folder)
        self.prompt_tokens = self.output_tokens = 0
        self.last_sign = time.monotonic()  # when the engine's process last gave a sign of life
        self.pending = 0  # requests without an output
        self.annotator = self._annotator()
        self.mark = uuid.uuid4().hex
        self.reaper = reaper(f"{MARK}={self.mark}")
        os.environ[MARK] = self.mark
        self.requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()  # None ends the thread
        self.failed: BaseException | None = None
        started: Future = Future()
        try:
            self._parameters(range(config.sampling.n))  # before the start, which takes long
            threading.Thread(target=self._serve, args=(started,), daemon=True, name="vllm").start()
            self.engine: Any = started.result(STARTING)
        except BaseException:
            self.close()
            raise
        self.context = self.engine.model_config.max_model_len

    # ------------------------------------------------------------------------------------- generate and score

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate."""
        rows = self._encode(prompts)
        limit = self.config.sampling.max_tokens
        results: list = [reject(len(row), "max_tokens", limit, self.context) for row in rows]
        todo = [i for i, rejected in enumerate(results) if rejected is None]
        shared = self._parameters(samples)
        requests = []
        for i in todo:
            parameters = shared
            if seeds is not None:
                parameters = shared.clone()
                parameters.seed = (seeds[i] + samples.start) % 2**32
            requests.append((rows[i], parameters))
        outputs = self._outputs(requests)
        for i, output in zip(todo, outputs, strict=True):
            results[i] = output if isinstance(output, Rejected) else self._samples(output)
        self._annotate(rows, results)
        return results

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """As Engine.score."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rows = self._encode(prompts)
        target_ids = encode_targets(self.tokenizer, targets)
        results: list = []
        for row, ids in zip(rows, target_ids, strict=True):
            length = len(row) + len(ids)
            long = Rejected(f"prompt and target of {length} tokens >= the model's context of {self.context}")
            results.append(long if length >= self.context else None if row else Rejected("the prompt has no tokens"))
        todo = [i for i, rejected in enumerate(results) if rejected is None]
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0,
            prompt_logprobs=self._width() or 0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = self._outputs([(rows[i] + target_ids[i], parameters.clone()) for i in todo])
        for i, output in zip(todo, outputs, strict=True):
            if isinstance(output, Rejected):
                results[i] = output
                continue
            self.prompt_tokens += len(rows[i]) + len(target_ids[i])
            ids = np.asarray(target_ids[i], np.int32)
            logprobs, payload = self._recorded(output.prompt_logprobs, len(ids))
            results[i] = PseudoTarget(
                text=targets[i], token_ids=ids, logprobs=logprobs, finish_reason="stop", payload=payload
            )
        samples = [result if isinstance(result, Rejected) else [result] for result in results]
        self._annotate(rows, samples)
        return [result if isinstance(result, Rejected) else result[0] for result in samples]

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
        """Whether the engine's process gave a sign of life lately, or has nothing to do."""
        return not self.pending or time.monotonic() - self.last_sign < self.config.hang_seconds

    # ------------------------------------------------------------------------------------------- the engine

    def _start(self) -> Any:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        most = max(20, self._width() or 0)  # vLLM refuses every request for more than this; its default is 20
        own = {"model": str(self.folder), "seed": self.config.seed, "disable_log_stats": True, "max_logprobs": most}
        arguments = {**own, **self.arguments}
        try:
            return LLMEngine.from_engine_args(EngineArgs(**arguments), enable_multiprocessing=True)
        except TypeError as error:
            raise EngineError(f"engine.arguments: {_option_error(error, arguments, EngineArgs)}") from None
        except (ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"vLLM does not start on {self.folder}: {str(error).splitlines()[0]}") from error

    def _serve(self, started: Future) -> None:
        """The thread that talks to vLLM, from its start to its end."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        running: dict[str, _Request] = {}
        count = 0  # of all requests
        try:
            engine = self._start()
            started.set_result(engine)
            while True:
                while not (running and self.requests.empty()):  # with nothing to do, wait
                    request = self.requests.get()
                    if request is None:
                        return
                    count += 1
                    try:
                        engine.add_request(str(count), tokens_input(request.ids), request.parameters)
                        running[str(count)] = request
                    except (ValueError, VLLMClientError) as error:  # a request that vLLM will not serve
                        request.call.finish(request.place, Rejected(str(error).splitlines()[0]))
                outputs = engine.step()
                self.last_sign = time.monotonic()  # every step passes here: the sign of life
                for output in outputs:  # final ones only, as the parameters request
                    request = running.pop(output.request_id)
                    request.call.finish(request.place, output)
        except BaseException as error:
            self.failed = error
            if not started.done():
                started.set_exception(error)

    def _outputs(self, requests: list[tuple[list[int], Any]]) -> list[Any]:
        """The engine's output for each (token ids, parameters), or a Rejected. Raises EngineDead or EngineError."""
        if not requests:
            return []
        if not self.pending:
            self.last_sign = time.monotonic()
        self.pending += len(requests)
        call = _Call([None] * len(requests), len(requests))
        for i, (ids, parameters) in enumerate(requests):
            self.requests.put(_Request(ids=ids, parameters=parameters, call=call, place=i))
        try:
            while True:
                try:
                    call.done.result(timeout=min(1.0, self.config.hang_seconds / 4))
                    return call.outputs
                except TimeoutError:
                    self._check_alive()
        finally:
            self.pending -= len(requests)

    def _check_alive(self) -> None:
        """Raises EngineDead where vLLM died or hangs, EngineError where its thread failed."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        core = self.engine.engine_core
        if core.resources.engine_dead:  # vLLM notices, but does not wake the thread that waits for it
            core.outputs_queue.put(EngineDeadError())
        failed = self.failed
        if isinstance(failed, EngineDeadError | EngineGenerateError):
            cause = failed.__cause__ or failed
            raise EngineDead(f"vLLM died: {str(cause).splitlines()[0] or type(cause).__name__}") from None
        if failed is not None:
            raise EngineError(f"vLLM: {type(failed).__name__}: {failed}") from failed
        if not self.alive():
            silent = time.monotonic() - self.last_sign
            raise EngineDead(f"vLLM hangs: nothing heard for {silent:.0f} s") from None

    # ---------------------------------------------------------------------------------- requests and outputs

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        return encode_inputs(self.tokenizer, prompts, encoder=False, special_tokens=self.config.special_tokens)

    def _width(self) -> int | None:
        """Log-probabilities per position beside that of the token itself; None where the payload has none."""
        payload = self.config.payload
        if isinstance(payload, TextPayload) and not payload.logprobs:
            return None
        return payload.k if isinstance(payload, TopKPayload) else 0

    def _detokenizes(self) -> bool:
        """Whether the engine writes texts itself, as stop strings require."""
        options = self.config.sampling.options
        return bool(options.get("detokenize", options.get("stop")))

    def _parameters(self, samples: range) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.config.sampling
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
            raise EngineError(f"sampling.options: {_option_error(error, options, SamplingParams)}") from None

    def _samples(self, output: Any) -> list[PseudoTarget]:
        self.prompt_tokens += len(output.prompt_token_ids)
        pseudo_targets = []
        for sample in output.outputs:
            ids = np.asarray(sample.token_ids, np.int32)
            self.output_tokens += len(ids)
            logprobs, payload = self._recorded(sample.logprobs, len(ids))
            text = sample.text if self._detokenizes() else self.tokenizer.decode(ids, skip_special_tokens=True)
            pseudo_targets.append(
                PseudoTarget(
                    text=text.strip(),
                    token_ids=ids,
                    logprobs=logprobs,
                    finish_reason=sample.finish_reason or "stop",
                    payload=payload,
                )
            )
        return pseudo_targets

    def _recorded(self, flat: Any, length: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log-probabilities of the last `length` tokens (T,), and their payload top_ids (T, k) and top_logprobs (T, k).

        `flat` is vLLM's flat lists; k is 0 where the payload records no other tokens.
        """
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
        if self.config.payload.kind not in ("sampled", "hidden"):
            return None
        from dataclasses import replace

        from raykd.engines.transformers import TransformersEngine
        from raykd.recipe.generation import TransformersEngine as Spec

        return TransformersEngine(replace(self.config, engine=Spec(kind="transformers")))

    def _annotate(self, rows: list[list[int]], results: list) -> None:
        """Put the annotator's payloads into the lists of pseudo-targets among the results."""
        if self.annotator is None:
            return
        places = [(i, j) for i, samples in enumerate(results) if isinstance(samples, list) for j in range(len(samples))]
        payloads = self.annotator.payloads(
            [rows[i] for i, _ in places], [results[i][j].token_ids.tolist() for i, j in places]
        )
        for (i, j), payload in zip(places, payloads, strict=True):
            results[i][j] = results[i][j]._replace(payload=payload)


def _option_error(error: Exception, options: dict[str, Any], function: type) -> str:
    """The reason why a function refuses options: the first unknown one, with the nearest name, else the error."""
    import inspect

    parameters = inspect.signature(function).parameters
    for name in options:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            return f"{name}: unknown{near and f'; did you mean {near[0]}?' or ''}"
    return str(error).splitlines()[0]
