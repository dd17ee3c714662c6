"""Add the one-frame page's own inputs: references with masks and time positions, and the empty context."""

from __future__ import annotations

from typing import Any

import gradio as gr

from eichi_utils.requests.single import Control
from webui.context import QUIET
from webui.forms import fields
from webui.forms.form import Form

REFERENCES = 3
PER_REFERENCE = 3
CONTEXT_CHOICES = {"auto": None, "on": True, "off": False}


def reference_panel(form: Form) -> None:
    """Add places for up to three references; each next place appears when the one before it is filled."""
    t, limits = form.t, form.field_kind("target_index")
    components, groups = [], []
    for number in range(REFERENCES):
        with gr.Group(visible=number == 0, elem_classes="eichi-reference") as group:
            with gr.Row():
                picture = fields.picture(
                    label=t("page.reference", number=number + 1),
                    placeholder=t("page.picture.placeholder"),
                    height=220,
                    elem_id=f"reference-{number}",
                )
                mask = fields.picture(label=t("page.control.mask"), placeholder=t("page.picture.placeholder"), height=220)
            index = fields.Number(
                label=t("page.control.index"),
                info=t("page.info.control_index"),
                value=Control.index,
                minimum=limits.min,
                maximum=limits.max,
                step=1,
            )
        groups.append(group)
        components += [picture, index, mask]
    form.add("controls", *components, read=_read_controls, write=_write_controls)
    pictures = components[::PER_REFERENCE]
    for number, picture in enumerate(pictures[:-1]):
        both = [picture, pictures[number + 1]]
        picture.change(_reveal, both, groups[number + 1], **QUIET)


def time_position_panel(form: Form) -> None:
    """Add the new picture's time position, and the empty context that replaces the missing history (see `SingleRequest`)."""
    t = form.t
    with gr.Row():
        form.number_or_empty("target_index", elem_id="target_index")
        form.number("rope_value")
    with gr.Accordion(t("page.context"), open=False, elem_id="context"), gr.Row():
        words = [
            (t("page.context.auto"), "auto"),
            (t("page.context.on"), "on"),
            (t("page.context.off"), "off"),
        ]
        radio = gr.Radio(words, value="auto", label=t("page.field.context_1x"), info=t("page.info.context_1x"))
        names = {value: name for name, value in CONTEXT_CHOICES.items()}
        form.add("context_1x", radio, read=CONTEXT_CHOICES.get, write=lambda value: (names[value],))
        form.switch("context_2x")
        form.switch("context_4x")


def _read_controls(*values: Any) -> list[dict[str, Any]]:
    triples = zip(values[::PER_REFERENCE], values[1::PER_REFERENCE], values[2::PER_REFERENCE], strict=True)
    return [{"image": image or "", "index": index, "mask": mask or ""} for image, index, mask in triples if image or mask]


def _write_controls(controls: tuple[Control, ...]) -> tuple:
    values: list[Any] = []
    for control in controls[:REFERENCES]:
        values += [control.image or None, control.index, control.mask or None]
    return (*values, *[None, Control.index, None] * (REFERENCES - len(controls[:REFERENCES])))


def _reveal(before: str | None, own: str | None) -> Any:
    return gr.update(visible=bool(before or own))
