"""The progress of a job as plain data for the element that shows it."""

from __future__ import annotations

from typing import Any

from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.snapshot import Job
from eichi_utils.jobs.view import View
from locales import Translator
from webui.forms import words


def progress_of(t: Translator, job: Job, page_mode: str, now: float) -> dict[str, Any]:
    """What the element shows, in words. now: the present, so that the clock goes on between two events."""
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
    """How far the job is: "Section 2 of 4, step 11 of 25"."""
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
    """How long it has taken, and how long it will take if that is known: a text with {elapsed} and {left}, and their seconds.

    runs: whether they go on.
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
