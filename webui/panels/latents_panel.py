"""Add the controls of latents: save those of the new film, and choose an earlier film's to append to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.files.latent_header import LatentInfo, latents_problem, read_info
from eichi_utils.problems import Problem
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.request import Request
from locales import Translator
from webui.context import QUIET, Context
from webui.forms import fields
from webui.forms.form import Form

FIELD = "append_latents"
# The most files of the output folder that are offered, the newest ones.
OFFERED = 50
# The most characters of a prompt in the line that describes a file.
PROMPT_LENGTH = 120


class LatentsPanel:
    """Add the group of latents to a page. `info` describes the chosen file; `on_change` updates it."""

    def __init__(self, context: Context, form: Form):
        self.context, self.t = context, context.t
        t = context.t
        with gr.Accordion(t("page.latents"), open=False, elem_id="latents"):
            form.switch("save_latents", elem_id="save_latents")
            gr.HTML(f'<p class="eichi-hint">{escape(t("page.latents.hint"))}</p>')
            self.chosen = fields.Dropdown(
                [(path.name, path.name) for path in self._recent()],
                value=None,
                label=t("page.latents.chosen"),
                elem_id="latents-chosen",
            )
            self.file = fields.File(label=t(f"page.field.{FIELD}"), height=120, elem_id=FIELD, elem_classes="eichi-drop")
            form.add(FIELD, self.file, read=lambda value: value or "", write=lambda value: (path_if_latents(value),))
            self.info = gr.HTML(elem_id="latents-info")
            with gr.Row():
                for name in ("append_trim_start", "append_trim_end", "film_trim_end"):
                    form.number(name, elem_id=name, min_width=140)
            form.slider("join_latents", step=1, elem_id="join_latents")
        # Update the list when it is opened, so that films made since the page was loaded are in it.
        self.chosen.focus(self.offer, None, self.chosen, **QUIET)
        self.chosen.input(self.choose, self.chosen, self.file, **QUIET)

    def offer(self) -> Any:
        """Return the update of the list with the newest files of latents."""
        names = [_name(path, self.context.outputs) for path in self._recent()]
        return gr.update(choices=[(name, name) for name in names])

    def choose(self, name: Any) -> str | None:
        """Return the path of the offered file with this name, None if there is none: a browser may send any name."""
        outputs = self.context.outputs
        return next((str(path) for path in self._recent() if _name(path, outputs) == name), None)

    def _recent(self) -> Sequence[Path]:
        """Return the newest files of the output folder, without unfinished ones and links to other folders."""
        return recent(self.context.outputs, self.context.holds)

    def on_change(self, request: Request | None, problems: tuple[Problem, ...]) -> dict[Component, Any]:
        """Return the update of `info` for the request's file, also if it does not fit the film.

        A file without latents gives an empty text; its problem is shown at the field.
        """
        if not isinstance(request, FilmRequest):
            return {}
        path = request.append_latents
        good = bool(path) and latents_problem(FIELD, path) is None
        return {self.info: facts(self.t, read_info(path)) if good else ""}


def recent(folder: Path, holds: Callable[[str], bool] = lambda path: True) -> Sequence[Path]:
    """Return the newest safetensors files in a folder and its subfolders, newest first, at most OFFERED.

    Whether a file holds latents is checked only when it is chosen. holds: tells whether a browser may name a path.
    """
    found = [(path.stat().st_mtime, path) for path in folder.rglob("*.safetensors") if path.is_file() and holds(str(path))]
    return [path for _, path in sorted(found, reverse=True)[:OFFERED]]


def _name(path: Path, outputs: Path) -> str:
    return path.relative_to(outputs).as_posix()


def path_if_latents(path: str) -> str | None:
    """Return the path if the file holds latents, else None.

    A request may name any file, and a file that is shown can be downloaded, so only files of latents are shown.
    """
    return path if path and latents_problem(FIELD, path) is None else None


def facts(t: Translator, info: LatentInfo) -> str:
    """Describe a file of latents as HTML: its size and length, and the seed and prompt if this program wrote it."""
    sizes = {"width": info.width, "height": info.height, "latents": info.latents, "frames": info.frames}
    lines = [t("page.latents.facts", seconds=f"{info.seconds:.2f}", **sizes)]
    if info.parts:
        lines.append(t("page.latents.parts", parts=len(info.parts)))
    if info.request:
        prompt = " ".join(str(info.request.get("prompt", "")).split())
        shown = prompt if len(prompt) <= PROMPT_LENGTH else f"{prompt[: PROMPT_LENGTH - 1]}\u2026"
        lines += [t("page.latents.seed", seed=info.request.get("seed", "?")), shown]
    text = t("page.progress.separator").join(line for line in lines if line)
    return f'<p class="eichi-hint">{escape(text)}</p>'
