"""Provide a queue whose runs need no networks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eichi_utils.jobs.queue import Jobs
from tests.eichi_utils.jobs.fakes import WAIT, Fake


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a fake run that writes its films to the current folder."""
    monkeypatch.chdir(tmp_path)
    return Fake(on_disk=True)


@pytest.fixture
def held(fake: Fake) -> Fake:
    """Return a fake run that waits for `go.release()` before each step."""
    fake.go = threading.Semaphore(0)
    return fake


@pytest.fixture
def jobs(fake: Fake) -> Iterator[Jobs]:
    jobs = Jobs(fake)
    yield jobs
    fake.go.release(10_000)
    jobs.close(WAIT)
    assert not jobs._thread.is_alive()
