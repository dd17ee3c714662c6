"""A film's pictures, prompts and settings as one ZIP: out of the form, and into it."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.utils import get_upload_folder

from eichi_utils.problems import UserError
from eichi_utils.sections_zip import export_sections, import_sections
from webui import fields
from webui.context import QUIET, Context
from webui.filling import Filling
from webui.form import Form
from webui.outcome import Outcome
from webui.words import NOT_YET

# A ZIP that was made to be downloaded is of no use to anybody after this time.
KEPT_SECONDS = 3600


class SectionsPanel:
    """Export, import, and what came of it."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        t = context.t
        with gr.Row(equal_height=True):
            self.upload = fields.upload(t("page.zip.import"), "zip-upload")
            with gr.Column(min_width=220):
                ways = [(t("page.zip.replace"), "replace"), (t("page.zip.merge"), "merge")]
                self.how = fields.Radio(
                    ways,
                    value="replace",
                    label=t("page.zip.how"),
                    info=t("page.zip.how_info"),
                    elem_id="zip-how",
                    elem_classes="eichi-chips",
                )
                self.export = gr.Button(t("page.zip.export"), size="sm", elem_id="zip-export")
        self.outcome = Outcome(t, "zip-outcome")

    def wire(self, filling: Filling) -> None:
        self.filling = filling
        values = self.form.components
        self.export.click(self.make, values, self.outcome.outputs, **QUIET)
        shown = [*filling.outputs, *self.outcome.outputs]
        self.upload.upload(self.take, values | {self.upload, self.how}, [*shown, self.upload], **QUIET)
        self.outcome.box.click(self.undo, self.outcome.about, shown, **QUIET)

    def make(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """The form's ZIP, to download."""
        request, problems = self.form.read(values)
        if request is None:
            return self.outcome.refused(problem for problem in problems if problem.key not in NOT_YET)
        # What else is wrong can be mended after the import; a choice that there is none of cannot be written.
        choices = {name for name in self.form.entries if self.form.limits(name)["kind"] == "choice"}
        if wrong := [problem for problem in problems if problem.field in choices]:
            return self.outcome.refused(wrong)
        name = time.strftime("section_export_%Y%m%d_%H%M%S.zip")
        folder = _fresh_folder()
        try:
            export_sections(request, folder / name, self.t.language)
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self.outcome.offer(self.context.url(str(folder / name)), name)

    def take(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """A ZIP into the form. The place for the next is empty again; that it is emptied means nothing."""
        path = values[self.upload]
        if not path:
            return self.outcome.same()
        try:
            standing = self.filling.standing(values)
            request, notes = import_sections(Path(path), standing, values[self.how], self.context.uploads)
        except UserError as error:
            return {self.upload: None} | self.outcome.refused(error.problems)
        updates, held = self.filling.put(values, request)
        said = self.t("page.zip.imported", file=Path(path).name)
        return updates | {self.upload: None} | self.outcome.done(said, notes, held)

    def undo(self, held: Any) -> dict[Component, Any]:
        """The form as it was before the ZIP."""
        return (self.filling.back(held) if held else {}) | self.outcome.nothing()


def _fresh_folder() -> Path:
    """A new folder from which pages may serve; those of long ago go."""
    exports = Path(get_upload_folder()) / "exports"
    exports.mkdir(parents=True, exist_ok=True)
    for old in exports.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = exports / secrets.token_urlsafe(16)
    folder.mkdir()
    return folder
