"""Add the left column's controls: final frame, prompt, length, resolution, and a closed group with advanced settings."""

from __future__ import annotations

import gradio as gr

from webui.context import QUIET, Context, event_of
from webui.forms.form import Form, size_labels
from webui.panels.memory_panel import reserve_panel
from webui.panels.metadata_panel import MetadataPanel
from webui.panels.presets_panel import PromptsPanel
from webui.static_files import IN_BROWSER, call

QUICK_SECONDS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30, 40)
PICTURE_HEIGHT = 240


def final_frame_panel(form: Form) -> None:
    """Add the controls of the film's end: the loop switch, and the final frame's strength once there is a final frame."""
    (picture,) = form.entries["end_image"].components
    with gr.Row(equal_height=False):
        loop = form.switch("loop", elem_id="loop", min_width=220)
        with gr.Group(visible=False) as group:
            form.slider("end_strength", step=0.01, elem_id="end_strength", min_width=220)
    seen = [picture, loop]
    changes = [event_of(picture, "change"), loop.change]
    gr.on(changes, lambda path, loop: gr.update(visible=bool(path or loop)), seen, group, **QUIET)


def prompt_panel(context: Context, form: Form) -> None:
    """Add the prompt's box, the offer of a prompt found in the start picture's metadata, and the saved prompts."""
    offer = None if context.plain else MetadataPanel(context, form, form.entries["image"].components[0])
    form.text("prompt", lines=3, max_lines=10, placeholder=form.t("page.prompt.example"), elem_id="prompt")
    if offer:
        form.wirings.append(offer.wire)
        PromptsPanel(context, form)


def length_panel(form: Form, quick: tuple[int, ...] = QUICK_SECONDS) -> None:
    """Add the film's length, one field with a slider and buttons for quick lengths. quick: these lengths in seconds."""
    t = form.t
    with gr.Group():
        seconds = form.slider("seconds", step=0.1, elem_id="seconds")
        shown = gr.Radio(
            [(t("page.seconds", seconds=seconds), seconds) for seconds in quick],
            value=form.default("seconds") if form.default("seconds") in quick else None,
            label=t("page.quick_lengths"),
            show_label=False,
            elem_id="quick",
            elem_classes="eichi-chips",
        )
    # Only the length that the slider shows is a field; the quick lengths set it and follow it.
    shown.input(inputs=[shown, seconds], outputs=seconds, js=call("length.choose"), **IN_BROWSER)
    seconds.change(inputs=seconds, outputs=shown, js=call("length.follow", quick), **IN_BROWSER)


def size_panel(form: Form) -> None:
    """Add the choices of the section's length (films only) and of the resolution."""
    t = form.t
    with gr.Row():
        if form.has("window"):
            kind = form.field_kind("window")
            labels = {window: t(kind.word("window", window)) for window in kind.choices}
            form.choice("window", labels, elem_id="window", elem_classes="eichi-chips", scale=1, min_width=150)
        form.choice("size", size_labels(form.choices("size")), elem_id="size", elem_classes="eichi-chips", scale=3)


def advanced_panel(context: Context, form: Form) -> None:
    """Add a closed group with everything that a first film does not need; a plain page has only a part of it."""
    t = context.t
    with gr.Accordion(t("page.advanced"), open=False, elem_id="advanced"):
        with gr.Row():
            form.slider("steps", step=1)
            form.slider("guidance_scale", step=0.1)
        caches = {name: t(f"page.step_cache.{name}") for name in form.choices("step_cache")}
        if context.plain:
            form.choice("step_cache", caches)
            return
        with gr.Row():
            form.choice("step_cache", caches)
            form.slider("cache_threshold", step=0.01)
        with gr.Row():
            form.slider("cfg_scale", step=0.1)
            form.slider("guidance_rescale", step=0.01)
        form.text("negative_prompt", lines=2, max_lines=6)
        with gr.Row():
            form.number_or_empty("shift")
            if form.has("padding"):
                form.number_or_empty("padding")
        form.choice("precision", {name: t(f"page.precision.{name}") for name in form.choices("precision")})
        reserve_panel(context, form)
