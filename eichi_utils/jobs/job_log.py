"""Write what happens to each job into the log: its request, progress, files, and how it ended."""

from __future__ import annotations

import json
from typing import Any

from eichi_utils.jobs.events import Ended, Event, Failed, Notice, Saved, Stage, Started, Step, Stopped
from eichi_utils.jobs.snapshot import Job
from eichi_utils.jobs.view import View
from eichi_utils.problems import Translate
from eichi_utils.requests.request import Request, to_json
from eichi_utils.user_data.log_file import Log

# Per cent of the whole job between two lines of progress, as in the existing program's logs.
PROGRESS_STEP = 10


class JobLog:
    """Log the events of jobs, as a watcher (`queue.Jobs`).

    One job runs at a time; a waiting job is mentioned only when it is dropped. t: returns a sentence of the log's language.
    """

    def __init__(self, log: Log, t: Translate):
        self.log, self.t = log, t
        self._job = ""
        self._stage: tuple[str, int | None] = ("", None)
        self._percent = 0

    def __call__(self, job: Job, event: Event) -> None:
        """Write the lines of an event; before a job's first event write its request."""
        if isinstance(event, Stopped) and job.id != self._job:
            self.log.say(self.t("story.dropped", job=job.id))
            return
        if job.id != self._job:
            self._job, self._stage, self._percent = job.id, ("", None), 0
            self.log.say(self.t("story.job", job=job.id, request=request_text(job.request)))
        for line in self._lines(job.view, event):
            self.log.say(line)

    def _lines(self, view: View, event: Event) -> list[str]:
        t = self.t
        match event:
            case Started():
                names = ("sections", "steps", "frames", "width", "height", "seed")
                return [t("story.size", **{name: getattr(event, name) for name in names})]
            case Stage() if (event.name, event.section) != self._stage:
                self._stage = event.name, event.section
                return [self._placed(t(f"stage.{event.name}"), event.section, view)]
            case Notice():
                return [t(f"notice.{event.key}", **event.values)]
            case Saved():
                return [t("story.saved", file=event.path)]
            case Step():
                return self._progress(view)
            case Ended():
                return [*self._progress(view), *self._end(view, event)]
        return []

    def _progress(self, view: View) -> list[str]:
        percent = int(100 * view.fraction)
        if percent < self._percent + PROGRESS_STEP and not (percent == 100 > self._percent):
            return []
        self._percent = percent
        step = self.t("cli.step", step=view.step, steps=view.steps)
        return [f"[PROGRESS] {percent}% ({self._placed(step, min(view.section, view.sections - 1), view)})"]

    def _placed(self, text: str, section: int | None, view: View) -> str:
        if section is None or not view.sections:
            return text
        return f"{self.t('cli.section', section=section + 1, sections=view.sections)}, {text}"

    def _end(self, view: View, event: Ended) -> list[str]:
        problems = event.problems if isinstance(event, Failed) else ()
        reasons = [f"{p.field}: {self.t(f'problem.{p.key}', **p.values)}".removeprefix(": ") for p in problems]
        said = self.t(f"cli.{view.state}", frames=view.frames, seconds=f"{view.film_seconds:.2f}")
        return [*reasons, self.t("story.ended", job=self._job, said=said, time=clock(view.elapsed))]


def request_text(request: Request) -> str:
    """Return a request as one line of JSON: mode, model, prompt, seed, size, steps, and the fields that are not the default."""
    usual = to_json(type(request)())
    told: dict[str, Any] = {
        name: value
        for name, value in to_json(request).items()
        if name in ("mode", "model", "prompt", "seed", "size", "steps") or value != usual[name]
    }
    return json.dumps(told, ensure_ascii=False)


def clock(seconds: float) -> str:
    """Format a duration in seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
