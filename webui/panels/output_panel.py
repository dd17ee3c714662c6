"""Add the seed and the number of films, and a closed group: what is saved where, and how frames are decoded."""

from __future__ import annotations

import gradio as gr

from webui.context import Context
from webui.forms.form import Form


def seed_panel(context: Context, form: Form) -> None:
    """Add the seed, and the number of films that one Start makes with it and the seeds that follow."""
    if context.plain:
        form.number_or_empty("seed", empty=-1, elem_id="seed")
        return
    with gr.Row():
        form.number_or_empty("seed", empty=-1, elem_id="seed", min_width=160)
        form.number("batch", elem_id="batch", min_width=160)


def output_panel(context: Context, form: Form) -> None:
    """Add the closed group of output settings; a plain page has none of them."""
    if context.plain:
        return
    t = context.t
    with gr.Accordion(t("page.output"), open=False, elem_id="output"):
        form.text("output_folder", placeholder=str(context.outputs), max_lines=1, elem_id="output_folder")
        if form.has("section_stills"):
            with gr.Row():
                form.switch("keep_section_videos", elem_id="keep_section_videos")
                form.switch("section_stills", elem_id="section_stills")
            frames = {name: t(f"page.save_frames.{name}") for name in form.choices("save_frames")}
            form.choice("save_frames", frames, elem_id="save_frames")
        with gr.Row():
            if form.has("crf"):
                form.slider("crf", step=1)
            form.number_or_empty("vae_tile", elem_id="vae_tile")
        if form.has("vae_cache"):
            form.switch("vae_cache")
