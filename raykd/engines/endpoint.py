"""The endpoint engine: any server that speaks OpenAI's protocol, such as `vllm serve`.

One thread with an event loop sends the requests of all callers, `concurrency` of them at a time. The client repeats
requests that failed for a reason that may pass (408, 409, 429, 5xx, a lost connection), with pauses that grow to 8 s,
or of the length that the server states, up to 2 minutes.

Settings that a request leaves out are the server's choice: `vllm serve` takes top_k and penalties from the model's own
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

from raykd.engines.engine import EngineConfig, PseudoTarget, Rejected, text_only
from raykd.errors import EngineError
from raykd.recipe.engine_options import ENDPOINT_RESERVED


class EndpointEngine:
    """Requests chats where the prompt is turns as JSON, else completions; pseudo-targets are texts without tokens.

    The token counts are those that the server reports. Raises EngineError for a key, an option or a URL that it
    cannot use.
    """

    def __init__(self, config: EngineConfig):
        import openai

        spec: Any = config.engine
        self.config, self.spec, self.chat = config, spec, not config.special_tokens
        self.key = _key(spec.api_key_env) if spec.api_key_env else None
        for name in ENDPOINT_RESERVED:
            if name in config.sampling.options:
                raise EngineError(f"sampling.options: {name}: expected nothing, the engine sets it")
        self.prompt_tokens = self.output_tokens = 0
        self.next = 0.0  # when the next request may begin, by the loop's clock, in seconds
        # Each attempt passes _paced. A redirect would carry rows to where the recipe does not point.
        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._paced]}, follow_redirects=False)
        limits = {"timeout": spec.timeout_seconds, "max_retries": spec.retries}
        try:
            self.client = openai.AsyncOpenAI(base_url=spec.url, api_key=self.key or "none", http_client=http, **limits)
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
        """As Engine.generate. Only the server can make a sample depend on its seed alone, as vLLM does.

        Raises EngineError for an error that concerns every prompt: no connection, a wrong key or model, retries used
        up.
        """
        return self._wait(self._all(prompts, samples, seeds or [None] * len(prompts)))

    def score(self, prompts: list[str], targets: list[str]) -> list[PseudoTarget | Rejected]:
        """Raises EngineError: the protocol has no request that reads a given target."""
        raise EngineError("engine: an endpoint writes pseudo-targets, it cannot read given ones")

    def close(self) -> None:
        """End the thread and all pending requests: a caller that waits for one gets an EngineError."""
        with self.closing:
            if self.closed:
                return
            self.closed = True  # so that a request is before the end in the loop's queue, or in no queue
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # ------------------------------------------------------------------------------------------- the thread

    def _wait(self, work: Coroutine) -> Any:
        """The result of `work`, which runs in the thread; it is cancelled if the wait ends early."""
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
                tasks = [
                    group.create_task(self._request(prompt, samples, seed))
                    for prompt, seed in zip(prompts, seeds, strict=True)
                ]
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

    async def _request(self, prompt: str, samples: range, seed: int | None) -> list[PseudoTarget] | Rejected:
        import openai

        url, settings = self.spec.url, self._settings(samples, seed)
        prompt_field: dict[str, Any] = {"messages": json.loads(prompt)} if self.chat else {"prompt": prompt}
        create: Any = self.client.chat.completions.create if self.chat else self.client.completions.create
        try:
            async with self.places:
                response = await create(**prompt_field, **settings)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):  # concerns this prompt alone
                return Rejected(self._line(error))
            raise EngineError(f"{url}: status {error.status_code}: {self._line(error)}{self._retried(error)}") from None
        except openai.APIError as error:
            raise EngineError(f"{url}: {self._line(error.__cause__ or error)}{self._retried(error)}") from None
        except ValueError as error:  # JSON cut short
            raise EngineError(f"{url}: no answer in OpenAI's protocol: {self._line(error)}") from None
        if isinstance(response, str):  # a page, where the address is not the protocol's
            raise EngineError(f"{url}: no answer in OpenAI's protocol: {self._line(response)}")
        return self._samples(response, samples)

    def _settings(self, samples: range, seed: int | None) -> dict[str, Any]:
        """The fields of a request beside its prompt, under the protocol's names; options are added to its body."""
        sampling = self.config.sampling
        settings: dict[str, Any] = {"model": self.config.model, "temperature": sampling.temperature}
        if sampling.temperature:
            settings["top_p"] = sampling.top_p
        if len(samples) > 1:
            settings["n"] = len(samples)
        if seed is not None:  # vLLM's sample i of a request has its seed + i; the whole fits 32 bits, signed
            settings["seed"] = seed % 2**30 + samples.start
        if "max_completion_tokens" not in sampling.options:  # the field that OpenAI's own models require instead
            settings["max_tokens"] = sampling.max_tokens
        # the protocol has no top_k; vLLM and others take it
        top_k = {"top_k": sampling.top_k} if sampling.top_k else {}
        return {**settings, "extra_body": {**top_k, **sampling.options}}

    def _samples(self, response: Any, samples: range) -> list[PseudoTarget] | Rejected:
        """The pseudo-targets in a response, unless they are fewer or shorter than requested."""
        choices, sampling, usage = response.choices or [], self.config.sampling, response.usage
        read, written = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        self.prompt_tokens += read
        self.output_tokens += written
        if len(choices) != len(samples):
            return Rejected(f"{len(choices)} answers, {len(samples)} were asked for")
        pseudo_targets = []
        for choice in choices:
            text, reason = choice.message.content if self.chat else choice.text, choice.finish_reason
            if text is None or reason == "content_filter":
                return Rejected(f"an answer without text, or not the whole of it (finish_reason {reason})")
            pseudo_targets.append(text_only(text.strip(), "length" if reason == "length" else "stop"))
        # vllm serve lowers max_tokens to what the prompt leaves of the context, without a word
        limit = sampling.options.get("max_completion_tokens", sampling.max_tokens)
        if 0 < written < limit * sum(sample.finish_reason == "length" for sample in pseudo_targets):
            return Rejected(f"cut at {written} tokens: prompt of {read} + max_tokens {limit} > the model's context")
        return pseudo_targets

    def _retried(self, error: Any) -> str:
        """The number of retries as part of a message; empty for an error after which the client does not retry."""
        status = getattr(error, "status_code", 500)
        return f" (after {self.spec.retries} retries)" if status in (408, 409, 429) or status >= 500 else ""

    def _line(self, error: object) -> str:
        """A message of the server or the client in one line, without the key, which some servers repeat."""
        body = getattr(error, "body", None)
        message = body.get("message") or body.get("detail") if isinstance(body, dict) else body
        message = message or getattr(getattr(error, "response", None), "reason_phrase", None) or error
        text = " ".join(str(message).split()) or type(error).__name__
        return (text.replace(self.key, "<key>") if self.key else text)[:300]


def _key(name: str) -> str:
    """The key that an environment variable holds. Raises EngineError, without the key, for one that cannot be sent."""
    key = os.environ.get(name)
    if key is None:
        raise EngineError(f"engine.api_key_env: the environment has no {name}")
    if not re.fullmatch(r"[!-~]+", key):  # else the client fails on it, and shows it
        raise EngineError(f"engine.api_key_env: {name}: expected a key of printable ASCII characters, without blanks")
    return key
