"""Build the standard page, which makes a film from a picture, optionally towards a final frame. Run this file to start."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # When this file is run, Python looks for packages in its folder; the project's packages are one folder above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from eichi_utils.setup.console import leave_when_told

    leave_when_told()
    from webui.quick_start import load_gradio

    load_gradio()

import gradio as gr

from webui.context import Context
from webui.frame import page_frame
from webui.panels.input_panel import (
    PICTURE_HEIGHT,
    advanced_panel,
    final_frame_panel,
    length_panel,
    prompt_panel,
    size_panel,
)
from webui.panels.latents_panel import LatentsPanel
from webui.panels.lora_panel import LoraPanel
from webui.panels.model_panel import ModelPanel
from webui.panels.output_panel import output_panel, seed_panel
from webui.panels.timeline_panel import TimelinePanel


def page(context: Context) -> gr.Blocks:
    """Return the page of the standard mode, from its top to its bottom."""
    with page_frame(context) as (blocks, form, followers):
        with gr.Row(elem_classes="eichi-pictures"):
            form.picture("image", height=PICTURE_HEIGHT, elem_id="image")
            if not context.plain:
                form.picture("end_image", height=PICTURE_HEIGHT, elem_id="end_image")
        if not context.plain:
            final_frame_panel(form)
        prompt_panel(context, form)
        length_panel(form)
        form.model = ModelPanel(context, form)
        if not context.plain:
            size_panel(form)
            panel = TimelinePanel(context, form)
            followers[panel.strip] = panel.on_change
            LoraPanel(context, form, blocks, panel.scale)
        seed_panel(context, form)
        advanced_panel(context, form)
        output_panel(context, form)
        if not context.plain:
            latents = LatentsPanel(context, form)
            followers[latents.info] = latents.on_change
    return blocks


def main() -> None:
    """Serve all three pages, that of the standard mode at "/"."""
    from webui.app import serve

    serve("reverse", sys.argv[1:])


if __name__ == "__main__":
    main()
