"""List the jobs that wait: a line for each, with buttons to move or remove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eichi_utils.jobs.snapshot import Job
from eichi_utils.requests.plan import FPS
from locales import Translator

NAME_LENGTH = 80
# Action of a button -> places that the job moves in the queue, or None to remove it.
ACTIONS = {"up": -1, "down": 1, "remove": None}


def queue_of(t: Translator, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the value of the queue's element: the jobs that wait."""
    waiting = [job for job in jobs if job.view.state == "waiting"]
    return {
        "title": t("page.progress.waiting", jobs=len(waiting)),
        "labels": {action: t(f"page.queue.{action}") for action in ACTIONS},
        "jobs": [{"id": job.id, "name": name_of(job), "facts": facts_of(t, job)} for job in waiting],
    }


def name_of(job: Job) -> str:
    """Return the beginning of a job's prompt, at most NAME_LENGTH characters, as its name."""
    text = " ".join(job.request.prompt.split())
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 1]}\u2026"


def facts_of(t: Translator, job: Job) -> str:
    """Return a job's mode and, for a film, its length in words."""
    mode = t(f"page.mode.{job.request.mode}")
    plan = job.request.plan()
    return mode if plan.output == "picture" else f"{mode}, {t('page.seconds', seconds=f'{plan.frames / FPS:.1f}')}"
