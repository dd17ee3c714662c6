"""Jobs belong to the server: one worker thread runs them in order, everybody else only looks.

Whatever happens in a run or in a watcher, a job ends in exactly one way, and the next one begins. So one function here catches
everything: `attempt`.
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

# News that wait for a watcher that hangs, before more are passed over; they hold previews, some 50 KB each.
MOST_NEWS = 500
# Jobs that wait, weeks of work; and jobs that have ended and are remembered, many more than pages list. Each takes some 35 KB.
MOST_WAITING, MOST_ENDED = 1000, 500
# Of those that did not finish, so many are remembered however long ago it was: pages list them (`webui/live/history.py`).
MOST_UNFINISHED = 20
# Seconds that the end of the program waits for watchers to hear the last of it.
HEARING_SECONDS = 5.0
# Between the end of a worker that ended by itself and the next one.
PAUSE_SECONDS = 0.1
# Of the first version: what grows from there is a whole number in a browser as well, which has 53 bits for it.
VERSION_BITS = 48


class Stop:
    """How soon a running job shall end. Set by anybody, read by the driver; never falls back to a lower level."""

    def __init__(self) -> None:
        self._level = StopLevel.NONE
        self._lock = threading.Lock()

    @property
    def level(self) -> StopLevel:
        """Return how soon the job shall end; NONE while it may go on."""
        return self._level

    def request(self, level: StopLevel) -> None:
        """Have the job end as soon as this, or sooner if that was asked for already."""
        with self._lock:
            self._level = max(self._level, level)


Execute = Callable[[Request, str, Stop], Generator[Event, None, None]]


# Told of each event of each job, with the job as it is after it.
Watcher = Callable[[Job, Event], None]


def attempt(work: Callable[..., Any], *arguments: Any) -> BaseException | None:
    """Call it; what it raised, whatever that is: also an exit, or a panic inside a library."""
    try:
        work(*arguments)
    except BaseException as error:
        return error
    return None


class Listener:
    """A watcher in a thread of its own: it hears everything in order, and nothing that it does reaches anybody else."""

    def __init__(self, watcher: Watcher):
        self._watcher = watcher
        self._news: queue.Queue[tuple[Job, Event] | None] = queue.Queue(MOST_NEWS)
        # Whether it failed at the newest event, and whether it was passed over: each is logged once.
        self._failing = self._behind = False
        self._thread = threading.Thread(target=self._listen, name="eichi-watcher", daemon=True)
        self._thread.start()

    def tell(self, job: Job, event: Event) -> None:
        """Returns at once; a watcher that is far behind misses the event."""
        try:
            self._news.put_nowait((job, event))
            self._behind = False
        except queue.Full:
            if not self._behind:
                self._behind = True
                logger.warning("%s hangs, and is not told everything", type(self._watcher).__name__)

    def close(self, deadline: float) -> None:
        """Let it hear what it was told, until that moment of `time.monotonic()`."""
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
    """Submitted jobs in order of submission. `execute(request, job_id, stop)` does one and yields its events.

    The worker thread is the only place that runs `execute`, and so the only one that uses the GPU. Should it end by itself, its
    job has failed and another worker goes on.
    watchers: each is called in a thread of its own, and may raise or take as long as it likes.
    """

    def __init__(self, execute: Execute, watchers: Sequence[Watcher] = ()):
        self._execute = execute
        self._listeners = tuple(Listener(watcher) for watcher in watchers)
        self._jobs: dict[str, Job] = {}
        self._stops: dict[str, Stop] = {}
        self._changed = threading.Condition()
        # Of all that can be seen of the jobs. In another process it begins elsewhere, so that a page that was open over a new
        # start of the program does not take its own version for that of other jobs.
        self._version = secrets.randbits(VERSION_BITS)
        self._snapshot = Snapshot(NEVER).next(self._version, ())
        self._closed = self._left = False
        self._thread = threading.Thread(target=self._supervise, name="eichi-keeper", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Append a job for each film of the request's batch and return the first; a random seed is drawn now. Checks nothing of
        it: that is `request.check()`'s. Raises UserError, with nothing submitted, if too many jobs would wait."""
        films = requests_of_batch(request)
        with self._changed:
            waiting = sum(job.view.state == "waiting" for job in self._jobs.values())
            if waiting + len(films) > MOST_WAITING:
                values = {"waiting": waiting, "films": len(films), "most": MOST_WAITING}
                raise UserError([Problem("batch", "jobs_full", values)])
            submitted = time.monotonic()
            first = ""
            for one in films:
                # Of a hundred in the same millisecond two may well be equal.
                name = next(name for name in iter(new_job_id, None) if name not in self._jobs)
                first = first or name
                self._jobs[name] = Job(name, one, asked=request, batch=first, submitted=submitted, version=self._version + 1)
                self._stops[name] = Stop()
            self._forget()
            self._tell()
            return self._jobs[first]

    def get(self, job_id: str) -> Job | None:
        """The job; None for one that was never there or is forgotten."""
        with self._changed:
            return self._jobs.get(job_id)

    def all(self) -> tuple[Job, ...]:
        """Return every job that is remembered, in the order of running."""
        return self.snapshot().jobs

    def current(self) -> Job | None:
        """The running job, else the next waiting one, else the one that ended last, else None."""
        return self.snapshot().current

    def snapshot(self) -> Snapshot:
        """Return all jobs as they are, and at which version what is shown of them changed last."""
        with self._changed:
            if self._snapshot.version != self._version:
                self._snapshot = self._snapshot.next(self._version, tuple(self._jobs.values()))
            return self._snapshot

    def stop(self, level: StopLevel) -> None:
        """Stop the running job, or the next one if none has begun, and drop what waits of its batch. JOB lets it finish and
        drops every job that waits."""
        with self._changed:
            current = self.current()
            for job in self._jobs.values():
                if job.view.state == "running":
                    self._stops[job.id].request(level)
                    self._publish(job.id, replace(job.view, stopping=self._stops[job.id].level))
                elif job.view.state == "waiting" and (level == StopLevel.JOB or (current and job.batch == current.batch)):
                    self._record(job.id, Stopped(at=time.monotonic(), level=level))

    def remove(self, job_id: str) -> None:
        """Drop a waiting job; one that runs or has ended is left as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job and job.view.state == "waiting":
                self._record(job_id, Stopped(at=time.monotonic(), level=StopLevel.JOB))

    def move(self, job_id: str, places: int) -> None:
        """Let a waiting job come earlier (negative) or later among those that wait, as far as there are places."""
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
        """The job's views as they change, ending with the one that has ended. Views in between may be passed over.

        Of a job that is forgotten there is none.
        """
        version = NEVER
        while True:
            with self._changed:
                # In short waits: on Windows a Ctrl-C is not seen during a long one.
                while (job := self._jobs.get(job_id)) and job.version == version:
                    self._changed.wait(0.5)
            if job is None:
                return
            version = job.version
            yield job.view
            if job.view.ended:
                return

    def close(self, timeout: float | None = None) -> None:
        """Stop what runs, drop what waits and wait for the worker, and a little for the watchers."""
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
        """The jobs are others than before: the next version. Called with the lock."""
        self._version += 1
        self._changed.notify_all()

    def _next_job(self) -> Job | None:
        """The next waiting job, marked as running; None when closed."""
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
        """Forget the oldest of the jobs that have ended, if any; called with the lock, where jobs come and go."""
        ended = sorted((job for job in self._jobs.values() if job.view.ended), key=lambda job: job.view.now)
        unfinished = [job.id for job in ended if job.view.state != "finished"][-MOST_UNFINISHED:]
        forgotten = [job.id for job in ended[:-MOST_ENDED] if job.id not in unfinished]
        for job_id in forgotten:
            del self._jobs[job_id], self._stops[job_id]
        return bool(forgotten)

    def _supervise(self) -> None:
        """Have a worker until the last one left in order."""
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
        """After a worker that ended by itself: its job has failed."""
        logger.error("the worker ended by itself; another one goes on")
        for job in self.all():
            if job.view.state == "running":
                self._fail(job.id, (Problem("", "worker_ended"),))

    def _work(self) -> None:
        while job := self._next_job():
            self._run_to_ending(job)
        self._left = True

    def _run_to_ending(self, job: Job) -> None:
        """Run a job to its ending."""
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
        # Closed here and now: what a run has on loan or open is given back before the next one begins.
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
        """Of what comes after an ending nothing counts."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.view.ended:
                return
            job = self._publish(job_id, job.view.after(event))
            # Under the lock, so that all hear the same order.
            for listener in self._listeners:
                listener.tell(job, event)


def problems_of(error: BaseException) -> tuple[Problem, ...]:
    """What to tell the user about an exception that ended a job."""
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
