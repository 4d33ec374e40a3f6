"""The endpoint engine: any server that speaks OpenAI's protocol, such as `vllm serve`.

Requests go out from one thread with an event loop, `concurrency` of them at a time, whoever asks. What passes with
time (429, 5xx, a lost connection) is tried again by the client, with growing pauses or after as long as the server says.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np

from raykd.engines import Answer, Opening, Refusal
from raykd.errors import EngineError

NO_TOKENS = np.zeros(0, np.int32)
NO_LOGPROBS = np.zeros(0, np.float32)


class EndpointEngine:
    """Asks for chats where the prompt is turns as JSON, else for completions; answers are texts, without tokens."""

    def __init__(self, opening: Opening):
        from openai import AsyncOpenAI

        spec: Any = opening.spec
        key = os.environ.get(spec.api_key_env) if spec.api_key_env else "none"
        if key is None:
            raise EngineError(f"engine.api_key_env: the environment has no {spec.api_key_env}")
        self.opening, self.spec, self.chat = opening, spec, not opening.special_tokens
        self.prompt_tokens = self.output_tokens = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="endpoint").start()
        self.client = AsyncOpenAI(
            base_url=spec.url, api_key=key, max_retries=spec.retries, timeout=spec.timeout_seconds
        )
        self.places = asyncio.Semaphore(spec.concurrency)
        self.pace = asyncio.Lock()
        self.next = 0.0  # when the next request may begin, by the loop's clock

    def generate(
        self, prompts: list[str], samples: range = range(1), seeds: list[int] | None = None
    ) -> list[list[Answer] | Refusal]:
        """As Engine.generate. Raises EngineError for what concerns every prompt: no connection, a wrong key or model."""
        given = seeds or [None] * len(prompts)
        return self._wait(self._all([self._ask(p, samples, s) for p, s in zip(prompts, given, strict=True)]))

    def score(self, prompts: list[str], targets: list[str]) -> list[Answer | Refusal]:
        raise EngineError("engine: an endpoint writes answers, it cannot read given ones")

    def close(self) -> None:
        self._wait(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)

    # ------------------------------------------------------------------------------------------- requests

    def _wait(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _all(self, asked: list[Coroutine]) -> list[Any]:
        async with asyncio.TaskGroup() as group:  # the first error ends them all
            tasks = [group.create_task(one) for one in asked]
        return [task.result() for task in tasks]

    async def _ask(self, prompt: str, samples: range, seed: int | None) -> list[Answer] | Refusal:
        import openai

        sampling = self.opening.sampling
        settings: dict[str, Any] = {"model": self.opening.model, "temperature": sampling.temperature}
        settings |= {"n": len(samples)} if len(samples) > 1 else {}
        settings |= {"top_p": sampling.top_p} if sampling.top_p != 1 else {}
        settings |= {"seed": (seed + samples.start) % 2**31} if seed is not None else {}
        # what the protocol lacks, vLLM and others take beside it
        extra = {"top_k": sampling.top_k} if sampling.top_k else {}
        settings |= {"max_tokens": sampling.max_tokens, "extra_body": {**extra, **sampling.options}}
        async with self.places:
            await self._paced()
            try:
                if self.chat:
                    said = await self.client.chat.completions.create(messages=json.loads(prompt), **settings)
                    texts = [(choice.message.content, choice.finish_reason) for choice in said.choices]
                else:
                    said = await self.client.completions.create(prompt=prompt, **settings)
                    texts = [(choice.text, choice.finish_reason) for choice in said.choices]
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:  # of this prompt alone
                return Refusal(_line(error))
            except openai.APIStatusError as error:
                raise EngineError(f"{self.spec.url}: status {error.status_code}: {_line(error)}") from None
            except openai.APIError as error:
                raise EngineError(f"{self.spec.url}: {_line(error)} ({self.spec.retries} retries)") from None
        if len(texts) != len(samples):
            return Refusal(f"{len(texts)} answers, {len(samples)} were asked for")
        if said.usage:
            self.prompt_tokens += said.usage.prompt_tokens
            self.output_tokens += said.usage.completion_tokens or 0
        return [
            Answer((text or "").strip(), NO_TOKENS, NO_LOGPROBS, "length" if reason == "length" else "stop")
            for text, reason in texts
        ]

    async def _paced(self) -> None:
        """Wait until a request may begin."""
        if self.spec.requests_per_minute is None:
            return
        async with self.pace:
            await asyncio.sleep(self.next - self.loop.time())
            self.next = max(self.next, self.loop.time()) + 60 / self.spec.requests_per_minute


def _line(error: Exception) -> str:
    """What the server says, in one line; never what was sent."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return (str(said or error).splitlines() or [type(error).__name__])[0][:300]
