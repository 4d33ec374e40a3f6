"""The endpoint engine: any server that speaks OpenAI's protocol, such as `vllm serve`.

Requests go out from one thread with an event loop, `concurrency` of them at a time, whoever asks. What passes with
time (408, 409, 429, 5xx, a lost connection) is tried again by the client, with pauses that grow to 8 s, or after as
long as the server says, up to 2 minutes.

What a request leaves out is the server's choice: `vllm serve` takes top_k and penalties from the model's own
generation_config.json unless it was started with `--generation-config vllm`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any

import numpy as np

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected
from raykd.errors import EngineError

OURS = ("model", "prompt", "messages", "stream")  # of a request's fields, what sampling.options may not set
NO_TOKENS = np.zeros(0, np.int32)
NO_LOGPROBS = np.zeros(0, np.float32)


class EndpointEngine:
    """Asks for chats where the prompt is turns as JSON, else for completions; answers are texts, without tokens.

    The tokens that it counts are those that the server says it used.
    """

    def __init__(self, opening: EngineConfig):
        import openai

        spec: Any = opening.spec
        self.opening, self.spec, self.chat = opening, spec, not opening.special_tokens
        self.key = _key(spec.api_key_env) if spec.api_key_env else None
        for name in OURS:
            if name in opening.sampling.options:
                raise EngineError(f"sampling.options: {name}: expected nothing, the engine sets it")
        self.prompt_tokens = self.output_tokens = 0
        self.next = 0.0  # when the next request may begin, by the loop's clock
        # Each try passes _paced. A redirect would carry rows to where the recipe does not point.
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._paced]}, follow_redirects=False)
        given = {"timeout": spec.timeout_seconds, "max_retries": spec.retries, "http_client": http}
        try:
            self.client = openai.AsyncOpenAI(base_url=spec.url, api_key=self.key or "none", **given)
        except Exception as error:  # httpx2.InvalidURL, which is no ValueError
            raise EngineError(f"engine.url: {spec.url}: {self._line(error)}") from None
        self.places, self.pace = asyncio.Semaphore(spec.concurrency), asyncio.Lock()
        self.closed, self.closing = False, threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="endpoint")
        self.thread.start()

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[PseudoTarget] | Rejected]:
        """As Engine.generate. That a sample depends on its seed alone is the server's to keep, as vLLM does.

        Raises EngineError for what concerns every prompt: no connection, a wrong key or model, retries used up.
        """
        return self._wait(self._all(prompts, samples, seeds or [None] * len(prompts)))

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        raise EngineError("engine: an endpoint writes answers, it cannot read given ones")

    def close(self) -> None:
        """End the thread, and what is still asked for: whoever waits for it gets an EngineError."""
        with self.closing:
            if self.closed:
                return
            self.closed = True  # so that what is asked for stands before the end in the loop's queue, or nowhere
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # ------------------------------------------------------------------------------------------- the thread

    def _wait(self, work: Coroutine) -> Any:
        """What work comes to in the thread; it is given up where the wait for it is."""
        with self.closing:
            if self.closed:
                work.close()
                raise EngineError("engine: it is closed")
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except CancelledError:
            raise EngineError("engine: it was closed before the endpoint answered") from None
        finally:
            future.cancel()

    async def _all(self, prompts: list[str], samples: range, seeds: list[Any]) -> list[list[PseudoTarget] | Rejected]:
        try:
            async with asyncio.TaskGroup() as group:  # the first error ends them all
                asked = zip(prompts, seeds, strict=True)
                tasks = [group.create_task(self._ask(prompt, samples, seed)) for prompt, seed in asked]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _end(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.client.close()

    async def _paced(self, request: Any) -> None:
        """Wait until a request may begin."""
        if self.spec.requests_per_minute is None:
            return
        async with self.pace:
            await asyncio.sleep(self.next - self.loop.time())
            self.next = max(self.next, self.loop.time()) + 60 / self.spec.requests_per_minute

    # ------------------------------------------------------------------------------------------- a request

    async def _ask(self, prompt: str, samples: range, seed: int | None) -> list[PseudoTarget] | Rejected:
        import openai

        url, settings = self.spec.url, self._settings(samples, seed)
        given: dict[str, Any] = {"messages": json.loads(prompt)} if self.chat else {"prompt": prompt}
        create: Any = self.client.chat.completions.create if self.chat else self.client.completions.create
        try:
            async with self.places:
                said = await create(**given, **settings)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):  # of this prompt alone
                return Rejected(self._line(error))
            raise EngineError(f"{url}: status {error.status_code}: {self._line(error)}{self._tried(error)}") from None
        except openai.APIError as error:
            raise EngineError(f"{url}: {self._line(error.__cause__ or error)}{self._tried(error)}") from None
        except ValueError as error:  # JSON cut short
            raise EngineError(f"{url}: no answer in OpenAI's protocol: {self._line(error)}") from None
        if isinstance(said, str):  # a page, where the address is not the protocol's
            raise EngineError(f"{url}: no answer in OpenAI's protocol: {self._line(said)}")
        return self._answers(said, samples)

    def _settings(self, samples: range, seed: int | None) -> dict[str, Any]:
        """The fields of a request beside its prompt, under the protocol's names; options are added to its body."""
        sampling = self.opening.sampling
        settings: dict[str, Any] = {"model": self.opening.model, "temperature": sampling.temperature}
        if sampling.temperature:
            settings["top_p"] = sampling.top_p
        if len(samples) > 1:
            settings["n"] = len(samples)
        if seed is not None:  # vLLM's sample i of a request has its seed + i; the whole fits 32 bits, signed
            settings["seed"] = seed % 2**30 + samples.start
        if "max_completion_tokens" not in sampling.options:  # which OpenAI's own models ask for instead
            settings["max_tokens"] = sampling.max_tokens
        # the protocol has no top_k; vLLM and others take it
        top_k = {"top_k": sampling.top_k} if sampling.top_k else {}
        return {**settings, "extra_body": {**top_k, **sampling.options}}

    def _answers(self, said: Any, samples: range) -> list[PseudoTarget] | Rejected:
        """What the server said, unless it is less than was asked for."""
        choices, sampling, used = said.choices or [], self.opening.sampling, said.usage
        read, written = (used.prompt_tokens or 0, used.completion_tokens or 0) if used else (0, 0)
        self.prompt_tokens += read
        self.output_tokens += written
        if len(choices) != len(samples):
            return Rejected(f"{len(choices)} answers, {len(samples)} were asked for")
        answers = []
        for choice in choices:
            text, reason = choice.message.content if self.chat else choice.text, choice.finish_reason
            if text is None or reason == "content_filter":
                return Rejected(f"an answer without text, or not the whole of it (finish_reason {reason})")
            answers.append(
                PseudoTarget(text.strip(), NO_TOKENS, NO_LOGPROBS, "length" if reason == "length" else "stop")
            )
        # vllm serve lowers max_tokens to what the prompt leaves of the context, without a word
        limit = sampling.options.get("max_completion_tokens", sampling.max_tokens)
        if 0 < written < limit * sum(answer.finish_reason == "length" for answer in answers):
            return Rejected(f"cut at {written} tokens: prompt of {read} + max_tokens {limit} > the model's context")
        return answers

    def _tried(self, error: Any) -> str:
        status = getattr(error, "status_code", 500)
        return f" (after {self.spec.retries} retries)" if status in (408, 409, 429) or status >= 500 else ""

    def _line(self, error: object) -> str:
        """What a server or the client says, in one line, without the key, which some servers repeat."""
        said = getattr(error, "body", None)
        said = said.get("message") or said.get("detail") if isinstance(said, dict) else said
        said = said or getattr(getattr(error, "response", None), "reason_phrase", None) or error
        text = " ".join(str(said).split()) or type(error).__name__
        return (text.replace(self.key, "<key>") if self.key else text)[:300]


def _key(name: str) -> str:
    """The key that an environment variable holds."""
    key = os.environ.get(name)
    if key is None:
        raise EngineError(f"engine.api_key_env: the environment has no {name}")
    if not re.fullmatch(r"[!-~]+", key):  # else the client fails on it, and shows it
        raise EngineError(f"engine.api_key_env: {name}: expected a key of printable ASCII characters, without blanks")
    return key
