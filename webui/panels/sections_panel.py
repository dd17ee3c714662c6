"""Export a film's pictures, prompts and settings from the form as one ZIP file, and import such a file."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gradio as gr
from gradio.components import Component

from eichi_utils.exchange.section_zip import export_sections, import_sections
from eichi_utils.problems import UserError
from eichi_utils.requests.kinds import Choice
from eichi_utils.user_data.passing import need_room
from webui.context import QUIET, Context
from webui.forms import fields
from webui.forms.action_result import ActionResult
from webui.forms.form import Form
from webui.forms.form_updates import FormUpdates
from webui.forms.words import NOT_YET
from webui.gradio_compat import upload_folder

# Exported ZIP files are deleted after this time in seconds, and beyond this number.
KEPT_SECONDS = 3600
MOST_KEPT = 20
PIECE = 2**20


class SectionsPanel:
    """Add the controls of export and import, and show their results."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form, self.t = context, form, context.t
        # The key of the hash in a ZIP's address, so that knowing its content does not reveal the address.
        self._secret = secrets.token_bytes()
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
        self.outcome = ActionResult(t, "zip-outcome")

    def wire(self, form_updates: FormUpdates) -> None:
        """Connect the events, once the form has all its fields."""
        self.form_updates = form_updates
        values = self.form.components
        self.export.click(self.export_zip, values, self.outcome.outputs, **QUIET)
        shown = [*form_updates.outputs, *self.outcome.outputs]
        self.upload.upload(self.import_zip, values | {self.upload, self.how}, [*shown, self.upload], **QUIET)
        self.outcome.box.click(self.undo, self.outcome.about, shown, **QUIET)

    def export_zip(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Export the form's request as a ZIP, and offer it as a download."""
        request, problems = self.form.read(values)
        if request is None:
            return self.outcome.refused(problem for problem in problems if problem.key not in NOT_YET)
        # Other wrong values can be corrected after the import, but an invalid choice cannot be written into the ZIP.
        choices = {name for name in self.form.entries if isinstance(self.form.field_kind(name), Choice)}
        if wrong := [problem for problem in problems if problem.field in choices]:
            return self.outcome.refused(wrong)
        name = time.strftime("section_export_%Y%m%d_%H%M%S.zip")
        try:
            need_room(upload_folder())
            folder = _fresh_folder()
            export_sections(request, folder / name, self.t.language)
        except UserError as error:
            return self.outcome.refused(error.problems)
        made = self._once(folder / name)
        return self.outcome.offer(self.context.url(str(made)), made.name)

    def _once(self, made: Path) -> Path:
        """Return the path at which an exported ZIP stays; an earlier ZIP with the same content is used again.

        made: the new ZIP, in a folder of its own.
        """
        place = made.parent.with_name(content_of(made, self._secret))
        with suppress(OSError):
            made.parent.rename(place)
            return place / made.name
        # An equal ZIP is there already; its age is counted from now.
        with suppress(OSError, StopIteration):
            earlier = next(place.iterdir())
            os.utime(earlier)
            os.utime(place)
            shutil.rmtree(made.parent, ignore_errors=True)
            return earlier
        return made

    def import_zip(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Write the uploaded ZIP's request into the form, with an undo, and empty the upload box.

        Emptying the box calls this again, without a file, which changes nothing.
        """
        path = values[self.upload]
        if not path:
            return self.outcome.same()
        try:
            need_room(self.context.uploads)
            standing = self.form_updates.current(values)
            request, notes = import_sections(Path(path), standing, values[self.how], self.context.uploads)
        except UserError as error:
            return {self.upload: None} | self.outcome.refused(error.problems)
        updates, held = self.form_updates.apply(values, request)
        said = self.t("page.zip.imported", file=Path(path).name)
        return updates | {self.upload: None} | self.outcome.done(said, notes, held)

    def undo(self, held: Any) -> dict[Component, Any]:
        """Return the updates that undo an import. held: what `FormUpdates.apply` returned for it, None if nothing."""
        return (self.form_updates.restore(held) if held else {}) | self.outcome.nothing()


def content_of(archive: Path, secret: bytes) -> str:
    """Return a hexadecimal hash of a ZIP's file names and contents, without times, keyed with a secret."""
    total = hashlib.blake2b(key=secret, digest_size=16)
    with ZipFile(archive) as files:
        for info in files.infolist():
            total.update(f"{info.filename}\0{info.file_size}\0".encode())
            with files.open(info) as file:
                while piece := file.read(PIECE):
                    total.update(piece)
    return total.hexdigest()


def _fresh_folder() -> Path:
    """Return a new folder from which pages may serve; delete those older than KEPT_SECONDS or beyond MOST_KEPT."""
    exports = upload_folder() / "exports"
    exports.mkdir(parents=True, exist_ok=True)
    made: list[tuple[float, Path]] = []
    for old in exports.iterdir():
        # Another request has removed it.
        with suppress(OSError):
            made.append((old.stat().st_mtime, old))
    for number, (since, old) in enumerate(sorted(made, reverse=True), 1):
        if number >= MOST_KEPT or time.time() - since > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = exports / secrets.token_urlsafe(16)
    folder.mkdir()
    return folder
