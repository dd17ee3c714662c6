"""Write a request into a form that is already filled: change only the fields that differ, and allow an undo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradio.components import Component

from eichi_utils.requests import modes
from eichi_utils.requests.request import Request, to_json
from eichi_utils.requests.transfer import usable
from webui.forms.form import Form
from webui.gradio_compat import Block, number_of
from webui.panels.model_panel import ModelPanel

# A change of one of the fields WITH_MODEL changes the model panel too; those of LISTS have a list of choices to update.
WITH_MODEL = ("model", "size", "steps")
LISTS = ("model", "size")
# The values of components before a change, by the component's number on the page.
Undo = dict[int, Any]


class FormUpdates:
    """Return gradio updates that write a request into a form. Create it once the page has all its fields."""

    def __init__(self, form: Form, model: ModelPanel):
        self.form, self.model = form, model

    @property
    def outputs(self) -> list[Block]:
        """Return all components that `apply` and `restore` may update, in the order of the page."""
        components = self.form.components | set(self.model.outputs) | set(self.form.closed)
        return sorted(components, key=number_of)

    def current(self, values: Mapping[Component, Any]) -> Request:
        """Return the request that the form shows; fields whose values cannot be parsed are as on a new page."""
        document = self.form.document(values)
        fields, _ = usable(self.form.kind.mode, {name: value for name, value in document.items() if name != "mode"})
        return self.request_with(fields)

    def request_with(self, fields: Mapping[str, Any]) -> Request:
        """Return a new page's request with other values for some fields. fields: name -> value in JSON form."""
        return modes.from_json({**to_json(self.form.kind()), **self.form.defaults, **fields, "mode": self.form.kind.mode})

    def initial(self, fields: Mapping[str, Any]) -> dict[Component, Any]:
        """Return the updates for a page that was just loaded, only of these fields: a quick user may have filled others.

        fields: name -> value in JSON form.
        """
        request = self.request_with(fields)
        chosen = any(name in WITH_MODEL for name in fields)
        return self._written(request, fields) | (
            self.model.updates_for(request) if chosen else self.model.refresh(request.model)
        )

    def apply(self, values: Mapping[Component, Any], request: Request) -> tuple[dict[Component, Any], Undo]:
        """Return the updates that show a request, and the values that `restore` needs to undo them.

        values: of the form's components now.
        """
        before, entries = self.current(values), self.form.entries
        changed = [name for name in entries if getattr(request, name) != getattr(before, name)]
        if any(name in WITH_MODEL for name in changed):
            changed += [name for name in LISTS if name in entries and name not in changed]
        updates = self._written(request, changed)
        held = {number_of(component): values[component] for component in updates}
        if any(name in WITH_MODEL for name in changed):
            updates |= self.model.updates_for(request)
        return updates | (self.form.closed if updates else {}), held

    def restore(self, held: Undo) -> dict[Component, Any]:
        """Return the updates that undo `apply`. held: the values that it returned."""
        updates: dict[Any, Any] = {
            component: held[number_of(component)] for component in self.form.components if number_of(component) in held
        }
        shown = {name: updates.get(self.form.entries[name].components[0]) for name in WITH_MODEL if name in self.form.entries}
        known = {name: value for name, value in shown.items() if value is not None}
        if known:
            models = self.model.updates_for(self.form.kind(**{**self.form.defaults, **known}))
            if "steps" not in known:
                del models[self.model.asked_steps]
            updates |= models
        return updates | (self.form.closed if updates else {})

    def _written(self, request: Request, names: Iterable[str]) -> dict[Component, Any]:
        """Return the updates that show these fields of a request."""
        updates: dict[Component, Any] = {}
        for name in names:
            entry = self.form.entries[name]
            updates |= zip(entry.components, entry.write(getattr(request, name)), strict=True)
        return updates
