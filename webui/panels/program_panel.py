"""Add the settings of the whole program: sound, log, kept uploads. A change is saved and applied at once, for all pages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.jobs.alarm import ALARM
from eichi_utils.jobs.housekeeping import LIMITS
from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.desktop import open_folder, same_machine
from eichi_utils.user_data.log_file import ENABLED, FOLDER
from eichi_utils.user_data.settings import CHOICES
from webui.context import QUIET, Context
from webui.forms import fields
from webui.forms.action_result import ActionResult
from webui.forms.form import Form
from webui.panels.memory_panel import RESERVE, set_reserve

Values = Mapping[str, Any]


class ProgramPanel:
    """Add the program's settings, and show, reset and restore all of them that the page has (`Form.program`)."""

    def __init__(self, context: Context, form: Form):
        self.context, self.t, self.mode = context, context.t, form.kind.mode
        self.settings, self.log, self.components = context.app_settings, context.log, form.program
        t, saved = context.t, self.saved()
        gr.HTML(f'<p class="eichi-hint">{escape(t("page.settings.program"))}</p>', padding=False)
        info = t("page.settings.alarm.info")
        self.alarm = gr.Checkbox(saved[ALARM], label=t("page.settings.alarm"), info=info, elem_id="settings-alarm")
        self.components[ALARM] = self.alarm
        if self.log:
            self._log_controls(saved)
        self._upload_controls(saved)
        self.outcome = ActionResult(t, "program-outcome")

    def _upload_controls(self, saved: Values) -> None:
        t = self.t
        with gr.Row(equal_height=False):
            self.uploads = {
                name: fields.Number(
                    saved[name],
                    label=t(f"page.settings.{name}"),
                    info=t(f"page.settings.{name}.info"),
                    minimum=least,
                    maximum=most,
                    min_width=200,
                    elem_id=f"settings-{name.replace('_', '-')}",
                )
                for name, (least, most) in LIMITS.items()
            }
        self.components |= self.uploads

    def _log_controls(self, saved: Values) -> None:
        t = self.t
        info = t("page.settings.log.info")
        self.writes = gr.Checkbox(saved[ENABLED], label=t("page.settings.log"), info=info, elem_id="settings-log")
        with gr.Row(equal_height=False):
            self.folder = gr.Textbox(
                saved[FOLDER],
                label=t("page.settings.log_folder"),
                info=t("page.settings.log_folder.info"),
                placeholder=CHOICES[FOLDER],
                max_lines=1,
                min_width=200,
                scale=3,
                elem_id="settings-log-folder",
            )
            self.open = gr.Button(t("page.settings.log_open"), size="sm", min_width=120, elem_id="settings-log-open")
        self.place = gr.Textbox(
            label=t("page.settings.log_path"),
            visible=False,
            interactive=False,
            max_lines=1,
            buttons=["copy"],
            elem_id="settings-log-path",
        )
        self.components |= {ENABLED: self.writes, FOLDER: self.folder}

    @property
    def outputs(self) -> list[Component]:
        """Return the components that `current`, `reset` and `restore` may change."""
        return [*self.components.values(), *self.outcome.outputs]

    def wire(self) -> None:
        """Connect the events, those of the log only if the program has one."""
        self.alarm.input(self.choose_alarm, self.alarm, self.outcome.outputs, **QUIET)
        for name, box in self.uploads.items():
            for event in (box.submit, box.blur):
                event(partial(self.choose_uploads, name), box, self.outcome.outputs, **QUIET)
        if self.log:
            asked, changed = {self.writes, self.folder}, [self.writes, self.folder, *self.outcome.outputs]
            for event in (self.writes.input, self.folder.submit, self.folder.blur):
                event(self.choose_log, asked, changed, **QUIET)
            self.open.click(self.show_folder, None, [self.place, *self.outcome.outputs], **QUIET)

    def saved(self) -> dict[str, Any]:
        """Return every setting of the program; the defaults if the file cannot be read, which the next saving reports."""
        try:
            return {name: self.settings.choice(self.mode, name) for name in CHOICES}
        except UserError:
            return dict(CHOICES)

    def current(self) -> dict[Component, Any]:
        """Return the updates that show the settings on a loaded page, and why no log is written although it is on."""
        saved = self.saved()
        if self.context.engine:
            saved[RESERVE] = self.context.engine.reserve_gb
        return {component: saved[name] for name, component in self.components.items()} | self._about_log(saved)

    def choose_alarm(self, on: bool) -> dict[Component, Any]:
        """Switch the sound at the end of a film on or off."""
        try:
            self.save({ALARM: on})
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self._about_log(self.saved())

    def choose_uploads(self, name: str, value: Any) -> dict[Component, Any]:
        """Set a limit for kept uploads that nothing names any more: days, or GB in all. name: the setting's (`LIMITS`)."""
        least, most = LIMITS[name]
        try:
            if value is None:
                raise UserError([Problem(name, "value_needed")])
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise UserError([Problem(name, "out_of_range", {"value": value, "min": least, "max": most})])
            self.save({name: value})
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self.outcome.nothing()

    def choose_log(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Switch the log on or off and set its folder; if that folder cannot be used, the log stays as it was."""
        wanted = {ENABLED: values[self.writes] is True, FOLDER: str(values[self.folder] or "").strip() or CHOICES[FOLDER]}
        try:
            self.save(wanted)
        except UserError as error:
            # The folder's box keeps the wrong name, so that the user can correct it.
            return {self.writes: self.saved()[ENABLED]} | self.outcome.refused(error.problems)
        return {self.folder: wanted[FOLDER]} | self._about_log(wanted)

    def show_folder(self, asker: gr.Request) -> dict[Component, Any]:
        """Open the log's folder on the desktop; for a browser on another machine, show its path."""
        if (log := self.log) is None:
            return self.outcome.nothing()
        name = self.saved()[FOLDER]
        if problem := log.problem(name):
            return {self.place: gr.update(visible=False)} | self.outcome.refused([problem])
        folder, here = log.folder(name), same_machine(asker.client.host)
        if here:
            folder.mkdir(parents=True, exist_ok=True)
        opened = here and open_folder(folder)
        return {self.place: gr.update(value=str(folder), visible=not opened)}

    def save(self, values: Values) -> None:
        """Save and apply settings of the program. values: name -> value. Raises UserError; then nothing has changed."""
        before = self.saved()
        new = {**before, **values}
        log = self.log if any(name in values for name in (ENABLED, FOLDER)) else None
        if log:
            if new[FOLDER] not in (before[FOLDER], CHOICES[FOLDER]) and (problem := log.problem(new[FOLDER])):
                raise UserError([problem])
            log.apply(new[ENABLED], new[FOLDER])
        try:
            self.settings.save_program(values)
        except UserError:
            if log:
                log.begin(self.settings, self.mode)
            raise
        if self.context.engine and RESERVE in values:
            set_reserve(self.context.engine, values[RESERVE])

    def reset(self) -> tuple[dict[Component, Any], dict[str, Any]]:
        """Reset the settings that the page shows to their defaults. Raises UserError.

        Returns the updates, and the values that were saved before.
        """
        before = {name: value for name, value in self.saved().items() if name in self.components}
        self.save({name: CHOICES[name] for name in before})
        return self.current(), before

    def restore(self, before: Values) -> dict[Component, Any]:
        """Undo `reset`; return the updates. before: the values that it returned. Raises UserError."""
        self.save(before)
        return self.current()

    def _about_log(self, saved: Values) -> dict[Component, Any]:
        if not self.log or not saved[ENABLED]:
            return self.outcome.nothing()
        if self.log.path is None:
            problem = self.log.problem(saved[FOLDER])
            return self.outcome.refused([problem]) if problem else self.outcome.nothing()
        return self.outcome.done(self.t("page.settings.log_on", file=self.log.path))
