"""Add pictures, prompts and LoRA strength of single sections: the strip of sections, and the editor of the open one.

The values are JSON in hidden boxes in the browser, so that one editor serves a hundred sections and nothing is lost while the
server is busy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.files.safe_reading import parse_json
from eichi_utils.problems import Problem
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.request import Request
from webui.context import QUIET, Context
from webui.forms import fields
from webui.forms.action_result import clicked
from webui.forms.form import Form
from webui.gradio_compat import Block, served_copy
from webui.live import timeline
from webui.panels.metadata_panel import SectionPromptOffer
from webui.static_files import IN_BROWSER, call, element

PICTURE_HEIGHT = 200


class TimelinePanel:
    """Add the strip and the editor of sections. `pictures`: whether sections have keyframes in this mode."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        t, self.pictures = context.t, form.has("keyframes")
        gr.HTML(f'<p class="eichi-hint">{t("page.timeline.hint" if self.pictures else "page.timeline.hint_prompts")}</p>')
        request = form.kind(**form.defaults)
        if not isinstance(request, FilmRequest):
            raise TypeError(f"{form.kind.__name__} has no sections")
        self.strip = element("timeline", timeline.strip(request, t, self._url), "timeline.show", elem_id="timeline")
        # Hidden, so they have no labels.
        hidden = {"visible": "hidden", "show_label": False}
        self.prompts = gr.Textbox("{}", elem_id="section-prompts-json", **hidden)
        self.scales = gr.Textbox("{}", elem_id="section-lora-scales-json", **hidden)
        self.section = gr.Textbox("", elem_id="section-number", **hidden)
        # Outside of the editor, because gradio shows hidden components inside it when the editor is shown again.
        if self.pictures:
            self.keyframes = gr.Textbox("{}", elem_id="keyframes-json", **hidden)
            self.landed = gr.Textbox("", elem_id="section-landed", **hidden)
            self.late = gr.Textbox("", elem_id="section-late", **hidden)
        with gr.Column(visible=False, elem_id="section-editor", elem_classes="eichi-editor") as self.editor:
            self.title = gr.HTML(elem_id="section-title")
            with gr.Row(equal_height=False):
                if self.pictures:
                    self.picture = fields.picture(
                        label=t("page.field.keyframes"),
                        placeholder=t("page.picture.placeholder"),
                        height=PICTURE_HEIGHT,
                        elem_id="section-picture",
                    )
                self.prompt = gr.Textbox(
                    label=t("page.field.section_prompts"),
                    placeholder=t("page.timeline.common"),
                    lines=4,
                    max_lines=10,
                    elem_id="section-prompt",
                )
            if self.pictures:
                self.offer = SectionPromptOffer(context)
            words = {"replace": t("page.section_prompt_mode.replace"), "extend": t("page.section_prompt_mode.extend")}
            form.choice("section_prompt_mode", words, elem_id="section_prompt_mode", elem_classes="eichi-chips")
            limits = form.field_kind("section_lora_scales").each
            # `LoraPanel` shows it while LoRA are on.
            self.scale = fields.Slider(
                minimum=limits.min,
                maximum=limits.max,
                value=1.0,
                step=0.05,
                label=t("page.field.section_lora_scales"),
                info=t("page.info.section_lora_scales"),
                visible=False,
                elem_id="section-lora-scale",
            )
            if self.pictures:
                with gr.Row():
                    self.copy = gr.Button(t("page.timeline.copy"), size="sm", elem_id="copy-keyframes")
                    self.overwrite = gr.Checkbox(False, label=t("page.timeline.overwrite"), elem_id="copy-overwrite")
        form.closed |= {self.section: "", self.editor: gr.update(visible=False)}
        form.add("section_prompts", self.prompts, read=_read, write=_written, beside=self.strip)
        form.add("section_lora_scales", self.scales, read=_read, write=_written, beside=self.strip)
        self._wire()
        if self.pictures:
            form.add("keyframes", self.keyframes, read=_read, write=self._write_pictures, beside=self.strip)
            self._wire_pictures()

    def _wire(self) -> None:
        # No section is open until the clicked one's values are in the editor; otherwise they would go to the previous section.
        self.strip.click(outputs=self.section, js=call("timeline.closeSection"), **IN_BROWSER)
        data: set[Block] = {self.prompts, self.scales, *([self.keyframes] if self.pictures else [])}
        opened = [self.editor, self.title, self.prompt, self.scale, self.section]
        opened += [self.picture, *self.offer.outcome.outputs] if self.pictures else []
        self.opened = self.strip.click(self.open, data, opened, **QUIET)
        self.prompt.change(
            inputs=[self.prompt, self.section, self.prompts], outputs=self.prompts, js=call("timeline.setPrompt"), **IN_BROWSER
        )
        self.scale.change(
            inputs=[self.scale, self.section, self.scales], outputs=self.scales, js=call("timeline.setScale"), **IN_BROWSER
        )

    def _wire_pictures(self) -> None:
        picture = [self.picture, self.section, self.keyframes]
        self.picture.clear(inputs=picture, outputs=self.keyframes, js=call("timeline.removePicture"), **IN_BROWSER)
        uploaded = self.picture.upload(
            inputs=picture, outputs=[self.keyframes, self.landed], js=call("timeline.setPicture"), **IN_BROWSER
        )
        uploaded.then(self.restore, [self.landed, self.section, self.keyframes], self.picture, **QUIET)
        self.opened.then(inputs=picture, outputs=self.late, js=call("timeline.latePicture"), **IN_BROWSER)
        self.late.change(self.catch_up, [self.late, self.section, self.keyframes], self.picture, **QUIET)
        seen = [self.keyframes, self.strip, self.overwrite]
        copied = self.copy.click(inputs=seen, outputs=self.keyframes, js=call("timeline.copyKeyframes"), **IN_BROWSER)
        self.offer.wire(self.picture, uploaded, self.landed, self.section, self.prompt)
        copied.then(self._picture_of, [self.section, self.keyframes], self.picture, **QUIET)

    def open(self, values: Mapping[Component, str], event: gr.EventData) -> dict[Component, Any]:
        """Return the updates that open the clicked section in the editor."""
        section = str(clicked(event, "section"))
        text = self.t("page.timeline.section", section=section)
        prompts, scales = _read(values[self.prompts]), _read(values[self.scales])
        updates = {
            self.editor: gr.update(visible=True),
            self.title: f'<p class="eichi-hint" data-section="{escape(section)}">{escape(text)}</p>',
            self.prompt: prompts.get(section, "") if isinstance(prompts, dict) else "",
            self.scale: scales.get(section, 1.0) if isinstance(scales, dict) else 1.0,
            self.section: section,
        }
        if not self.pictures:
            return updates
        return updates | {self.picture: self._picture_of(section, values[self.keyframes])} | self.offer.outcome.nothing()

    def restore(self, landed: str, section: str, keyframes: str) -> Any:
        """Return the open section's own picture if an upload, shown in its place, belongs to another section; else no change.

        landed: the open section if the upload belongs to it, else "". section: the open one, "" while one is being opened.
        """
        return gr.skip() if landed or not section else self._picture_of(section, keyframes)

    def catch_up(self, late: str, section: str, keyframes: str) -> Any:
        """Return the open section's picture if it was uploaded while `open` ran, else no change. late: "SECTION TIME" or ""."""
        return self._picture_of(section, keyframes) if (late or "").split(" ")[0] == section else gr.skip()

    def on_change(self, request: Request | None, problems: tuple[Problem, ...]) -> dict[Component, Any]:
        """Return the update of the strip, if the request's length is valid."""
        if not isinstance(request, FilmRequest) or {problem.field for problem in problems} & {"seconds", "window"}:
            return {}
        # Cached, because most of a hundred cells show the same picture, and checking its path takes a third of a millisecond.
        return {self.strip: timeline.strip(request, self.t, cache(self._url))}

    def _picture_of(self, section: str, keyframes: str) -> str | None:
        pictures = _read(keyframes)
        path = pictures.get(section) if isinstance(pictures, dict) else None
        # The form reports a path that a browser may not name.
        return path if self.context.holds(path) else None

    def _write_pictures(self, keyframes: Mapping[int, str]) -> tuple[str]:
        return (json.dumps(_keyed({number: self._published(path) for number, path in keyframes.items()})),)

    def _published(self, path: str) -> str:
        """Return a path that browsers may name: a copy of the file if needed; an unchanged path if there is no file."""
        is_hidden = Path(path).is_file() and not self.context.holds(path)
        return served_copy(path, self.picture) if is_hidden else path

    def _url(self, path: str) -> str:
        return self.context.url(path) if path and self.context.holds(path) else ""


def _read(text: str) -> Any:
    """Return the JSON in a hidden box, or its text if it is no JSON, which the request's own parsing refuses."""
    try:
        return parse_json(text or "{}")
    except ValueError:
        return text


def _written(values: Mapping[int, Any]) -> tuple[str]:
    return (json.dumps(_keyed(values)),)


def _keyed(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(number): value for number, value in sorted(values.items())}
