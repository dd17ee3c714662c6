"""The queue: order, observers, stopping, and that every job ends in exactly one way."""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from eichi_utils.jobs import queue as jobs_module
from eichi_utils.jobs.events import Ended, Event, Finished, Saved, Stage, Started, Step, StopLevel, Stopped
from eichi_utils.jobs.queue import Job, Jobs, Stop, problems_of
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import DRAWN_SEED_LIMIT, MAX_SEED, Request
from locales import Translator
from tests.eichi_utils.helpers import changed, found, request
from webui.live.progress import times

WAIT = 10


@dataclass
class Fake:
    """Two sections of three steps without networks. Each step waits for `go`; `fail` may raise before or after anything."""

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


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Its films lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Fake(on_disk=True)


@pytest.fixture
def held(fake: Fake) -> Fake:
    """A fake that waits for `go.release()` before each step."""
    fake.go = threading.Semaphore(0)
    return fake


@pytest.fixture
def jobs(fake: Fake) -> Iterator[Jobs]:
    jobs = Jobs(fake)
    yield jobs
    fake.go.release(10_000)
    jobs.close(WAIT)
    assert not jobs._thread.is_alive()


def some(prompt: str = "p", seed: int = 1) -> Request:
    return request("single", "nothing.png", prompt=prompt, seed=seed)


def views(jobs: Jobs, job: Job) -> list[View]:
    """All views until the job has ended; fails instead of waiting for ever."""
    seen = []
    watcher = threading.Thread(target=lambda: seen.extend(jobs.follow(job.id)), daemon=True)
    watcher.start()
    watcher.join(WAIT)
    assert not watcher.is_alive(), "the job does not end"
    return seen


def ending(jobs: Jobs, job: Job) -> View:
    return views(jobs, job)[-1]


def test_jobs_run_in_order_with_their_drawn_seeds(jobs: Jobs, fake: Fake) -> None:
    """One after the other as submitted; a random seed is drawn on submission and is the one that runs."""
    submitted = [jobs.submit(some(f"{n}", seed)) for n, seed in enumerate((-1, 0, 5, -1))]
    assert [job.request.seed for job in submitted][1:3] == [0, 5]
    assert all(0 <= job.request.seed < DRAWN_SEED_LIMIT for job in submitted)
    for job in submitted:
        assert ending(jobs, job).state == "finished"
    assert fake.done == [job.request for job in submitted]
    assert [job.id for job in jobs.all()] == [job.id for job in submitted]
    assert len({job.id for job in submitted}) == 4


def test_a_late_observer_sees_everything(jobs: Jobs, fake: Fake) -> None:
    """A page that is opened after the end, or a second one, knows files, seed, frames and state."""
    job = jobs.submit(some(seed=-1))
    early = ending(jobs, job)
    late = views(jobs, job)
    assert late == [early]
    assert jobs.get(job.id).view == early
    assert (early.state, early.files, early.frames, early.seed) == ("finished", (f"{job.id}_1.mp4",), 73, job.request.seed)
    assert early.fraction == 1.0
    assert early.film == f"{job.id}_1.mp4"
    assert early.ended
    assert early.seconds_left is None


def test_several_observers_at_once(held: Fake, jobs: Jobs) -> None:
    """Views grow for every observer, in order, and nobody takes another's."""
    job = jobs.submit(some())
    seen: list[list[View]] = [[], []]
    watchers = [threading.Thread(target=lambda box=box: box.extend(jobs.follow(job.id)), daemon=True) for box in seen]
    for watcher in watchers:
        watcher.start()
    for _ in range(6):
        assert held.at_step.acquire(timeout=WAIT)
        held.go.release()
        time.sleep(0.01)
    for watcher in watchers:
        watcher.join(WAIT)
    for box in seen:
        assert box[-1].state == "finished"
        fractions = [view.fraction for view in box]
        assert fractions == sorted(fractions)
        assert len(box) >= 2


