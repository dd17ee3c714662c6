"""Test the queue: order, observers, stopping, and how much it keeps."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.queue import Jobs, Stop
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import DRAWN_SEED_LIMIT, MAX_SEED, Request
from locales import Translator
from tests.eichi_utils.helpers import changed
from tests.eichi_utils.jobs.fakes import WAIT, Fake, ending, some, views
from webui.live.progress import times


def test_jobs_run_in_order_with_their_drawn_seeds(jobs: Jobs, fake: Fake) -> None:
    """Jobs run in the order of submission, with the random seed that was drawn when they were submitted."""
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
    """A milder stop pressed after a harder one does not revive the job, and each job has a stop of its own."""
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


def test_the_current_job(held: Fake, jobs: Jobs) -> None:
    """A page shows the running job by itself, or else the newest job that ended."""
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
    """Only waiting jobs can be moved or removed; the running one keeps its place, and removing one hides no finished film."""
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
    """A batch makes a job with its own metadata for each seed, from a drawn first one, within what JSON can hold."""
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
    """At the server's end the running job stops at its step, waiting jobs are dropped, and the worker ends."""
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


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_changes_no_duration(jump: float, held: Fake, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system's clock was set in the middle of a film, pages showed "19200:00:00" or a negative time."""
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
    """Old jobs stayed in memory for the server's life. What pages list is kept, the newest failed job too."""
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
