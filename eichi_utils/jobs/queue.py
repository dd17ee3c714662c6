"""Queue jobs on the server: one worker thread runs them in order, pages and other observers only read their state.

Whatever happens in a run or in a watcher, a job ends in exactly one way, and the next one begins. Therefore one function here,
`attempt`, catches every exception.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from eichi_utils.files.paths import DISK_FULL, existing, new_job_id
from eichi_utils.jobs.events import Event, Failed, StopLevel, Stopped
from eichi_utils.jobs.snapshot import NEVER, Job, Snapshot
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import Request, requests_of_batch

logger = logging.getLogger(__name__)

# Most events that wait for a slow watcher; further ones are left out. Many hold a preview of some 50 KB.
MOST_NEWS = 500
# Most jobs that wait, weeks of work; and most ended jobs that are remembered, many more than pages list. Each takes some 35 KB.
MOST_WAITING, MOST_ENDED = 1000, 500
# Newest stopped or failed jobs that are remembered however long ago they ended: pages list them (`webui/live/history.py`).
MOST_UNFINISHED = 20
# Seconds that the end of the program waits for watchers to handle the last events.
HEARING_SECONDS = 5.0
# Seconds between the end of a worker that broke down and the start of the next one.
PAUSE_SECONDS = 0.1
# Bits of the first version number, so that browsers, which have 53 bits for a whole number, can count on from it exactly.
VERSION_BITS = 48


class Stop:
    """Hold how soon a running job shall end. Any thread may raise the level, and the driver reads it; it never falls."""

    def __init__(self) -> None:
        self._level = StopLevel.NONE
        self._lock = threading.Lock()

    @property
    def level(self) -> StopLevel:
        """Return how soon the job shall end; NONE if it may go on."""
        return self._level

    def request(self, level: StopLevel) -> None:
        """Raise the level to this one, unless it is higher already."""
        with self._lock:
            self._level = max(self._level, level)


Execute = Callable[[Request, str, Stop], Generator[Event, None, None]]


# Is called with each event of each job, and the job as it is after that event.
Watcher = Callable[[Job, Event], None]


def attempt(work: Callable[..., Any], *arguments: Any) -> BaseException | None:
    """Call `work` with the arguments and return what it raised, even SystemExit or a panic in a library; None if nothing."""
    try:
        work(*arguments)
    except BaseException as error:
        return error
    return None


class Listener:
    """Call a watcher in a thread of its own, with every event in order, so that its errors and delays affect nothing else."""

    def __init__(self, watcher: Watcher):
        self._watcher = watcher
        self._news: queue.Queue[tuple[Job, Event] | None] = queue.Queue(MOST_NEWS)
        # Whether it failed at the newest event, and whether it missed the newest one: each is logged once.
        self._failing = self._behind = False
        self._thread = threading.Thread(target=self._listen, name="eichi-watcher", daemon=True)
        self._thread.start()

    def tell(self, job: Job, event: Event) -> None:
        """Hand over an event and return at once; a watcher that is MOST_NEWS events behind misses it."""
        try:
            self._news.put_nowait((job, event))
            self._behind = False
        except queue.Full:
            if not self._behind:
                self._behind = True
                logger.warning("%s hangs, and is not told everything", type(self._watcher).__name__)

    def close(self, deadline: float) -> None:
        """Wait until the watcher has handled all events, at most until `deadline`, a time of `time.monotonic()`."""
        try:
            self._news.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _listen(self) -> None:
        while (news := self._news.get()) is not None:
            error = attempt(self._watcher, *news)
            if error is not None and not self._failing:
                attempt(self._report, error)
            self._failing = error is not None

    def _report(self, error: BaseException) -> None:
        logger.error("%s failed; the job goes on", type(self._watcher).__name__, exc_info=error)


class Jobs:
    """Hold the submitted jobs in the order of running, and run them in a worker thread.

    execute: `execute(request, job_id, stop)` runs a job and yields its events. Only the worker thread calls it, so only that
    thread uses the GPU. If the thread breaks down, its job has failed and another worker goes on.
    watchers: each is called in a thread of its own, and may raise or take any time.
    """

    def __init__(self, execute: Execute, watchers: Sequence[Watcher] = ()):
        self._execute = execute
        self._listeners = tuple(Listener(watcher) for watcher in watchers)
        self._jobs: dict[str, Job] = {}
        self._stops: dict[str, Stop] = {}
        self._changed = threading.Condition()
        # The version of all jobs. Each process begins with another number, so that a page that stays open while the program is
        # started anew does not take its old version for one of the new jobs.
        self._version = secrets.randbits(VERSION_BITS)
        self._snapshot = Snapshot(NEVER).next(self._version, ())
        self._closed = self._left = False
        self._thread = threading.Thread(target=self._supervise, name="eichi-keeper", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Append a job for each film of the request's batch and return the first; a random seed is drawn now.

        The request must have been checked (`request.check()`). Raises UserError, with nothing submitted, if too many jobs would
        wait.
        """
        films = requests_of_batch(request)
        with self._changed:
            waiting = sum(job.view.state == "waiting" for job in self._jobs.values())
            if waiting + len(films) > MOST_WAITING:
                values = {"waiting": waiting, "films": len(films), "most": MOST_WAITING}
                raise UserError([Problem("batch", "jobs_full", values)])
            submitted = time.monotonic()
            first = ""
            for one in films:
                # Ids are made of the time in milliseconds and random digits: among a hundred of one batch two may be equal.
                name = next(name for name in iter(new_job_id, None) if name not in self._jobs)
                first = first or name
                self._jobs[name] = Job(name, one, asked=request, batch=first, submitted=submitted, version=self._version + 1)
                self._stops[name] = Stop()
            self._forget()
            self._tell()
            return self._jobs[first]

    def get(self, job_id: str) -> Job | None:
        """Return the job with this id; None if there was none or it is forgotten."""
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> tuple[Job, ...]:
        """Return every job that is remembered, in the order of running."""
        return self.snapshot().jobs

    def current(self) -> Job | None:
        """Return the running job, else the next waiting one, else the one that ended last, else None."""
        return self.snapshot().current

    def snapshot(self) -> Snapshot:
        """Return all jobs as they are now, with the versions at which the parts that are shown changed last."""
        with self._changed:
            if self._snapshot.version != self._version:
                self._snapshot = self._snapshot.next(self._version, tuple(self._jobs.values()))
            return self._snapshot

    def stop(self, level: StopLevel) -> None:
        """Stop the running job, or the next one if none runs, and drop the waiting jobs of its batch.

        At the level JOB the running job finishes, and all waiting jobs are dropped.
        """
        with self._changed:
            current = self.current()
            for job in self._jobs.values():
                if job.view.state == "running":
                    self._stops[job.id].request(level)
                    self._publish(job.id, replace(job.view, stopping=self._stops[job.id].level))
                elif job.view.state == "waiting" and (level == StopLevel.JOB or (current and job.batch == current.batch)):
                    self._record(job.id, Stopped(at=time.monotonic(), level=level))

    def remove(self, job_id: str) -> None:
        """Drop a waiting job; a running or ended one is left as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job and job.view.state == "waiting":
                self._record(job_id, Stopped(at=time.monotonic(), level=StopLevel.JOB))

    def move(self, job_id: str, places: int) -> None:
        """Move a waiting job by so many places, earlier if negative, among the waiting jobs; at most to their first or last."""
        with self._changed:
            waiting = [job.id for job in self._jobs.values() if job.view.state == "waiting"]
            if job_id not in waiting:
                return
            to = min(max(waiting.index(job_id) + places, 0), len(waiting) - 1)
            waiting.remove(job_id)
            waiting.insert(to, job_id)
            following = iter(waiting)
            order = [next(following) if job.view.state == "waiting" else job.id for job in self._jobs.values()]
            self._jobs = {name: self._jobs[name] for name in order}
            self._tell()

    def follow(self, job_id: str) -> Iterator[View]:
        """Yield a job's views as they change, the last one after the job has ended; views in between may be left out.

        The views end early if the job is forgotten; for an unknown job there is none.
        """
        version = NEVER
        while True:
            with self._changed:
                # The waits are short because on Windows Ctrl-C is not noticed during a wait.
                while (job := self._jobs.get(job_id)) and job.version == version:
                    self._changed.wait(0.5)
            if job is None:
                return
            version = job.version
            yield job.view
            if job.view.ended:
                return

    def close(self, timeout: float | None = None) -> None:
        """Stop the running job, drop the waiting ones, and wait for the worker, then at most HEARING_SECONDS for the watchers.

        timeout: seconds to wait for the worker, None without limit.
        """
        self.stop(StopLevel.JOB)
        self.stop(StopLevel.NOW)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        deadline = time.monotonic() + HEARING_SECONDS
        for listener in self._listeners:
            listener.close(deadline)

    def _publish(self, job_id: str, view: View) -> Job:
        with self._changed:
            job = self._jobs[job_id]
            self._jobs[job_id] = replace(job, view=view, version=self._version + 1)
            self._tell()
            return self._jobs[job_id]

    def _tell(self) -> None:
        """Count the version up after a change of the jobs, and wake all who wait; the caller holds the lock."""
        self._version += 1
        self._changed.notify_all()

    def _next_job(self) -> Job | None:
        """Wait for the next waiting job, mark it as running and return it; None once closed."""
        with self._changed:
            while True:
                waiting = [job for job in self._jobs.values() if job.view.state == "waiting"]
                if self._closed:
                    return None
                if self._forget():
                    self._tell()
                if waiting:
                    now = time.monotonic()
                    self._publish(waiting[0].id, replace(waiting[0].view, state="running", started=now, now=now))
                    return waiting[0]
                self._changed.wait()

    def _forget(self) -> bool:
        """Forget the oldest ended jobs beyond MOST_ENDED, and tell whether there were any; the caller holds the lock.

        The newest MOST_UNFINISHED of those that did not finish are kept.
        """
        ended = sorted((job for job in self._jobs.values() if job.view.ended), key=lambda job: job.view.now)
        unfinished = [job.id for job in ended if job.view.state != "finished"][-MOST_UNFINISHED:]
        forgotten = [job.id for job in ended[:-MOST_ENDED] if job.id not in unfinished]
        for job_id in forgotten:
            del self._jobs[job_id], self._stops[job_id]
        return bool(forgotten)

    def _supervise(self) -> None:
        """Run workers one after another until one returns because the queue is closed."""
        while not self._left:
            attempt(self._run_worker)
            if not self._left:
                attempt(self._fail_running_job)
                time.sleep(PAUSE_SECONDS)

    def _run_worker(self) -> None:
        worker = threading.Thread(target=self._work, name="eichi-worker", daemon=True)
        worker.start()
        worker.join()

    def _fail_running_job(self) -> None:
        """Record as failed the job of a worker that broke down."""
        logger.error("the worker ended by itself; another one goes on")
        for job in self.all():
            if job.view.state == "running":
                self._fail(job.id, (Problem("", "worker_ended"),))

    def _work(self) -> None:
        while job := self._next_job():
            self._run_to_ending(job)
        self._left = True

    def _run_to_ending(self, job: Job) -> None:
        """Run a job and make sure that it ends: an exception, or a run without a last event, ends it as failed."""
        error = attempt(self._run, job)
        left = self.get(job.id)
        if error is None and left and not left.view.ended:
            error = RuntimeError("the run ended without saying how")
        if error is not None:
            problems = problems_of(error)
            if any(problem.key == "unexpected" for problem in problems):
                logger.error("job %s failed", job.id, exc_info=error)
            self._fail(job.id, problems)

    def _run(self, job: Job) -> None:
        # Closing the generator gives back what the run was lent or has open, before the next run begins.
        with closing(self._execute(job.request, job.id, self._stops[job.id])) as events:
            for event in events:
                self._record(job.id, event)

    def _fail(self, job_id: str, problems: tuple[Problem, ...]) -> None:
        if (job := self.get(job_id)) is None:
            return
        view, now = job.view, time.monotonic()
        took = now - view.started
        self._record(job_id, Failed(at=now, problems=problems, files=existing(view.files), frames=view.frames, took=took))

    def _record(self, job_id: str, event: Event) -> None:
        """Add an event to a job's view and hand it to the watchers; events after the job's end are ignored."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.view.ended:
                return
            job = self._publish(job_id, job.view.after(event))
            # Holding the lock gives all watchers the same order.
            for listener in self._listeners:
                listener.tell(job, event)


def problems_of(error: BaseException) -> tuple[Problem, ...]:
    """Return the problems that tell the user about an exception that ended a job."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return (Problem("", "disk_full"),)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return (Problem("", "out_of_memory"),)
    # torch's class is known by name here, so that this module does not import torch.
    if type(error).__name__ == "OutOfMemoryError":
        return (Problem("", "out_of_card_memory"),)
    return (Problem("", "unexpected", {"kind": type(error).__name__, "reason": str(error)[:500]}),)