def test_stop_now_ends_within_a_step(held: Fake, jobs: Jobs) -> None:
    """No further step is made, and the jobs that wait go on."""
    job, after = jobs.submit(some("a")), jobs.submit(some("b"))
    assert held.at_step.acquire(timeout=WAIT)
    held.go.release()
    assert held.at_step.acquire(timeout=WAIT)
    jobs.stop(StopLevel.NOW)
    assert jobs.get(job.id).view.stopping == StopLevel.NOW
    held.go.release(10_000)
    view = ending(jobs, job)
    assert (view.state, view.step, view.files) == ("stopped", 1, ())
    assert ending(jobs, after).state == "finished"


def test_stop_after_the_section_keeps_it(held: Fake, jobs: Jobs) -> None:
    """The section being sampled is finished and saved, the next one never starts; the jobs that wait go on."""
    job, after = jobs.submit(some("a")), jobs.submit(some("b"))
    assert held.at_step.acquire(timeout=WAIT)
    jobs.stop(StopLevel.SECTION)
    held.go.release(10_000)
    view = ending(jobs, job)
    assert (view.state, view.section, view.files, view.frames) == ("stopped", 0, (f"{job.id}_0.mp4",), 33)
    assert ending(jobs, after).state == "finished"


def test_stop_after_the_job_finishes_it_and_drops_the_rest(held: Fake, jobs: Jobs) -> None:
    """The running film is made whole; what waited ends as stopped without having begun."""
    job, dropped, other = (jobs.submit(some(name)) for name in "abc")
    assert held.at_step.acquire(timeout=WAIT)
    jobs.stop(StopLevel.JOB)
    held.go.release(10_000)
    assert ending(jobs, job).state == "finished"
    for waiting in (dropped, other):
        view = ending(jobs, waiting)
        assert (view.state, view.files, view.problems) == ("stopped", (), ())
    later = jobs.submit(some("d"))
    assert ending(jobs, later).state == "finished"
    assert [request.prompt for request in held.done] == ["a", "d"]


def test_a_stop_never_falls_back(held: Fake, jobs: Jobs) -> None:
    """Pressing a milder button after a harder one does not revive the job; each job has a stop of its own."""
    stop = Stop()
    for level, expected in ((1, 1), (3, 3), (2, 3), (0, 3), (1, 3)):
        stop.request(StopLevel(level))
        assert stop.level == expected
    job, after = jobs.submit(some("a")), jobs.submit(some("b"))
    assert held.at_step.acquire(timeout=WAIT)
    jobs.stop(StopLevel.NOW)
    jobs.stop(StopLevel.SECTION)
    assert jobs.get(job.id).view.stopping == StopLevel.NOW
    held.go.release(10_000)
    assert ending(jobs, job).step == 0
    assert ending(jobs, after).stopping == StopLevel.NONE


def test_stopping_when_nothing_runs_is_nothing(jobs: Jobs) -> None:
    """A click on an idle page does not stop the next job."""
    for level in StopLevel:
        jobs.stop(level)
    assert ending(jobs, jobs.submit(some())).state == "finished"


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
    """Where the folder of a film was replaced by a file in mid-run, the job failed and named files that were nowhere."""

    def fail(request: Request, point: str) -> None:
        if point == "step 1.2":
            for file in tmp_path.glob("*.mp4"):
                file.unlink()
            raise RuntimeError("nothing to go on with")

    fake.fail = fail
    view = ending(jobs, jobs.submit(some("bad")))
    assert (view.state, view.files, view.frames) == ("failed", (), 33)


class Panic(BaseException):
    """As pyo3's PanicException, which is what a panic in tokenizers or safetensors arrives as."""


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


def test_the_current_job(held: Fake, jobs: Jobs) -> None:
    """What a page shows by itself: the running job, else the newest that ended."""
    assert jobs.current() is None
    assert jobs.get("no such") is None
    first, second = jobs.submit(some("a")), jobs.submit(some("b"))
    assert held.at_step.acquire(timeout=WAIT)
    assert jobs.current().id == first.id
    assert jobs.get(second.id).view.state == "waiting"
    held.go.release(10_000)
    ending(jobs, second)
    assert jobs.current().id == second.id


