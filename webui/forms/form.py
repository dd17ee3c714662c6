"""Bind the fields of a request to a page's components: read a request from them, and write one into them."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component

from eichi_utils.files.folders import OutputFolders
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.file_fields import with_files
from eichi_utils.requests.kinds import kinds_of
from eichi_utils.requests.request import Request
from locales import Translator, table
from webui.forms import fields
from webui.gradio_compat import Block

C = TypeVar("C", bound=Component)


@dataclass(frozen=True)
class FieldBinding:
    """Hold one field's components; `read` makes the field's value of theirs, `write` returns a value for each of them."""

    components: tuple[Component, ...]
    read: Callable[..., Any]
    write: Callable[[Any], tuple]


class Form:
    """Hold the fields of one mode's request that a page shows. Fields it does not show have the model's recommended values."""

    def __init__(
        self,
        kind: type[Request],
        t: Translator,
        models: Models,
        folders: OutputFolders | None = None,
        holds: Callable[[str], bool] = lambda path: True,
    ):
        """Begin a form without fields.

        kind: the mode's class of requests. folders: allowed output folders, None to leave them unchecked. holds: tells
        whether a browser may name the file at a path.
        """
        self.kind = kind
        self.t = t
        self.models = models
        self.folders = folders
        self.holds = holds
        self.defaults = models.recommended(models.default(kind.checkpoint), kind)
        self.entries: dict[str, FieldBinding] = {}
        # Updates that close the editor of a part of a field, such as one section, when the field is filled by something else.
        # Any: a column among the keys is no component to gradio's types.
        self.closed: dict[Any, Any] = {}
        # Components of the program's own settings, which are in no request, by name (`settings.CHOICES`).
        self.program: dict[str, Component] = {}
        # The page's `ModelPanel`.
        self.model: Any = None
        # Functions called with a `FormUpdates` once the page has all its fields.
        self.wirings: list[Callable[[Any], None]] = []
        # Component whose content other pages and programs change -> function that returns its update when a page is loaded.
        self.fresh: dict[Component, Callable[[], Any]] = {}
        # Functions called with the event that has filled a loaded page.
        self.after_load: list[Callable[[Any], Any]] = []
        self._kinds = kinds_of(kind)
        self._blank = {field.name: field.default for field in dataclasses.fields(kind)}

    def has(self, name: str) -> bool:
        """Tell whether the mode's requests have a field of this name."""
        return name in self._kinds

    def field_kind(self, name: str) -> Any:
        """Return the field's kind, with its limits or choices."""
        return self._kinds[name]

    def default(self, name: str) -> Any:
        """Return a field's value on a new page."""
        return self.defaults.get(name, self._blank[name])

    def choices(self, name: str) -> tuple:
        """Return the choices of a field that a new page offers: only installed models, and only the model's sizes."""
        offered = {"model": self.models.names, "size": self.models.sizes(self.default("model"))}
        return offered.get(name, self.field_kind(name).choices)

    def add(
        self,
        name: str,
        first: C,
        *others: Component,
        read: Callable[..., Any] = lambda value: value,
        write: Callable[[Any], tuple] = lambda value: (value,),
        beside: Component | None = None,
    ) -> C:
        """Bind components to a field; return the first one.

        read: makes the field's value of the components' values; write: makes a tuple of their values of the field's.
        beside: the component at which the field's problems are shown, by default the first. Raises KeyError for an unknown
        field.
        """
        if name not in self._kinds:
            raise KeyError(f"{self.kind.__name__} has no field {name}")
        self.entries[name] = FieldBinding((first, *others), read, write)
        place = beside or first
        place.elem_classes = [*(place.elem_classes or []), f"field-{name}"]
        return first

    def text(self, name: str, **settings: Any) -> gr.Textbox:
        """Put a text box into the page, bound to a field. settings: of the component."""
        return self.add(name, gr.Textbox(value=self.default(name), **self._words(name), **settings))

    def picture(self, name: str, **settings: Any) -> fields.Picture:
        """Put a place for a picture into the page, bound to a field; its empty value is ""."""
        return self.add(
            name,
            fields.picture(label=self.t(f"page.field.{name}"), placeholder=self.t("page.picture.placeholder"), **settings),
            read=lambda value: value or "",
            write=lambda value: (value or None,),
        )

    def slider(self, name: str, step: float, **settings: Any) -> fields.Slider:
        """Put a slider with the field's limits into the page, bound to a field."""
        limits = self.field_kind(name)
        box = fields.Slider(
            minimum=limits.min,
            maximum=limits.max,
            value=self.default(name),
            step=step,
            **self._words(name),
            **settings,
        )
        return self.add(name, box)

    def number(self, name: str, step: float = 1, **settings: Any) -> Component:
        """Put a number box with the field's limits into the page, bound to a field."""
        limits = self.field_kind(name)
        box = fields.Number(
            value=self.default(name),
            minimum=limits.min,
            maximum=limits.max,
            step=step,
            **self._words(name),
            **settings,
        )
        return self.add(name, box)

    def number_or_empty(self, name: str, empty: Any = None, **settings: Any) -> Component:
        """Put a box for an optional number into the page, bound to a field; left empty, the field's value is `empty`.

        It is a text box because gradio's number box turns an empty box into 0.
        """
        box = gr.Textbox(
            value=_shown(self.default(name), empty),
            placeholder=self.t(f"page.empty.{name}"),
            max_lines=1,
            **self._words(name),
            **settings,
        )
        return self.add(
            name,
            box,
            read=lambda text: _number(text) if text and text.strip() else empty,
            write=lambda value: (_shown(value, empty),),
        )

    def choice(self, name: str, labels: Mapping[Any, str], **settings: Any) -> Component:
        """Put radio buttons for the field's choices into the page, bound to a field. labels: words for every choice."""
        choices = [(labels[choice], choice) for choice in self.choices(name)]
        return self.add(name, fields.Radio(choices, value=self.default(name), **self._words(name), **settings))

    def switch(self, name: str, **settings: Any) -> gr.Checkbox:
        """Put a checkbox into the page, bound to a field."""
        return self.add(name, gr.Checkbox(value=self.default(name), **self._words(name), **settings))

    @property
    def components(self) -> set[Block]:
        """Return the components of all fields, which an event needs as inputs to read the form."""
        return {component for entry in self.entries.values() for component in entry.components}

    def document(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """Return the request's JSON document for the components' values, without files that a browser may not name."""
        return self._document(values)[0]

    def _document(self, values: Mapping[Component, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Return the document, and a problem for each file that is left out of it."""
        document: dict[str, Any] = {"mode": self.kind.mode}
        if "model" in self.entries:
            component = self.entries["model"].components[0]
            document |= self.models.recommended(values[component], self.kind)
        for name, entry in self.entries.items():
            value = entry.read(*(values[component] for component in entry.components))
            # An empty box of a required field is reported as a problem; the default does not replace it.
            document[name] = "" if value is None and not self.field_kind(name).optional else value
        kept, left_out = with_files(document, self.holds)
        return kept, [Problem(field, "file_not_uploaded", {"file": path[-200:]}) for field, path in left_out]

    def read(self, values: Mapping[Component, Any]) -> tuple[Request | None, tuple[Problem, ...]]:
        """Return the request, or None if a value cannot be parsed, and all problems of it at once.

        This runs at every key press, so the output folder is checked by its permissions only, without writing to it.
        """
        document, foreign = self._document(values)
        try:
            request = _request(json.dumps(document))
        except UserError as error:
            unreadable = {problem.field.split("/")[0] for problem in (*error.problems, *foreign)}
            rest = modes.from_json({name: value for name, value in document.items() if name not in unreadable})
            return None, (*error.problems, *foreign, *(p for p in rest.check() if p.field not in unreadable))
        named = {problem.field for problem in foreign}
        problems = (*foreign, *(problem for problem in request.check() if problem.field not in named))
        if self.folders and all(problem.field != "output_folder" for problem in problems):
            folder = self.folders.problem(request.output_folder, trial=False)
            problems += (folder,) if folder else ()
        return request, problems + self.models.problems(request)

    def write(self, request: Request) -> dict[Component, Any]:
        """Return the values of all components that show a request."""
        updates: dict[Component, Any] = {}
        for name, entry in self.entries.items():
            updates |= zip(entry.components, entry.write(getattr(request, name)), strict=True)
        return updates

    def _words(self, name: str) -> dict[str, Any]:
        info = self.t(f"page.info.{name}") if f"page.info.{name}" in table("en") else None
        return {"label": self.t(f"page.field.{name}"), "info": info}


@lru_cache(maxsize=8)
def _request(document: str) -> Request:
    """Return the request of a JSON document, cached, so that an unchanged form keeps its request and its plan."""
    return modes.from_json(json.loads(document))


def size_labels(sizes: Iterable[int]) -> dict[int, str]:
    """Return the label of each size, by size in pixels."""
    return {size: f"{size} px" for size in sizes}


def _shown(value: float | None, empty: float | None) -> str:
    return "" if value == empty else f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str) -> int | float | str:
    # Some languages' users type full-width digits or a decimal comma.
    text = unicodedata.normalize("NFKC", text).strip().replace(",", ".")
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
