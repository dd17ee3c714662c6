"""Build the one-frame page, which makes one picture some frames later, guided by references. Run this file to start."""

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
from webui.panels.input_panel import PICTURE_HEIGHT, advanced_panel, prompt_panel, size_panel
from webui.panels.lora_panel import LoraPanel
from webui.panels.model_panel import ModelPanel
from webui.panels.output_panel import output_panel, seed_panel
from webui.panels.reference_panel import reference_panel, time_position_panel


def page(context: Context) -> gr.Blocks:
    """Return the page of the one-frame mode, from its top to its bottom."""
    t = context.t
    with page_frame(context) as (blocks, form, _):
        with gr.Row(elem_classes="eichi-pictures"):
            form.picture("image", height=PICTURE_HEIGHT, elem_id="image")
        if not context.plain:
            with gr.Accordion(t("page.image_more"), open=False), gr.Row():
                form.picture("image_mask", height=220)
                form.number("image_index")
            with gr.Accordion(t("page.references"), open=False, elem_id="references"):
                reference_panel(form)
        prompt_panel(context, form)
        form.model = ModelPanel(context, form)
        if not context.plain:
            time_position_panel(form)
            size_panel(form)
            LoraPanel(context, form, blocks)
        seed_panel(context, form)
        advanced_panel(context, form)
        output_panel(context, form)
    return blocks


def main() -> None:
    """Serve all three pages, that of the one-frame mode at "/"."""
    from webui.app import serve

    serve("single", sys.argv[1:])


if __name__ == "__main__":
    main()
