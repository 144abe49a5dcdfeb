"""The engine for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from seedmp.checks import shown
from seedmp.client.encode import Prompt
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.request import RequestOutput, StreamChunk
from seedmp.sampling import SamplingParams


class AsyncEngine:
    """``Engine`` with coroutines; an async context manager.

    Args and errors are those of ``Engine``. Starting blocks, so use ``await AsyncEngine.start(...)``
    inside a running loop.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Engine):
            raise ConfigError(f"engine={shown(engine)}: must be an Engine; `await AsyncEngine.start(...)` opens one")
        self.engine = engine

    @classmethod
    async def start(
        cls,
        target: str | os.PathLike[str] | None = None,
        draft: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> AsyncEngine:
        """Start an engine without blocking the loop."""
        return cls(await asyncio.to_thread(Engine, target, draft, **settings))

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        user: str = "",
    ) -> list[RequestOutput]:
        """As ``Engine.generate``; cancelling the task cancels the requests."""
        params = SamplingParams.of(params)
        handles = self.engine.submit_each(prompts, params, priority=priority, user=user)
        try:
            outputs = list(await asyncio.gather(*(asyncio.wrap_future(handle.future) for handle in handles)))
        finally:
            for handle in handles:
                handle.cancel()
        if params.best_of is None:
            return outputs
        groups = [outputs[i : i + params.best_of] for i in range(0, len(outputs), params.best_of)]
        best = [await asyncio.to_thread(self.engine.likeliest, group, params.n) for group in groups]
        return [out for group in best for out in group]

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0, user: str = ""
    ) -> AsyncIterator[StreamChunk]:
        """As ``Engine.stream``."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[StreamChunk | None] = asyncio.Queue()
        handle = self.engine.submit(prompt, params, priority=priority, user=user)

        def hand_over(chunk: StreamChunk | None) -> None:
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:  # the loop was closed, so nobody reads any more
                handle.cancel()

        handle.listen(hand_over)
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            handle.future.result(0)
        finally:
            handle.cancel()

    async def close(self) -> None:
        """As ``Engine.close``."""
        await asyncio.to_thread(self.engine.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