def test_waiting_jobs_move_and_go(held: Fake, jobs: Jobs) -> None:
    """Only those that wait; the running one keeps its place, and what was removed does not hide what was made."""
    running, *waiting = [jobs.submit(some(name)) for name in "rabcd"]
    assert held.at_step.acquire(timeout=WAIT)
    a, b, c, d = (job.id for job in waiting)

    def order() -> list[str]:
        return [job.id for job in jobs.all() if job.view.state == "waiting"]

    for job, places, expected in (
        (c, -1, [a, c, b, d]),
        (a, 1, [c, a, b, d]),
        (d, -9, [d, c, a, b]),
        (d, -1, [d, c, a, b]),
        (c, 9, [d, a, b, c]),
        (running.id, 1, [d, a, b, c]),
        ("no such", 1, [d, a, b, c]),
    ):
        jobs.move(job, places)
        assert order() == expected
    assert jobs.all()[0].id == running.id
    for job in (c, running.id, "no such"):
        jobs.remove(job)
    assert order() == [d, a, b] and jobs.get(c).view.state == "stopped" and jobs.get(running.id).view.state == "running"
    jobs.remove(a)
    jobs.remove(b)
    held.go.release(10_000)
    ending(jobs, jobs.get(d))
    assert jobs.current().id == d


def test_a_batch_is_a_job_for_each_seed(jobs: Jobs, fake: Fake) -> None:
    """Each with its own metadata; a drawn seed is the first one's, and seeds stay within what JSON can hold."""
    first = jobs.submit(changed(some(seed=5), batch=3))
    seeds = [job.request.seed for job in jobs.all()]
    assert seeds == [5, 6, 7] and len({job.id for job in jobs.all()}) == 3
    assert {(job.request.batch, job.batch, job.asked.batch) for job in jobs.all()} == {(1, first.id, 3)}
    drawn = jobs.submit(changed(some(seed=-1), batch=2))
    seeds = [job.request.seed for job in jobs.all()][3:]
    assert seeds == [seeds[0], seeds[0] + 1] and drawn.asked.seed == -1
    jobs.submit(changed(some(seed=MAX_SEED), batch=2))
    assert [job.request.seed for job in jobs.all()][5:] == [MAX_SEED, 0]
    for job in jobs.all():
        assert ending(jobs, job).state == "finished"
    assert [request.seed for request in fake.done] == [job.request.seed for job in jobs.all()]


