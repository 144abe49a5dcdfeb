"""Waiting for several things at once, and for requests of an engine, in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from seedmp.request import RequestHandle, RequestOutput

T = TypeVar("T")


async def finished(handle: RequestHandle) -> RequestOutput:
    """The output of a running request; cancelling the coroutine cancels the request."""
    try:
        return await asyncio.shield(asyncio.wrap_future(handle.future))
    except asyncio.CancelledError:
        handle.cancel()
        raise


async def gather(*jobs: Awaitable[T]) -> list[T]:
    """Wait for all; when one fails the others are cancelled before its error goes on."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def run_anywhere(job: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own when this one has a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job)
    with ThreadPoolExecutor(1, "seedmp-search") as executor:
        return executor.submit(asyncio.run, job).result()
