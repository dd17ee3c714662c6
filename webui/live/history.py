"""List the jobs that have ended since the server started, newest first: how and why each ended, and its result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eichi_utils.jobs.snapshot import Job
from locales import Translator
from webui.forms import words
from webui.live.queue import facts_of, name_of

# The newest ended jobs that are listed, and the older ones that did not finish, listed after them.
MOST, MOST_UNFINISHED = 20, 20
# Signs before the words, so that the kind of end is visible without colour.
MARKS = MappingProxyType({"finished": "\u2713", "stopped": "\u25a0", "failed": "\u2715"})


def history_of(t: Translator, jobs: Sequence[Job], shown: Job | None, file: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    """Return the value of the history's element: the jobs that have ended, without the one that the page shows large.

    shown: that one. file: path of a result -> its address and name.
    """
    ended = [job for job in jobs if job.view.ended and job is not shown]
    ended.sort(key=lambda job: job.view.now, reverse=True)
    counts = Counter(job.view.state for job in ended)
    parts = [t(f"page.history.{state}", jobs=counts[state]) for state in MARKS if counts[state]]
    unfinished = [job for job in ended[MOST:] if job.view.state != "finished"]
    return {
        "title": t("page.history", counts=t("page.progress.separator").join(parts)),
        "jobs": [_entry(t, job, file) for job in [*ended[:MOST], *unfinished[:MOST_UNFINISHED]]],
    }


def _entry(t: Translator, job: Job, file: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    view, own = job.view, t.of(job.request.mode)
    result = view.picture or view.film
    return {
        "id": job.id,
        "state": view.state,
        "mark": MARKS[view.state],
        "end": words.end_of(own, view),
        "why": [words.problem_sentence(own, problem) for problem in view.problems],
        "name": name_of(job),
        "facts": facts_of(t, job),
        "file": file(result) if result and Path(result).is_file() else None,
    }
