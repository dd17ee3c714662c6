"""Add controls for values that the user saves under a name: choose or type a name, then apply, save or delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gradio as gr
from gradio.components import Component

from eichi_utils.files.names import visible_name
from eichi_utils.problems import Problem, UserError
from webui.context import QUIET
from webui.forms import fields
from webui.forms.action_result import ActionResult
from webui.forms.form import Form
from webui.gradio_compat import Block


class Store(Protocol):
    """Describe a store of named values; every method may raise UserError."""

    def all(self) -> tuple[dict[str, Any], tuple[Problem, ...]]:
        """Return the saved values by name, and notes on what could not be read."""
        ...

    def save(self, name: str, value: Any) -> tuple[Problem, ...]:
        """Save a value under a name, replacing an older one; return notes for the user."""
        ...

    def delete(self, name: str) -> tuple[Problem, ...]:
        """Delete the value of a name; return notes for the user."""
        ...


@dataclass(frozen=True)
class Undo:
    """Hold what an undo needs.

    form: values that the form had, for undoing `apply`. name, value: the value that a name had before it was saved or deleted,
    None if it had none; "" as name if the store has not changed.
    """

    form: Any = None
    name: str = ""
    value: Any = None


# The form's values -> the value to save; raises UserError.
Read = Callable[[Mapping[Component, Any]], Any]
# The form's values and a saved value -> updates, and what undoes them.
Apply = Callable[[Mapping[Component, Any], Any], tuple[dict[Component, Any], Any]]
Restore = Callable[[Any], dict[Component, Any]]


class NamedPanel:
    """Add the controls of one kind of named values. kind: "prompts" or "favourites", part of text keys and element ids."""

    def __init__(self, form: Form, store: Store, kind: str):
        t = form.t
        self.t, self.store, self.kind = t, store, kind
        with gr.Row(equal_height=True):
            self.name = fields.Dropdown(
                self.names(),
                value=None,
                label=t(f"page.named.{kind}.name"),
                info=t(f"page.named.{kind}.info"),
                allow_custom_value=True,
                elem_id=f"{kind}-name",
                elem_classes=[fields.NAME_CLASS],
            )
        form.fresh[self.name] = self.choices
        with gr.Row():
            buttons = {action: t(f"page.named.{kind}.{action}") for action in ("apply", "save", "delete")}
            self.buttons = {
                action: gr.Button(label, size="sm", min_width=80, elem_id=f"{kind}-{action}")
                for action, label in buttons.items()
            }
        self.outcome = ActionResult(t, f"{kind}-outcome")

    def wire(self, values: set[Block], read: Read, apply: Apply, restore: Restore, outputs: Sequence[Block]) -> None:
        """Connect the events.

        values: the form's components that `read` and `apply` need. outputs: what `apply` and `restore` may change.
        """
        self.read_form, self.apply_to_form, self.restore_form = read, apply, restore
        own = [self.name, *self.outcome.outputs]
        asked = values | {self.name}
        self.buttons["apply"].click(self.apply, asked, [*outputs, *own], **QUIET)
        self.buttons["save"].click(self.save, asked, own, **QUIET)
        self.buttons["delete"].click(self.delete, {self.name}, own, **QUIET)
        self.outcome.box.click(self.undo, self.outcome.about, [*outputs, *own], **QUIET)

    def names(self) -> list[str]:
        """Return all saved names; [] if the file cannot be read, which is reported when a name is applied or saved."""
        try:
            return list(self.store.all()[0])
        except UserError:
            return []

    def choices(self) -> Any:
        """Return the update of the list with the names that are saved now."""
        return gr.update(choices=self.names())

    def apply(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Write the value saved under the chosen name into the form."""
        try:
            kept, _ = self.store.all()
            name = _known(values[self.name], kept)
            if name not in kept:
                raise UserError([unknown(name)])
            updates, held = self.apply_to_form(values, kept[name])
        except UserError as error:
            return self.outcome.refused(error.problems)
        return updates | self.outcome.done(self.t(f"page.named.{self.kind}.applied", name=name), back=Undo(form=held))

    def save(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Save the form's value under the typed name, with an undo that brings the name's older value back."""
        name = visible_name(str(values[self.name] or "")).strip()
        try:
            value, before = self.read_form(values), self.store.all()[0].get(name)
            notes = self.store.save(name, value)
        except UserError as error:
            return self.outcome.refused(error.problems)
        said = self.t("page.saved.new" if before is None else "page.saved.replaced", name=name)
        return self._named(name) | self.outcome.done(said, notes, Undo(name=name, value=before))

    def delete(self, values: Mapping[Component, Any]) -> dict[Component, Any]:
        """Delete the value of the chosen name, with an undo."""
        try:
            kept, _ = self.store.all()
            name = _known(values[self.name], kept)
            before = kept.get(name)
            if before is None:
                raise UserError([unknown(name)])
            notes = self.store.delete(name)
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self._named(None) | self.outcome.done(
            self.t("page.saved.deleted", name=name), notes, Undo(name=name, value=before)
        )

    def undo(self, held: Undo | None) -> dict[Component, Any]:
        """Undo the last apply, save or delete. held: what `ActionResult` kept of it, None if nothing."""
        if held is None:
            return self.outcome.same()
        if not held.name:
            return self.restore_form(held.form) | self.outcome.nothing()
        try:
            if held.value is None:
                self.store.delete(held.name)
            else:
                self.store.save(held.name, held.value)
        except UserError as error:
            return self.outcome.refused(error.problems)
        return self._named(held.name if held.value is not None else None) | self.outcome.nothing()

    def _named(self, name: str | None) -> dict[Component, Any]:
        return {self.name: gr.update(choices=self.names(), value=name)}


def unknown(name: str) -> Problem:
    """Return the problem that no value has this name, or that no name was given."""
    return Problem("presets", "preset_unknown", {"name": name}) if name else Problem("presets", "preset_name_needed")


def _known(typed: Any, kept: Mapping[str, Any]) -> str:
    """Return the chosen or typed name, without outer spaces unless a saved name has them, as in an older file."""
    name = str(typed or "")
    return name if name in kept else name.strip()
