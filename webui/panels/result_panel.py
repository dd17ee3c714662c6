"""Add the right column: preview, result, progress, stop buttons, queue and history.

It only shows the server's jobs, so that reloading or closing a tab, or opening a second one, does not affect them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from av.error import FFmpegError
from gradio.components import Component
from PIL import Image

from eichi_utils.exchange.metadata import read_document
from eichi_utils.exchange.named_files import FILES
from eichi_utils.exchange.video import last_frame
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.paths import written_atomically
from eichi_utils.jobs.events import StopLevel
from eichi_utils.jobs.snapshot import NEVER, Job
from eichi_utils.jobs.view import View
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import to_json
from eichi_utils.user_data.desktop import open_folder, same_machine
from webui.context import QUIET, Context
from webui.forms import words
from webui.forms.action_result import clicked
from webui.forms.form import Form
from webui.live.history import history_of
from webui.live.polling import PARTS_OF_A_PAGE
from webui.live.queue import ACTIONS, queue_of
from webui.static_files import element

# Fields of the form that a result can be used for.
USES = ("image", "end_image")
# The name that a click on the folder's button carries in place of a field.
FOLDER = "folder"


class ResultPanel:
    """Add viewer, progress, stop buttons, queue and history to a page; `refresh` brings a tab up to date."""

    def __init__(self, context: Context, form: Form):
        self.context, self.t = context, context.t
        self.uses = {name: form.entries[name].components[0] for name in USES if name in form.entries}
        t = context.t
        labels = {name: t(f"page.viewer.{name}") for name in ("empty", "preview", "so_far", "download", "folder")}
        labels["metadata"] = t("page.metadata")
        self.viewer = element("viewer", {"labels": labels}, "showViewer", elem_id="viewer")
        self.folder = gr.Textbox(
            label=t("page.output.folder_path"),
            visible=False,
            interactive=False,
            max_lines=1,
            buttons=["copy"],
            elem_id="folder-path",
        )
        self.progress = element("progress", None, "showProgress", elem_id="progress")
        film = "picture" if context.mode == "single" else "film"
        levels = {StopLevel.NOW: "now", StopLevel.SECTION: "section", StopLevel.JOB: film}
        if context.mode == "single":
            del levels[StopLevel.SECTION]
        with gr.Row(elem_classes="eichi-stops"):
            self.stops = {
                level: gr.Button(t(f"page.stop.{name}"), size="sm", interactive=False, elem_id=f"stop-{name}", min_width=90)
                for level, name in levels.items()
            }
        self.queue = element("queue", {}, "showQueue", elem_id="queue")
        self.history = element("history", {}, "showHistory", elem_id="history")
        # The version of the jobs that the tab shows.
        self.shown = gr.State(NEVER)
        self.polling = element("polling", None, "poll", elem_id="pulse", padding=False)

    @property
    def outputs(self) -> list[Component]:
        """Return the components that `refresh` may change."""
        return [self.viewer, self.queue, self.history, *self.stops.values(), self.shown, self.polling]

    def wire(self, page: gr.Blocks) -> None:
        """Connect the events, among them that of loading the page, after which it shows the current jobs."""
        page.load(partial(self.refresh, NEVER), None, self.outputs, **QUIET)
        self.polling.click(self.refresh, self.shown, self.outputs, **QUIET)
        for level, button in self.stops.items():
            stopped = button.click(partial(self.context.jobs.stop, level), None, None, **QUIET)
            stopped.then(self.refresh, self.shown, self.outputs, **QUIET)
        self.viewer.click(self.use_as_input, None, list(self.uses.values()), **QUIET)
        self.viewer.click(self.show_folder, None, self.folder, **QUIET)
        asked = self.queue.click(self.on_queue_click, None, None, **QUIET)
        asked.then(self.refresh, self.shown, self.outputs, **QUIET)

    def use_as_input(self, event: gr.EventData) -> dict[Component, Any]:
        """Put the result's picture, or its film's last frame, into the clicked field of the form. Raises UserError."""
        job = self.context.jobs.current()
        component = self.uses.get(str(clicked(event, "field")))
        # Not an empty dictionary, which gradio takes for a value.
        nothing = dict.fromkeys(self.uses.values(), gr.skip())
        if job is None or component is None or not job.view.ended or not (job.view.picture or job.view.film):
            return nothing
        made = kept = Path(job.view.picture or job.view.film)
        if not made.is_file():
            return nothing
        if not job.view.picture:
            kept = self.context.uploads / f"{made.stem}_last.png"
            kept.parent.mkdir(parents=True, exist_ok=True)
            frame = frame_of(made)
            with written_atomically(kept) as temporary:
                frame.save(temporary, "PNG")
        return {component: str(kept)}

    def show_folder(self, event: gr.EventData, asker: gr.Request) -> Any:
        """Open the result's folder on the desktop; for a browser on another machine, show its path."""
        job = self.context.jobs.current()
        if clicked(event, "field") != FOLDER or job is None or not job.view.files:
            return gr.update()
        folder = Path(job.view.files[0]).parent
        opened = same_machine(asker.client.host) and open_folder(folder)
        return gr.update(value=str(folder), visible=not opened)

    def on_queue_click(self, event: gr.EventData) -> None:
        """Remove or move the clicked waiting job; do nothing if it has begun or another tab has removed it."""
        job, action = str(clicked(event, "job")), str(clicked(event, "action"))
        if action not in ACTIONS:
            return
        if (places := ACTIONS[action]) is None:
            self.context.jobs.remove(job)
        else:
            self.context.jobs.move(job, places)

    def refresh(self, shown: int) -> dict[Component, Any]:
        """Return the updates of everything that changed since a version. shown: the version of the jobs that the tab shows."""
        seen = self.context.jobs.snapshot()
        job, now = seen.current, seen.newest(*PARTS_OF_A_PAGE)
        updates: dict[Component, Any] = {self.shown: now, self.polling: now}
        if job is None:
            return updates
        if seen.newer("queue", shown):
            updates[self.queue] = queue_of(self.t, seen.jobs)
        if seen.newer("result", shown):
            updates[self.viewer] = self._viewer(job)
        if seen.newer("history", shown):
            updates[self.history] = history_of(self.t, seen.jobs, job, self._file)
        if seen.newer("stops", shown):
            for level, button in self.stops.items():
                updates[button] = gr.update(interactive=job.view.state == "running" and level > job.view.stopping)
        return updates

    def _viewer(self, job: Job) -> dict[str, Any]:
        view = job.view
        result = view.picture or view.film
        labels = self.viewer.value["labels"]
        if view.state in ("running", "stopped", "failed"):
            # After a job without a result, the viewer must not look like that of a new page.
            labels = {**labels, "empty": self.t(f"page.viewer.{view.state}")}
        return {
            "labels": labels,
            "running": not view.ended,
            "width": view.width,
            "height": view.height,
            "film": self._file(view.film, view.frames)["url"] if view.film else "",
            "picture": self._file(view.picture)["url"] if view.picture else "",
            "result": self._file(result) if result and view.ended else None,
            "end": words.end_of(self.t.of(job.request.mode), view) if view.state in ("stopped", "failed") else "",
            "facts": self._facts(job) if result and view.ended else "",
            "metadata": self._metadata(job) if result and view.ended else [],
            "uses": {field: self.t(f"page.viewer.{_use(view)}_as_{field}") for field in self.uses},
        }

    def _file(self, path: str, frames: int = 0) -> dict[str, str]:
        # A growing film keeps its file name; a new address makes the browser load it again.
        return {
            "url": self.context.url(path) + (f"?frames={frames}" if frames else ""),
            "name": Path(path).name,
        }

    def _metadata(self, job: Job) -> list[list[str]]:
        """Return the metadata of the result's file as [label, value] pairs; those of the request if it has none."""
        try:
            document = read_document(job.view.picture or job.view.film)
        except UserError:
            document = None
        shown = document if isinstance(document, dict) else to_json(job.request)
        return words.settings_list(self.t, {name: value for name, value in shown.items() if name != FILES})

    def _facts(self, job: Job) -> str:
        view = job.view
        parts = [f"{view.width} × {view.height} px"] if view.width else []
        if view.film and view.frames:
            parts.append(self.t("page.facts.film", frames=view.frames, seconds=f"{view.film_seconds:.2f}"))
        if view.computed_steps < view.all_steps:
            parts.append(self.t("page.facts.computed", computed=view.computed_steps, steps=view.all_steps))
        seed = view.seed if view.seed != -1 else job.request.seed
        parts.append(self.t("page.facts.seed", seed=seed))
        return " · ".join(parts)


def frame_of(film: Path) -> Image.Image:
    """Return the last frame of a film. Raises UserError if it cannot be read, as when the file was replaced by another."""
    try:
        return last_frame(film)
    except FilmLimitError as error:
        raise UserError([error.problem("", film.name)]) from None
    except (OSError, ValueError, FFmpegError) as error:
        raise UserError([Problem("", "film_without_frame", {"file": film.name, "reason": str(error)[:200]})]) from None


def _use(view: View) -> str:
    return "picture" if view.picture else "last_frame"
