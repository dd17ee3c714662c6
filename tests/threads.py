"""Let PyTorch use one thread in tests of small networks, and run coroutines in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: threads of networks this small mostly wait for each other, and longest on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread of its own and return its result: Playwright leaves an event loop running in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
