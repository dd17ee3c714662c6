"""Pictures, prompts and LoRA strength of single sections: the strip, and the cell that is open for editing.

The values lie as JSON in two hidden boxes in the browser, so that one cell's components serve a hundred sections and nothing is
lost while the server is busy.
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
    """`pictures`: whether sections have keyframes in this mode."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        t, self.pictures = context.t, form.has("keyframes")
        gr.HTML(f'<p class="eichi-hint">{t("page.timeline.hint" if self.pictures else "page.timeline.hint_prompts")}</p>')
        request = form.kind(**form.defaults)
        if not isinstance(request, FilmRequest):
            raise TypeError(f"{form.kind.__name__} has no sections")
        self.strip = element("timeline", timeline.strip(request, t, self._url), "timeline.show", elem_id="timeline")
        # Never seen; a label would be for nobody.
        hidden = {"visible": "hidden", "show_label": False}
        self.prompts = gr.Textbox("{}", elem_id="section-prompts-json", **hidden)
        self.scales = gr.Textbox("{}", elem_id="section-lora-scales-json", **hidden)
        self.section = gr.Textbox("", elem_id="section-number", **hidden)
        # Not in the editor: what is hidden there shows when the editor is shown again.
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
            # The LoRA panel shows it while LoRA are on.
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
        # No section is open until the clicked one's values are in their boxes, or they would go to the section open before.
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
        """The clicked section in the editor."""
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
        """The open section's own picture, where an uploaded one went to another. None is open while one is looked up."""
        return gr.skip() if landed or not section else self._picture_of(section, keyframes)

    def catch_up(self, late: str, section: str, keyframes: str) -> Any:
        """The open section's picture that came too late for `open`."""
        return self._picture_of(section, keyframes) if (late or "").split(" ")[0] == section else gr.skip()

    def on_change(self, request: Request | None, problems: tuple[Problem, ...]) -> dict[Component, Any]:
        """The strip of a request whose length can be understood."""
        if not isinstance(request, FilmRequest) or {problem.field for problem in problems} & {"seconds", "window"}:
            return {}
        # Of a hundred cells most show the same picture, and whether it may be shown takes a third of a millisecond.
        return {self.strip: timeline.strip(request, self.t, cache(self._url))}

    def _picture_of(self, section: str, keyframes: str) -> str | None:
        pictures = _read(keyframes)
        path = pictures.get(section) if isinstance(pictures, dict) else None
        # The form says so of a path that the page has not given out.
        return path if self.context.holds(path) else None

    def _write_pictures(self, keyframes: Mapping[int, str]) -> tuple[str]:
        return (json.dumps(_keyed({number: self._published(path) for number, path in keyframes.items()})),)

    def _published(self, path: str) -> str:
        """A copy that browsers may see; the path itself where there is no file, which the checks will say."""
        is_hidden = Path(path).is_file() and not self.context.holds(path)
        return served_copy(path, self.picture) if is_hidden else path

    def _url(self, path: str) -> str:
        return self.context.url(path) if path and self.context.holds(path) else ""


def _read(text: str) -> Any:
    """A dictionary; anything else that a browser may send is left to the request's own reading, which refuses it."""
    try:
        return parse_json(text or "{}")
    except ValueError:
        return text


def _written(values: Mapping[int, Any]) -> tuple[str]:
    return (json.dumps(_keyed(values)),)


def _keyed(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(number): value for number, value in sorted(values.items())}