def test_a_hundred_films_have_a_hundred_names(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in one millisecond, two of them had the same name every other time, and one was lost."""
    numbers = itertools.count()
    monkeypatch.setattr("eichi_utils.files.paths.random.SystemRandom.randrange", lambda self, limit: next(numbers) // 2)
    jobs.submit(changed(some(), batch=100))
    assert len(jobs.all()) == 100


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (StopLevel.JOB, ["finished", "stopped", "stopped", "stopped"]),
        (StopLevel.SECTION, ["stopped", "stopped", "stopped", "finished"]),
        (StopLevel.NOW, ["stopped", "stopped", "stopped", "finished"]),
    ],
)
def test_stopping_a_batch(level: StopLevel, expected: list[str], held: Fake, jobs: Jobs) -> None:
    """No film of it begins after any stop: a batch is one thing that was started. "After this film" drops the others' jobs too,
    as it always did; after the other two what else waits goes on."""
    jobs.submit(changed(some("batch"), batch=3))
    jobs.submit(some("other"))
    running = jobs.all()[0]
    held.go.release()
    while jobs.get(running.id).view.state != "running" or not jobs.get(running.id).view.step:
        time.sleep(0.01)
    jobs.stop(level)
    held.go.release(10_000)
    assert [ending(jobs, job).state for job in jobs.all()] == expected


def test_closing_ends_everything_once(held: Fake) -> None:
    """The server's end: what runs stops at its step, what waits is dropped, the worker is gone."""
    jobs = Jobs(held)
    running, waiting = jobs.submit(some("a")), jobs.submit(some("b"))
    assert held.at_step.acquire(timeout=WAIT)
    closer = threading.Thread(target=jobs.close, args=(WAIT,))
    closer.start()
    time.sleep(0.05)
    held.go.release(10_000)
    closer.join(WAIT)
    assert not closer.is_alive()
    assert not jobs._thread.is_alive()
    assert [jobs.get(job.id).view.state for job in (running, waiting)] == ["stopped", "stopped"]
    jobs.close(WAIT)


class Heard:
    """A watcher that keeps what it was told, and then does something to it."""

    def __init__(self, then: Callable[[Event], None] = lambda event: None):
        self.events: list[tuple[str, Event]] = []
        self.then = then

    def __call__(self, job: Job, event: Event) -> None:
        self.events.append((job.id, event))
        self.then(event)

    def endings(self) -> list[tuple[str, type]]:
        return [(job, type(event)) for job, event in self.events if isinstance(event, Ended)]


class Unspeakable(Exception):
    """One that cannot even be said, as of a library whose messages are made when they are read."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), SystemExit(1), KeyboardInterrupt(), Unspeakable()], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("kind", [Event, Stage, Started, Step, Saved, Stopped, Ended])
def test_what_a_watcher_raises_reaches_nobody(error: BaseException, kind: type, held: Fake) -> None:
    """One that failed at the end of a film ended the worker for good, and the next job waited for ever; one that failed when a
    waiting job was dropped was an error of the page's. The others hear everything all the same, each job's one ending too."""

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
    """Neither the film nor the others nor the end of the program; what it was not told is not kept for ever."""
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
    """All workers' threads, whose numbers are given again; those of other tests may still wait for jobs."""
    return {thread for thread in threading.enumerate() if thread.name == "eichi-worker"}


def test_nothing_counts_after_the_ending(jobs: Jobs, fake: Fake) -> None:
    """A run that says twice how it ended has ended as it said first."""

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


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_duration(jump: float, held: Fake, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system's clock was set in the middle of a film, pages showed "19200:00:00" or less than nothing."""
    wall = itertools.count(time.time(), jump)
    monkeypatch.setattr(time, "time", lambda: next(wall))
    job = jobs.submit(some())
    seen = []
    for _ in range(6):
        assert held.at_step.acquire(timeout=WAIT)
        held.go.release()
        seen.append(jobs.get(job.id).view)
    seen.append(ending(jobs, job))
    for view in seen:
        assert 0.0 <= view.elapsed < WAIT
        assert view.seconds_left is None or 0.0 <= view.seconds_left < 10 * WAIT
        shown = times(Translator("en"), view, time.monotonic())
        assert 0.0 <= shown["elapsed"] < WAIT and shown.get("left", 0.0) < 10 * WAIT
    assert 0.0 <= time.monotonic() - job.submitted < WAIT


def test_so_many_jobs_wait_and_no_more(held: Fake, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty requests of a hundred films made eight thousand jobs, of 273 MB. Of what is too much nothing is submitted."""
    monkeypatch.setattr("eichi_utils.jobs.queue.MOST_WAITING", 5)
    jobs.submit(some())
    held.at_step.acquire(timeout=WAIT)
    jobs.submit(changed(some(), batch=4))
    with pytest.raises(UserError) as refused:
        jobs.submit(changed(some(), batch=2))
    (problem,) = refused.value.problems
    assert problem == Problem("batch", "jobs_full", {"waiting": 4, "films": 2, "most": 5})
    assert len(jobs.all()) == 5
    jobs.submit(some())
    assert len(jobs.all()) == 6


def test_jobs_of_long_ago_are_forgotten(fake: Fake, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stayed for the server's life. What pages list stays: also the newest that failed."""
    monkeypatch.setattr("eichi_utils.jobs.queue.MOST_ENDED", 3)
    monkeypatch.setattr("eichi_utils.jobs.queue.MOST_UNFINISHED", 1)

    def fail(request: Request, point: str) -> None:
        if request.prompt == "bad":
            raise RuntimeError

    fake.fail = fail
    made = [jobs.submit(some(prompt)) for prompt in ("bad", "bad", "a", "b", "c", "d")]
    for job in made:
        views(jobs, job)
    last = jobs.submit(some())
    assert ending(jobs, last).state == "finished"
    # The worker forgets when it looks for the next one.
    deadline = time.monotonic() + WAIT
    while len(jobs.all()) > 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [job.id for job in jobs.all()] == [job.id for job in (made[1], *made[4:], last)]
    assert not any(job.view.preview for job in jobs.all())
    assert jobs.get(made[0].id) is None and list(jobs.follow(made[0].id)) == []
    assert set(jobs._stops) == {job.id for job in jobs.all()}
    jobs.remove(made[0].id)
    jobs.move(made[0].id, 1)
