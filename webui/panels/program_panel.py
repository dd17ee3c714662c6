"""Sound and log: what the whole program does beside the films. Saved and done as it is clicked, for every page."""

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
    """Its controls, and whatever else the page has of the program's own values (`Form.program`)."""

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
        """What `current`, `reset` and `restore` may return."""
        return [*self.components.values(), *self.outcome.outputs]

    def wire(self) -> None:
        """Tie the events; the controls of a log only where the program has one."""
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
        """Every value of the program; the usual ones where the file cannot be read, which the first saving will say."""
        try:
            return {name: self.settings.choice(self.mode, name) for name in CHOICES}
        except UserError:
            return dict(CHOICES)

    def current(self) -> dict[Component, Any]:
        """What a page that is loaded shows, and why no log is written where one shall be."""
        saved = self.saved()
        if self.context.engine:
            saved[RESERVE] = self.context.engine.reserve_gb
        return {component: saved[name] for name, component in self.components.items()} | self._about_log(saved)

    def choose_alarm(self, on: bool) -> dict[Component, Any]:
        """From now on the end of a film is heard, or it is not."""
        try:
            self.save({ALARM: on})
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self._about_log(self.saved())

    def choose_uploads(self, name: str, value: Any) -> dict[Component, Any]:
        """For how long, or as how much at most, pictures are kept that nothing names any more."""
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
        """A log from now on, or none, in this folder. Where that cannot be, the old one goes on."""
        wanted = {ENABLED: values[self.writes] is True, FOLDER: str(values[self.folder] or "").strip() or CHOICES[FOLDER]}
        try:
            self.save(wanted)
        except UserError as error:
            # The wrong name stays to be mended.
            return {self.writes: self.saved()[ENABLED]} | self.outcome.refused(error.problems)
        return {self.folder: wanted[FOLDER]} | self._about_log(wanted)

    def show_folder(self, asker: gr.Request) -> dict[Component, Any]:
        """Open the log's folder where the user can see it; in a browser on another machine, say where it is."""
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
        """Save values of the program, and do as they say. Raises UserError; then all is as before."""
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
        """The usual values of everything that the page shows, and what was saved. Raises UserError."""
        before = {name: value for name, value in self.saved().items() if name in self.components}
        self.save({name: CHOICES[name] for name in before})
        return self.current(), before

    def restore(self, before: Values) -> dict[Component, Any]:
        """As it was before a reset. Raises UserError."""
        self.save(before)
        return self.current()

    def _about_log(self, saved: Values) -> dict[Component, Any]:
        if not self.log or not saved[ENABLED]:
            return self.outcome.nothing()
        if self.log.path is None:
            problem = self.log.problem(saved[FOLDER])
            return self.outcome.refused([problem]) if problem else self.outcome.nothing()
        return self.outcome.done(self.t("page.settings.log_on", file=self.log.path))
