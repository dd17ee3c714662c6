"""Test that every job ends in exactly one way, whatever its run, its watchers or the worker itself do."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eichi_utils.jobs import queue as jobs_module
from eichi_utils.jobs.events import Ended, Event, Finished, Saved, Stage, Started, Step, StopLevel, Stopped
from eichi_utils.jobs.queue import Job, Jobs, Stop, problems_of
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import Request
from tests.eichi_utils.helpers import found
from tests.eichi_utils.jobs.fakes import WAIT, Fake, ending, some


@pytest.mark.parametrize("point", ["check", "step 0.0", "step 1.2"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("broken {brace}"), ("", "unexpected")),
        (UserError([Problem("image", "picture_missing", {"file": "x"})]), ("image", "picture_missing")),
        (OSError(errno.ENOSPC, "full", "a.mp4"), ("", "disk_full")),
        (MemoryError(), ("", "out_of_memory")),
    ],
)
def test_an_exception_ends_the_job_and_not_the_worker(
    error: Exception, expected: tuple, point: str, jobs: Jobs, fake: Fake
) -> None:
    """Failed with the reason in words, with the files so far; the next job runs."""

    def fail(request: Request, here: str) -> None:
        if request.prompt == "bad" and here == point:
            raise error

    fake.fail = fail
    job, after = jobs.submit(some("bad")), jobs.submit(some("good"))
    view = ending(jobs, job)
    assert view.state == "failed"
    assert found(view.problems) == {expected}
    assert view.files == ((f"{job.id}_0.mp4",) if point == "step 1.2" else ())
    assert ending(jobs, after).state == "finished"


def test_a_failed_job_names_only_files_that_are_there(jobs: Jobs, fake: Fake, tmp_path: Path) -> None:
    """If a film's folder was replaced by a file during the run, the failed job named files that did not exist."""

    def fail(request: Request, point: str) -> None:
        if point == "step 1.2":
            for file in tmp_path.glob("*.mp4"):
                file.unlink()
            raise RuntimeError("nothing to go on with")

    fake.fail = fail
    view = ending(jobs, jobs.submit(some("bad")))
    assert (view.state, view.files, view.frames) == ("failed", (), 33)


class Panic(BaseException):
    """Stand in for pyo3's PanicException, which panics in tokenizers or safetensors raise."""


