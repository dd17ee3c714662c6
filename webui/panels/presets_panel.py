"""Add the saved prompts, the prompt that new pages begin with, and the favourites (whole requests under a name)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.request import to_json
from eichi_utils.user_data import presets
from eichi_utils.user_data.presets import PromptPresets, favourites
from eichi_utils.user_data.settings import JsonFile
from webui.context import QUIET, Context
from webui.forms.form import Form
from webui.forms.form_updates import FormUpdates
from webui.forms.uploads import keep_pictures
from webui.forms.words import NOT_YET
from webui.gradio_compat import Block
from webui.panels.named_panel import NamedPanel, Undo


def prompt_presets(context: Context) -> PromptPresets:
    """Return the user's saved prompts."""
    return PromptPresets(JsonFile(context.presets / "prompt_presets.json", (presets.ENTRIES,)))


@dataclass(frozen=True)
class Prompts:
    """Store prompts by name, for a `NamedPanel`."""

    file: PromptPresets

    def all(self) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the saved prompts by name."""
        found, notes = self.file.read()
        return {preset.name: preset.prompt for preset in found}, notes

    def save(self, name: str, value: str) -> tuple[Problem, ...]:
        """Save a prompt under a name; return notes for the user."""
        return self.file.save(name, value)

    def delete(self, name: str) -> tuple[Problem, ...]:
        """Delete a prompt; return notes for the user."""
        return self.file.delete(name)


@dataclass(frozen=True)
class Favourites:
    """Store whole requests of one mode by name, as JSON documents, for a `NamedPanel`."""

    file: presets.Presets
    mode: str

    def all(self) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the saved requests of the page's mode, as documents by name."""
        found, notes = self.file.read()
        return {name: value for name, value in found.items() if value["mode"] == self.mode}, notes

    def save(self, name: str, value: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Save a request under a name; return notes for the user."""
        return self.file.save(name, value)

    def delete(self, name: str) -> tuple[Problem, ...]:
        """Delete a request; return notes for the user."""
        return self.file.delete(name)


class PromptsPanel:
    """Add the closed group of saved prompts below the prompt's box."""

    def __init__(self, context: Context, form: Form):
        self.file, self.t = prompt_presets(context), context.t
        (self.prompt,) = form.entries["prompt"].components
        with gr.Accordion(self.t("page.prompts"), open=False, elem_id="prompts"):
            self.panel = NamedPanel(form, Prompts(self.file), "prompts")
            self.startup = gr.Button(self.t("page.prompts.startup"), size="sm", elem_id="prompts-startup")
        own: set[Block] = {self.prompt}
        outcome = self.panel.outcome
        self.panel.wire(own, lambda values: values[self.prompt] or "", self._apply, self._restore, [self.prompt])
        self.startup.click(self.save_startup, self.prompt, [*outcome.outputs, self.panel.name], **QUIET)

    def save_startup(self, prompt: str) -> dict[Component, Any]:
        """Save the prompt that new pages begin with."""
        prompt = prompt or ""
        try:
            before, _ = self.file.read()
            notes = self.file.save_startup(prompt)
            name = next(preset.name for preset in self.file.read()[0] if preset.is_startup)
        except UserError as error:
            return self.panel.outcome.refused(error.problems)
        old = next((preset.prompt for preset in before if preset.is_startup), "")
        said = self.t("page.prompts.begin" if prompt.strip() else "page.prompts.begin_empty")
        return {self.panel.name: self.panel.choices()} | self.panel.outcome.done(said, notes, Undo(name=name, value=old))

    def _apply(self, values: Mapping[Component, Any], prompt: str) -> tuple[dict[Component, Any], Any]:
        return {self.prompt: prompt}, values[self.prompt]

    def _restore(self, prompt: str) -> dict[Component, Any]:
        return {self.prompt: prompt}


class FavouritesPanel:
    """Add the favourites: everything that the form holds, with its pictures, under a name."""

    def __init__(self, context: Context, form: Form):
        self.context, self.form = context, form
        self.panel = NamedPanel(form, Favourites(favourites(context.presets), form.kind.mode), "favourites")

    def wire(self, form_updates: FormUpdates) -> None:
        """Connect the events, once the form has all its fields."""
        self.form_updates = form_updates
        self.panel.wire(self.form.components, self.read, self.apply, form_updates.restore, form_updates.outputs)

    def read(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """Return the form's request as a JSON document, with its pictures copied to where they are kept.

        Raises UserError if a value is wrong; empty fields are allowed.
        """
        request, problems = self.form.read(values)
        wrong = [problem for problem in problems if problem.key not in (*NOT_YET, "section_unknown")]
        if request is None or wrong:
            raise UserError(wrong)
        return to_json(keep_pictures(request, self.context.uploads))

    def apply(self, values: Mapping[Component, Any], document: Mapping[str, Any]) -> tuple[dict[Component, Any], Any]:
        """Fill the form with a saved request; return the updates, and what `restore` needs to undo them."""
        fields = {name: value for name, value in document.items() if name != "mode"}
        return self.form_updates.apply(values, self.form_updates.request_with(fields))
