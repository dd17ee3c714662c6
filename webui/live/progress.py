"""Describe the progress of a job as plain data for the element that shows it."""

from __future__ import annotations

from typing import Any

from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.snapshot import Job
from eichi_utils.jobs.view import View
from locales import Translator
from webui.forms import words


def progress_of(t: Translator, job: Job, page_mode: str, now: float) -> dict[str, Any]:
    """Return the value of the progress element, in words.

    now: the present time (monotonic seconds), so that the clock goes on between two events of the job.
    """
    view = job.view
    mode = job.request.mode
    return {
        "job": job.id,
        "state": view.state,
        "fraction": view.fraction,
        "bar": view.state != "waiting" and (not view.ended or view.state == "finished"),
        "where": where(t.of(mode), view),
        "time": times(t, view, now),
        "mode": "" if mode == page_mode else t("page.progress.mode", mode=t(f"page.mode.{mode}")),
        "notices": [words.notice_sentence(t, notice) for notice in view.notices],
        "problems": [words.problem_sentence(t, problem) for problem in view.problems],
    }


def where(t: Translator, view: View) -> str:
    """Describe how far a job is, e.g. "Section 2 of 4, step 11 of 25", or how it ended."""
    if view.ended:
        return words.end_of(t, view)
    if view.state != "running":
        return t(f"page.state.{view.state}")
    if view.stopping != StopLevel.NONE:
        return t(f"page.stopping.{view.stopping.name.lower()}")
    parts = []
    if view.sections > 1 and view.sampling_since is not None:
        parts.append(t("page.progress.section", section=view.section + 1, sections=view.sections))
    if view.stage == "sample":
        parts.append(t("page.progress.step", step=view.step, steps=view.steps))
    elif view.stage:
        parts.append(t(f"stage.{view.stage}"))
    return t("page.progress.separator").join(parts) or t("page.state.running")


def times(t: Translator, view: View, now: float) -> dict[str, Any]:
    """Return how long a job has taken, and how long it will still take if that is known; {} while it waits.

    text: with the marks {elapsed} and {left} for the browser to fill. elapsed, left: in seconds. runs: whether time goes on.
    """
    if view.state == "waiting":
        return {}
    if view.ended:
        return {"text": t("page.progress.took", elapsed="{elapsed}"), "elapsed": view.elapsed, "runs": False}
    clock = {"text": t("page.progress.elapsed", elapsed="{elapsed}"), "elapsed": now - view.started, "runs": True}
    if view.seconds_left is None:
        return clock
    text = t("page.progress.separator").join([clock["text"], t("page.progress.left", left="{left}")])
    return clock | {"text": text, "left": view.seconds_left - (now - view.now)}
