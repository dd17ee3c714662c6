"""What surrounds every page: title, links to the other modes, two columns, and the wiring all pages share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.modes import MODES
from webui.context import QUIET, Context
from webui.form import Form
from webui.model_panel import ModelPanel
from webui.result_panel import ResultPanel
from webui.start_panel import Follower, StartPanel

STYLE = Path(__file__).with_name("style.css")
# The system's own fonts: nothing to fetch, and every script of the four languages.
FONT = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "sans-serif",
)


@contextmanager
def framed(context: Context) -> Iterator[tuple[gr.Blocks, Form, dict[Component, Follower]]]:
    """A page with header, columns, result and Start; its block puts the inputs into the left column.

    It may add followers (`StartPanel`) for what it shows of the request.
    """
    followers: dict[Component, Follower] = {}
    form = Form(MODES[context.mode], context.t, context.models, context.folders)
    title = f"{context.t(f'page.mode.{context.mode}')} - FramePack-eichi"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(header(context), elem_id="header")
        with gr.Row(elem_classes="eichi-page"):
            with gr.Column(elem_classes="eichi-form", min_width=0):
                model = ModelPanel(context, form)
                yield blocks, form, followers
                start = StartPanel(context, form, followers)
            with gr.Column(elem_classes="eichi-result", min_width=0):
                result = ResultPanel(context, form)
        result.wire(blocks)
        start.wire(result.look, result.outputs, result.seen)
        model.wire(start.look, start.outputs)
        fill_from_jobs(context, form, model, blocks)


def fill_from_jobs(context: Context, form: Form, model: ModelPanel, blocks: gr.Blocks) -> None:
    """On load the form shows the request of the job that the page shows."""
    components = sorted(form.components, key=lambda component: component._id) + model.outputs

    def fill() -> dict[Component, Any]:
        job = context.job_to_fill_from()
        if job is None:
            return model.news(form.default("model"))
        return form.write(job.asked) | model.shown(job.asked)

    blocks.load(fill, None, components, **QUIET)


def header(context: Context) -> str:
    t = context.t
    links = ""
    for mode, address in context.links.items():
        here = ' aria-current="page"' if mode == context.mode else ""
        links += f'<a href="{escape(address)}"{here}>{escape(t(f"page.mode.{mode}"))}</a>'
    return f'<header class="eichi-header"><h1>FramePack-eichi</h1><nav>{links}</nav></header>'


def theme() -> gr.themes.Base:
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.zinc,
        spacing_size=gr.themes.sizes.spacing_md,
        radius_size=gr.themes.sizes.radius_md,
        font=FONT,
        font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        body_text_color_subdued="*neutral_500",
        color_accent="*primary_600",
        slider_color="*primary_600",
    )
