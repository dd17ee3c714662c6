"""Read the metadata of a chosen picture or film, and offer to take its prompt, seed or settings into the form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.exchange.named_files import is_file
from eichi_utils.exchange.picture_text import MOST_TAKEN, PictureText, read_text, request_fields
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.file_fields import with_files
from eichi_utils.requests.kinds import File, kinds_of
from eichi_utils.requests.request import to_json
from webui.context import QUIET, Context, event_of
from webui.forms import fields
from webui.forms.action_result import UNDO, ActionResult, action_of
from webui.forms.form import Form
from webui.forms.form_updates import FormUpdates
from webui.panels.reference_panel import REFERENCES

WANTED = ("prompt", "seed", "everything")
SHOWN_CHARACTERS = 120


class MetadataPanel:
    """Offer the metadata of `picture`, the start picture, below it; if it is None, of any file dropped on an upload box."""

    def __init__(self, context: Context, form: Form, picture: Component | None = None):
        self.context, self.form, self.t, self.picture = context, form, context.t, picture
        self.upload = picture or fields.upload(self.t("page.metadata.import"), "metadata-upload")
        self.outcome = ActionResult(self.t, "metadata-offer" if picture else "metadata-outcome")

    def wire(self, form_updates: FormUpdates) -> None:
        """Connect the events, once the form has all its fields."""
        self.form_updates = form_updates
        shown = [*form_updates.outputs, *self.outcome.outputs]
        ours = [*self.outcome.outputs, *([] if self.picture else [self.upload])]
        event_of(self.upload, "upload")(self.on_upload, self.upload, ours, **QUIET)
        if self.picture:
            event_of(self.picture, "clear")(self.outcome.nothing, None, self.outcome.outputs, **QUIET)
        self.outcome.box.click(self.apply, self.form.components | {self.outcome.about}, shown, **QUIET)

    def on_upload(self, path: str | None) -> dict[Component, Any]:
        """Return the updates that offer what can be taken from an uploaded file, or say why nothing can."""
        emptied = {} if self.picture else {self.upload: None}
        if not path:
            return self.outcome.same()
        try:
            text = read_text(path, (self.context.uploads,))
        except UserError as error:
            # Most start pictures have no metadata, and the form itself reports a start picture that cannot be read.
            return emptied | (self.outcome.nothing() if self.picture else self.outcome.refused(error.problems))
        actions, left_out = self._actions(text), text.left_out(Path(path).name)
        if not actions:
            return emptied | self.outcome.nothing()
        about = {"text": text, "file": Path(path).name}
        return emptied | self.outcome.ask(self._offer(text, Path(path).name), actions, about, left_out)

    def apply(self, values: Mapping[Component, Any], event: gr.EventData) -> dict[Component, Any]:
        """Carry out the clicked offer: write the metadata's fields into the form, or undo that."""
        about, action = values[self.outcome.about], action_of(event)
        if about is None or action not in (*WANTED, UNDO):
            return self.outcome.nothing()
        if action == UNDO:
            return self.form_updates.restore(about) | self.outcome.nothing()
        found, notes = request_fields(about["text"], self.form.kind.mode, action)
        found, gone = self._with_pictures_here(found)
        found, no_room = self._with_what_fits(found)
        request = self.form_updates.request_with({**to_json(self.form_updates.current(values)), **found})
        updates, held = self.form_updates.apply(values, request)
        said = self.t(f"page.metadata.took_{action}", file=about["file"])
        return updates | self.outcome.done(said, [*notes, *gone, *no_room], held)

    def _actions(self, text: PictureText) -> dict[str, str]:
        mode = self.form.kind.mode
        found = {wanted: request_fields(text, mode, wanted)[0] for wanted in WANTED}
        # "everything" is offered only if it has more than one field.
        more = len(found["everything"]) > 1
        useful = [wanted for wanted in WANTED if found[wanted] and (wanted != "everything" or more)]
        return {wanted: self.t(f"page.metadata.{wanted}") for wanted in useful}

    def _offer(self, text: PictureText, file: str) -> str:
        fields, _ = request_fields(text, self.form.kind.mode, "prompt")
        prompt = " ".join(fields.get("prompt", "").split())
        if len(prompt) > SHOWN_CHARACTERS:
            prompt = f"{prompt[: SHOWN_CHARACTERS - 1]}\u2026"
        if not prompt:
            return self.t("page.metadata.found", file=file)
        return self.t("page.metadata.found_prompt", file=file, prompt=prompt)

    def _with_pictures_here(self, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Return the fields without files that are not on this computer or that a browser may not name, and a note on each."""

        def here(path: str) -> bool:
            # The reader leaves a bare name for a file that it did not find.
            return Path(path).is_absolute() and self.context.holds(path) and is_file(Path(path))

        # The start picture itself has this metadata, and stays.
        wanted = {name: value for name, value in found.items() if not (self.picture and name == "image")}
        kept, left_out = with_files(wanted, here)
        gone = [Problem(field, "picture_elsewhere", {"file": path[:200]}) for field, path in left_out]
        kinds = kinds_of(self.form.kind)
        # If the found file is not here, the form keeps its own.
        return {name: value for name, value in kept.items() if value or not isinstance(kinds.get(name), File)}, gone

    def _with_what_fits(self, found: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Return the fields that this page can show, and a note on each that is left out."""
        kept, lost = dict(found), []
        for number, control in enumerate(kept.get("controls", ())[REFERENCES:], REFERENCES):
            values = {"file": Path(control["image"]).name, "room": REFERENCES}
            lost.append(Problem(f"controls/{number}/image", "reference_no_room", values))
        if "controls" in kept:
            kept["controls"] = kept["controls"][:REFERENCES]
        folder = kept.get("output_folder")
        problem = self.context.folders.problem(folder) if folder else None
        if problem and problem.key == "folder_not_allowed":
            lost.append(Problem("output_folder", "folder_left_out", problem.values))
            del kept["output_folder"]
        for name in sorted(kept.keys() - self.form.entries.keys()):
            if kept[name] != self.form.default(name):
                lost.append(Problem(name, "field_not_here", {"value": str(kept[name])[:80]}))
            del kept[name]
        return kept, lost


class SectionPromptOffer:
    """Offer the prompt in a keyframe's metadata for the section that the keyframe was given to."""

    def __init__(self, context: Context):
        self.t = context.t
        self.outcome = ActionResult(self.t, "section-offer")

    def wire(self, picture: Component, uploaded: Any, landed: Component, section: Component, prompt: Component) -> None:
        """Connect the events.

        uploaded: the event after which `landed` holds the section that got the picture, "" if it is not the open section.
        section: the open section. prompt: its box.
        """
        self.section, self.prompt = section, prompt
        uploaded.then(self.on_upload, [picture, landed], self.outcome.outputs, **QUIET)
        event_of(picture, "clear")(self.outcome.nothing, None, self.outcome.outputs, **QUIET)
        answer = {self.outcome.about, section, prompt}
        self.outcome.box.click(self.apply, answer, [prompt, *self.outcome.outputs], **QUIET)

    def on_upload(self, path: str | None, section: str) -> dict[Component, Any]:
        """Return the updates that offer the prompt a keyframe was made with: its section's prompt, else its film's."""
        try:
            text = read_text(path) if path else PictureText()
        except UserError:
            text = PictureText()
        own = (text.section_prompt or text.prompt or "").strip()
        if not own or not section or len(own) > MOST_TAKEN:
            return self.outcome.nothing()
        shown = own if len(own) <= SHOWN_CHARACTERS else f"{own[: SHOWN_CHARACTERS - 1]}\u2026"
        said = self.t("page.metadata.found_prompt", file=Path(path or "").name, prompt=shown)
        actions = {"prompt": self.t("page.metadata.section_prompt")}
        return self.outcome.ask(said, actions, {"section": section, "prompt": own})

    def apply(self, values: Mapping[Component, Any], event: gr.EventData) -> dict[Component, Any]:
        """Write the offered prompt into the section's box, or undo that; do nothing if another section is open by now."""
        about = values[self.outcome.about]
        if about is None or about["section"] != values[self.section]:
            return self.outcome.nothing()
        if action_of(event) == UNDO:
            return {self.prompt: about["prompt"]} | self.outcome.nothing()
        back = {"section": about["section"], "prompt": values[self.prompt]}
        return {self.prompt: about["prompt"]} | self.outcome.done(self.t("page.metadata.took_section_prompt"), back=back)