@pytest.mark.parametrize("error", [SystemExit(1), Panic("called `Option::unwrap()` on a `None` value")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_not_even_these_end_the_worker(error: BaseException) -> None:
    """A library that panics or calls exit() must not leave a job running for ever and the queue standing."""
    fake = Fake()

    def fail(request: Request, here: str) -> None:
        if request.prompt == "bad" and here == "step 0.0":
            raise error

    fake.fail = fail
    jobs = Jobs(fake)
    job, after = jobs.submit(some("bad")), jobs.submit(some("good"))
    deadline = time.monotonic() + 1
    while not (jobs.get(job.id).view.ended and jobs.get(after.id).view.ended) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (jobs.get(job.id).view.state, jobs.get(after.id).view.state) == ("failed", "finished")
    jobs.close(WAIT)


def test_memory_of_the_card_is_recognised_without_importing_torch() -> None:
    """torch.OutOfMemoryError is a RuntimeError; the user must read about memory, not about a bug."""
    import torch

    assert found(problems_of(torch.OutOfMemoryError("CUDA out of memory"))) == {("", "out_of_card_memory")}
    of_the_host = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    assert found(problems_of(of_the_host)) == {("", "out_of_memory")}
    assert found(problems_of(PermissionError(errno.EACCES, "no"))) == {("", "unexpected")}
    assert found(problems_of(OSError(errno.EDQUOT, "quota"))) == {("", "disk_full")}


def test_a_run_without_an_ending_is_a_failure(jobs: Jobs) -> None:
    """A page would wait for ever for a job that just trails off."""
    job, after = jobs.submit(some("without an ending")), jobs.submit(some())
    view = ending(jobs, job)
    assert view.state == "failed"
    assert found(view.problems) == {("", "unexpected")}
    assert ending(jobs, after).state == "finished"


def test_an_exception_after_the_ending_does_not_change_it(jobs: Jobs, fake: Fake) -> None:
    """Finished stays finished, whatever cleaning up does; the next job runs."""

    def fail(request: Request, here: str) -> None:
        if here == "after the ending":
            raise RuntimeError("too late")

    fake.fail = fail
    job, after = jobs.submit(some("a")), jobs.submit(some("b"))
    assert [ending(jobs, job).state, ending(jobs, after).state] == ["finished", "finished"]
    assert jobs.get(job.id).view.state == "finished"


class Heard:
    """Keep the events that a watcher was told, then call `then`."""

    def __init__(self, then: Callable[[Event], None] = lambda event: None):
        self.events: list[tuple[str, Event]] = []
        self.then = then

    def __call__(self, job: Job, event: Event) -> None:
        self.events.append((job.id, event))
        self.then(event)

    def endings(self) -> list[tuple[str, type]]:
        return [(job, type(event)) for job, event in self.events if isinstance(event, Ended)]


class Unspeakable(Exception):
    """Raise even when it is turned into text, as errors of a library may that make their messages late."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), SystemExit(1), KeyboardInterrupt(), Unspeakable()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("kind", [Event, Stage, Started, Step, Saved, Stopped, Ended])
def test_what_a_watcher_raises_reaches_nobody(error: BaseException, kind: type, held: Fake) -> None:
    """A watcher that failed at a film's end ended the worker, and the next job waited for ever; one that failed as a waiting
    job was dropped broke the page. All other watchers are still told everything, each job's one ending too."""

    def then(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    broken, sound = Heard(then), Heard()
    jobs = Jobs(held, [broken, sound])
    first, second, removed, other = (jobs.submit(some(name)) for name in "abcd")
    assert held.at_step.acquire(timeout=WAIT)
    jobs.remove(removed.id)
    held.go.release(10_000)
    assert [ending(jobs, job).state for job in (first, second, other)] == ["finished"] * 3
    held.go = threading.Semaphore(0)
    running, dropped = jobs.submit(some("e")), jobs.submit(some("f"))
    while not jobs.get(running.id).view.sections:
        time.sleep(0.01)
    jobs.stop(StopLevel.JOB)
    jobs.stop(StopLevel.NOW)
    held.go.release(10_000)
    assert [ending(jobs, job).state for job in (running, dropped)] == ["stopped"] * 2
    jobs.close(WAIT)
    states = {first: Finished, second: Finished, removed: Stopped, other: Finished, running: Stopped, dropped: Stopped}
    for watcher in (broken, sound):
        assert sorted(watcher.endings(), key=str) == sorted(((job.id, kind) for job, kind in states.items()), key=str)
    assert broken.events == sound.events


def test_a_watcher_that_fails_is_logged_once(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """A log on a full disk fails at every step of a film."""

    def then(event: Event) -> None:
        raise OSError(errno.ENOSPC, "full")

    jobs = Jobs(fake, [Heard(then)])
    ending(jobs, jobs.submit(some()))
    jobs.close(WAIT)
    assert [record.message for record in caplog.records] == ["Heard failed; the job goes on"]


def test_a_watcher_that_hangs_holds_nobody_up(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that hangs delays neither the film, nor the other watchers, nor the program's end; its events are not kept
    for ever."""
    monkeypatch.setattr(jobs_module, "HEARING_SECONDS", 0.2)
    monkeypatch.setattr(jobs_module, "MOST_NEWS", 5)
    forever = threading.Event()
    sound = Heard()
    jobs = Jobs(fake, [Heard(lambda event: forever.wait(WAIT)), sound])
    began = time.monotonic()
    submitted = [jobs.submit(some()) for _ in range(3)]
    assert [ending(jobs, job).state for job in submitted] == ["finished"] * 3
    jobs.close(WAIT)
    assert time.monotonic() - began < 3
    forever.set()
    assert jobs._listeners[0]._news.qsize() <= 5


@pytest.mark.parametrize("point", ["check", "step 0.0", "step 1.2"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_by_itself_is_replaced(point: str, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """An exception inside of what catches all exceptions ended the worker: its job ran for ever, the queue stood, and nobody
    was told."""
    sound = Heard()

    def fail(request: Request, here: str) -> None:
        if request.prompt == "bad" and here == point:
            raise Unspeakable

    fake.fail = fail
    others = workers_now()
    jobs = Jobs(fake, [sound])
    workers = workers_now() - others
    submitted = [jobs.submit(some(prompt)) for prompt in ("bad", "good", "bad", "bad", "good")]
    found_views = []
    for job in submitted:
        found_views.append(ending(jobs, job))
        workers |= workers_now() - others
    assert [view.state for view in found_views] == ["failed", "finished", "failed", "failed", "finished"]
    assert found(found_views[0].problems) == {("", "worker_ended")}
    assert found_views[0].files == ((f"{submitted[0].id}_0.mp4",) if point == "step 1.2" else ())
    assert len(workers) >= 2
    jobs.close(WAIT)
    assert not jobs._thread.is_alive()
    assert [job for job, _ in sound.endings()] == [job.id for job in submitted]
    assert caplog.messages.count("the worker ended by itself; another one goes on") == 3
    assert {record.levelno for record in caplog.records if record.name == "eichi_utils.jobs.queue"} == {logging.ERROR}


def workers_now() -> set[threading.Thread]:
    """Return all threads of workers; those of other tests may still be waiting for jobs."""
    return {thread for thread in threading.enumerate() if thread.name == "eichi-worker"}


def test_nothing_counts_after_the_ending(jobs: Jobs, fake: Fake) -> None:
    """Events after a run's ending are ignored: the first ending counts."""

    def twice(request: Request, job_id: str, stop: Stop) -> Iterator[Event]:
        yield from fake(request, job_id, stop)
        yield Stopped(at=time.monotonic(), files=("other.mp4",))
        yield Stage(at=time.monotonic(), name="sample")

    sound = Heard()
    double = Jobs(twice, [sound])
    job = double.submit(some())
    double.submit(some())
    view = ending(double, job)
    double.close(WAIT)
    assert (view.state, view.files) == ("finished", (f"{job.id}_1.mp4",)) and double.get(job.id).view == view
    assert next(kind for _, kind in sound.endings()) is Finished and len(sound.endings()) == 2
