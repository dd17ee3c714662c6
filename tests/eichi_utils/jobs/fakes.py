"""Run jobs without networks, and wait for their ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eichi_utils.jobs.events import Event, Finished, Saved, Stage, Started, Step, StopLevel, Stopped
from eichi_utils.jobs.queue import Job, Jobs, Stop
from eichi_utils.jobs.view import View
from eichi_utils.requests.request import Request
from tests.eichi_utils.helpers import request

WAIT = 10


@dataclass
class Fake:
    """Run two sections of three steps without networks. Each step waits for `go`; `fail` may raise at any point."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(10_000))
    at_step: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fail: Callable[[Request, str], None] = lambda request, point: None
    done: list[Request] = field(default_factory=list)
    on_disk: bool = False

    def __call__(self, request: Request, job_id: str, stop: Stop) -> Iterator[Event]:
        files = []

        def stopped() -> Stopped:
            return Stopped(at=time.monotonic(), level=stop.level, files=tuple(files))

        yield Stage(at=time.monotonic(), name="check")
        self.fail(request, "check")
        yield Started(at=time.monotonic(), sections=2, steps=3, frames=73, width=64, height=48, seed=request.seed)
        for section in range(2):
            yield Stage(at=time.monotonic(), name="sample", section=section)
            for step in range(3):
                self.at_step.release()
                assert self.go.acquire(timeout=WAIT)
                self.fail(request, f"step {section}.{step}")
                if stop.level >= StopLevel.NOW:
                    yield stopped()
                    return
                yield Step(at=time.monotonic(), section=section, step=step, preview=b"%d.%d" % (section, step))
            yield Stage(at=time.monotonic(), name="save", section=section)
            files[:] = [f"{job_id}_{section}.mp4"]
            if self.on_disk:
                Path(files[0]).touch()
            kind = "film" if section else "so_far"
            yield Saved(at=time.monotonic(), path=files[0], kind=kind, section=section, frames=33 + 40 * section)
            if stop.level >= StopLevel.SECTION and section == 0:
                yield stopped()
                return
        self.done.append(request)
        if request.prompt == "without an ending":
            return
        yield Finished(at=time.monotonic(), files=tuple(files), frames=73)
        self.fail(request, "after the ending")


def some(prompt: str = "p", seed: int = 1) -> Request:
    return request("single", "nothing.png", prompt=prompt, seed=seed)


def views(jobs: Jobs, job: Job) -> list[View]:
    """Collect all views until the job has ended; fail if that takes too long."""
    seen = []
    watcher = threading.Thread(target=lambda: seen.extend(jobs.follow(job.id)), daemon=True)
    watcher.start()
    watcher.join(WAIT)
    assert not watcher.is_alive(), "the job does not end"
    return seen


def ending(jobs: Jobs, job: Job) -> View:
    return views(jobs, job)[-1]
