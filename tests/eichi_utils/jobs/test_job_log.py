"""Test what the log says of jobs: their course and every kind of end, in every language."""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.files.folders import OutputFolders
from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.job_log import JobLog
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models.catalogue import Models
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import Problem, UserError
from eichi_utils.render.engine import Engine
from eichi_utils.user_data.log_file import FOLDER, Log
from locales import LANGUAGES, Translator
from tests.eichi_utils.helpers import SHORT, request
from tests.eichi_utils.jobs.fakes import WAIT, Fake, ending, some
from tests.eichi_utils.user_data.test_log_file import T, lines
from tests.eichi_utils.user_data.test_log_file import jobs as jobs
from tests.eichi_utils.user_data.test_log_file import log as log


def test_the_story_of_a_job(log: Log, jobs: Jobs) -> None:
    """A job's log tells what was asked for, each stage once, progress in steps of a tenth at least, the files, and the end."""
    log.apply(True, "logs")
    job = jobs.submit(some("a \u2028cat", 5))
    ending(jobs, job)
    jobs.close(WAIT)
    said = lines(log)[1:]
    assert said[0].startswith(f"Job {job.id} begins: ") and '"mode": "single"' in said[0] and '"seed": 5' in " ".join(said[:2])
    assert "2 sections of 3 steps, 73 frames, 64 × 48 px, seed 5" in said
    for section in (1, 2):
        assert said.count(f"section {section} of 2, sampling") == said.count(f"section {section} of 2, saving") == 1
    progress = [re.fullmatch(r"\[PROGRESS\] (\d+)% \(section (\d) of 2, step (\d) of 3\)", line) for line in said]
    percents = [int(match[1]) for match in progress if match]
    assert percents == sorted(percents) and percents[-1] == 100 and 3 < len(percents) <= 10
    # The end is said however soon it comes: what is left is estimated from times.
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(percents[:-1]))
    assert [f"saved {job.id}_{number}.mp4" in said for number in (0, 1)] == [True, True]
    assert re.fullmatch(rf"Job {job.id} ended after \d:\d\d: Done: 73 frames, 2.43 s", said[-1])


def test_other_ends(log: Log, tmp_path: Path) -> None:
    """The log names a job's other ends: stopped, dropped while waiting, failed with the user's reason, or a fault with its
    traceback."""
    log.apply(True, "logs")
    fake = Fake(go=threading.Semaphore(0))
    jobs = Jobs(fake, [JobLog(log, T)])
    running, waiting = jobs.submit(some()), jobs.submit(some())
    assert fake.at_step.acquire(timeout=WAIT)
    jobs.remove(waiting.id)
    jobs.stop(StopLevel.SECTION)
    fake.go.release(10_000)
    assert ending(jobs, running).state == "stopped"

    def fail(error: BaseException) -> Any:
        def raised(request: Any, point: str) -> None:
            raise error

        return raised

    fake.fail = fail(UserError([Problem("steps", "out_of_range", {"value": 0, "min": 1, "max": 100})]))
    refused = jobs.submit(some())
    ending(jobs, refused)
    fake.fail = fail(ZeroDivisionError("of all things"))
    broken = jobs.submit(some())
    ending(jobs, broken)
    jobs.close(WAIT)
    said = lines(log)
    assert f"Job {waiting.id} was dropped before it began" in said
    assert not any(line.startswith(f"Job {waiting.id} begins") for line in said)
    assert any(re.match(rf"Job {running.id} ended after .*Stopped; kept so far: 33 frames", line) for line in said)
    assert any(line.startswith("steps: 0 is") for line in said)
    assert any(re.match(rf"Job {refused.id} ended after .*Failed", line) for line in said)
    assert f"ERROR eichi_utils.jobs.queue: job {broken.id} failed" in said and "ZeroDivisionError: of all things" in said
    assert any(re.match(rf"Job {broken.id} ended after .*Failed", line) for line in said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_real_run_in_every_language(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None, language: str
) -> None:
    t = Translator(language)
    log = Log("oneframe_ichi", t, OutputFolders(tmp_path, (), FOLDER))
    log.apply(True, "logs")
    engine = Engine(Models(pool.files.models), tmp_path / "out", allowed=())
    engine.__dict__["pool"] = pool
    jobs = Jobs(engine, [JobLog(log, t)])
    job = jobs.submit(request("forward", pictures[0], prompt="猫が走る", guidance_rescale=0.5, **SHORT))
    assert ending(jobs, job).state == "finished"
    jobs.close(30)
    path = log.path
    log.close()
    said = lines(path)
    assert "猫が走る" in said[1] and '"window": 4.5' in said[1]
    for stage in ("check", "text", "vision", "encode", "load", "sample", "decode", "save"):
        assert any(line.endswith(t(f"stage.{stage}")) for line in said), stage
    assert t("notice.no_effect", name="guidance_rescale") in said
    assert any(line.endswith(f"{job.id}_6.mp4") for line in said), said
    assert any(line.startswith("[PROGRESS] 100%") for line in said)
