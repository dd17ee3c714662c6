"""Wait for what other threads do, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Seconds that anything may take, also where the machine is busy with twenty other things.
LONG = 60.0


def until(is_so: Callable[[], Any]) -> None:
    """Wait until something is so. Raises AssertionError after LONG seconds."""
    deadline = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.005)
