"""Run coroutines in virtual time, in which seconds pass only when nothing is left to do, and however busy the machine is."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Virtual seconds after which work that waits for what never comes is ended.
MOST_SECONDS = 100_000.0


class _Jumping(selectors.DefaultSelector):
    """Let the loop's clock jump to its next timer instead of waiting for it."""

    def __init__(self, loop: _Loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout:
            self._loop.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


def in_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine and return its result. It may use sockets that need no time (`socket.socketpair`), but no threads."""

    def run() -> Any:
        loop = _Loop()
        try:
            return loop.run_until_complete(asyncio.wait_for(work, MOST_SECONDS))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(1))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    # In a thread of its own: Playwright leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
