"""Save and reset the form's values that new pages begin with."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.kinds import content_of
from eichi_utils.requests.request import to_json
from webui.context import QUIET, Context
from webui.forms.action_result import ActionResult
from webui.forms.form import Form
from webui.forms.form_updates import FormUpdates
from webui.panels.presets_panel import prompt_presets
from webui.panels.program_panel import ProgramPanel

# The name of a program setting (`settings.CHOICES`): whether every Start saves the form's settings.
ON_START = "save_settings_on_start"


def setting_names(form: Form) -> list[str]:
    """Return the names of the form's fields that are saved as settings, without a film's content (pictures, prompts ...)."""
    return [name for name in form.entries if name not in content_of(form.kind)]


def starting_fields(context: Context, form: Form) -> tuple[dict[str, Any], list[Problem]]:
    """Return the saved fields that a new page begins with, in JSON form, and notes on what of the files could not be read."""
    notes: list[Problem] = []
    fields: dict[str, Any] = {}
    try:
        saved, bad = context.app_settings.fields(form.kind.mode)
        fields, notes = _of_a_model_here(form, saved), [*bad]
    except UserError as error:
        notes += error.problems
    try:
        if prompt := prompt_presets(context).startup():
            fields["prompt"] = prompt
    except UserError as error:
        notes += error.problems
    return {name: value for name, value in fields.items() if name == "prompt" or name in setting_names(form)}, notes


class SettingsPanel:
    """Add the buttons Save and Reset, the switch to save at every Start, and below them the program's settings."""

    def __init__(self, context: Context, form: Form):
        self.form, self.t = form, context.t
        self.settings, self.mode = context.app_settings, form.kind.mode
        t = context.t
        hint = escape(t("page.settings.hint")).replace("\N{FLOPPY DISK}", '<span class="eichi-floppy"></span>')
        gr.HTML(f'<p class="eichi-hint">{hint}</p>', padding=False)
        with gr.Row():
            self.save = gr.Button(t("page.settings.save"), size="sm", elem_id="settings-save")
            self.reset = gr.Button(t("page.settings.reset"), size="sm", elem_id="settings-reset")
        self.on_start = gr.Checkbox(label=t("page.settings.on_start"), elem_id="settings-on-start")
        form.program[ON_START] = self.on_start
        self.outcome = ActionResult(t, "settings-outcome")
        self.program = ProgramPanel(context, form)
        self.on_start.value = self.program.saved()[ON_START]
        for name in setting_names(form):
            for component in form.entries[name].components:
                component.elem_classes = [*component.elem_classes, "eichi-saved"]

    def wire(self, form_updates: FormUpdates, start: gr.Button) -> None:
        """Connect the events, once the form has all its fields. start: the button that starts a film."""
        self.form_updates = form_updates
        self.program.wire()
        shown = [*form_updates.outputs, *self.outcome.outputs, *self.program.outputs]
        values = self.form.components
        self.save.click(self.save_settings, values, self.outcome.outputs, **QUIET)
        self.reset.click(self.reset_settings, values, shown, **QUIET)
        self.outcome.box.click(self.undo, self.outcome.about, shown, **QUIET)
        self.on_start.input(self.switch_on_start, self.on_start, self.outcome.outputs, **QUIET)
        start.click(self.save_on_start, values | {self.on_start}, self.outcome.outputs, **QUIET)

    @property
    def outputs(self) -> list[Component]:
        """Return the components that `on_load` may change."""
        return [*self.outcome.outputs, *self.program.outputs]

    def on_load(self, notes: list[Problem]) -> dict[Component, Any]:
        """Return the updates for a page that was just loaded. notes: problems of the files of settings and presets."""
        return self.program.current() | (self.outcome.refused(notes) if notes else {})

    def save_settings(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Save the form's settings, with an undo."""
        try:
            before, _ = self.settings.fields(self.mode)
            notes = self.settings.save_fields(self.mode, self._wanted(values))
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self.outcome.done(self.t("page.settings.saved"), notes, {"saved": before, "form": {}})

    def reset_settings(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Reset the settings to their defaults, in the form, for new pages and of the program, with an undo.

        The film's content (pictures, prompts ...) stays in the form.
        """
        try:
            before, _ = self.settings.fields(self.mode)
            shown, program = self.program.reset()
            notes = self.settings.reset_fields(self.mode)
        except UserError as error:
            return self.outcome.refused(error.problems)
        usual = to_json(self.form_updates.request_with({}))
        standing = to_json(self.form_updates.current(values))
        request = self.form_updates.request_with({**standing, **{name: usual[name] for name in setting_names(self.form)}})
        updates, held = self.form_updates.apply(values, request)
        said = self.t("page.settings.was_reset")
        return updates | shown | self.outcome.done(said, notes, {"saved": before, "form": held, "program": program})

    def undo(self, about: Mapping[str, Any] | None) -> dict[Component, Any]:
        """Undo a saving or a reset: restore the saved settings and the form. about: what was kept for it, None if nothing."""
        if about is None:
            return self.outcome.same()
        try:
            self.settings.reset_fields(self.mode)
            self.settings.save_fields(self.mode, about["saved"])
            shown = self.program.restore(about["program"]) if "program" in about else {}
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self.form_updates.restore(about["form"]) | shown | self.outcome.nothing()

    def switch_on_start(self, on: bool) -> dict[Component, Any]:
        """Switch on or off that every Start saves the form's settings."""
        try:
            self.program.save({ON_START: on})
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self.outcome.nothing()

    def save_on_start(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Save the settings at a click on Start, if that is switched on and the form has no problem."""
        if not values[self.on_start]:
            return self.outcome.same()
        request, problems = self.form.read(values)
        return self.outcome.same() if request is None or problems else self.save_settings(values)

    def _wanted(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        request, problems = self.form.read(values)
        names = setting_names(self.form)
        wrong = [problem for problem in problems if problem.field.split("/")[0] in names]
        if wrong:
            raise UserError(wrong)
        document = to_json(request or self.form_updates.current(values))
        return {name: document[name] for name in names}


def _of_a_model_here(form: Form, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved fields, without those of a model that this page does not begin with (model, size, steps ...)."""
    model = saved.get("model", "framepack")
    if model in form.models.names and ("model" in saved or model == form.default("model")):
        return dict(saved)
    own = form.models.recommended(form.default("model"), form.kind)
    return {name: value for name, value in saved.items() if name != "model" and name not in own}
