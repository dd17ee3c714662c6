"""Latents (tensor data): saving a film's, and an earlier film's that come after the new one."""

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
# Files of the output folder that are offered, the newest ones.
OFFERED = 50
# Of a prompt, in the line that says what a file is.
PROMPT_LENGTH = 120


class LatentsPanel:
    """`info`: what the chosen file is; `on_change` makes it."""

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
        # Films that were made since the page was loaded are there too.
        self.chosen.focus(self.offer, None, self.chosen, **QUIET)
        self.chosen.input(self.choose, self.chosen, self.file, **QUIET)

    def offer(self) -> Any:
        """Return the update of the list with the latest files of latents."""
        names = [_name(path, self.context.outputs) for path in self._recent()]
        return gr.update(choices=[(name, name) for name in names])

    def choose(self, name: Any) -> str | None:
        """A browser may send any name; only a file that is offered is opened."""
        outputs = self.context.outputs
        return next((str(path) for path in self._recent() if _name(path, outputs) == name), None)

    def _recent(self) -> Sequence[Path]:
        """Without unfinished ones, and links that lead elsewhere."""
        return recent(self.context.outputs, self.context.holds)

    def on_change(self, request: Request | None, problems: tuple[Problem, ...]) -> dict[Component, Any]:
        """What the file is, also where it does not fit the film; what is no file of latents is said beside the field."""
        if not isinstance(request, FilmRequest):
            return {}
        path = request.append_latents
        good = bool(path) and latents_problem(FIELD, path) is None
        return {self.info: facts(self.t, read_info(path)) if good else ""}


def recent(folder: Path, holds: Callable[[str], bool] = lambda path: True) -> Sequence[Path]:
    """The newest files of latents in a folder and those below it; whether they hold latents is seen when one is chosen."""
    found = [(path.stat().st_mtime, path) for path in folder.rglob("*.safetensors") if path.is_file() and holds(str(path))]
    return [path for _, path in sorted(found, reverse=True)[:OFFERED]]


def _name(path: Path, outputs: Path) -> str:
    return path.relative_to(outputs).as_posix()


def path_if_latents(path: str) -> str | None:
    """What is shown can be downloaded, and a request from anywhere may name any file: only latents are."""
    return path if path and latents_problem(FIELD, path) is None else None


def facts(t: Translator, info: LatentInfo) -> str:
    """Size and length, and of our own files what they were made with, as HTML."""
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
