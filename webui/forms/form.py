"""Request field <-> component: a page adds its fields, the form reads a request from them and writes one."""

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
    """One field's components; `read` takes their values, `write` returns as many."""

    components: tuple[Component, ...]
    read: Callable[..., Any]
    write: Callable[[Any], tuple]


class Form:
    """The fields of one mode's request that a page shows. Those it does not show are what the model recommends."""

    def __init__(
        self,
        kind: type[Request],
        t: Translator,
        models: Models,
        folders: OutputFolders | None = None,
        holds: Callable[[str], bool] = lambda path: True,
    ):
        """holds: whether a browser may name the file of that path."""
        self.kind = kind
        self.t = t
        self.models = models
        self.folders = folders
        self.holds = holds
        self.defaults = models.recommended(models.default(kind.checkpoint), kind)
        self.entries: dict[str, FieldBinding] = {}
        # Updates that close what shows a part of a field, such as one section, when the field is filled from elsewhere. Any: a
        # column among them is no component to gradio's types.
        self.closed: dict[Any, Any] = {}
        # Components of the program's own values, which no request has, by name (`settings.CHOICES`).
        self.program: dict[str, Component] = {}
        # The page's `ModelPanel`.
        self.model: Any = None
        # Called with a `FormUpdates` once the page has all its fields.
        self.wirings: list[Callable[[Any], None]] = []
        # What shows things that other pages and programs change -> its update for a page that was just loaded.
        self.fresh: dict[Component, Callable[[], Any]] = {}
        # Called with the event after which a page that was loaded is filled.
        self.after_load: list[Callable[[Any], Any]] = []
        self._kinds = kinds_of(kind)
        self._blank = {field.name: field.default for field in dataclasses.fields(kind)}

    def has(self, name: str) -> bool:
        """Whether the mode has such a field."""
        return name in self._kinds

    def field_kind(self, name: str) -> Any:
        """Return the field's kind, with its limits or choices."""
        return self._kinds[name]

    def default(self, name: str) -> Any:
        """A new page's value."""
        return self.defaults.get(name, self._blank[name])

    def choices(self, name: str) -> tuple:
        """What a new page offers of the field's choices: models that are there, and the model's sizes."""
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
        """Tie components to a field; returns the first. beside: what its problems are shown at, by default the first."""
        if name not in self._kinds:
            raise KeyError(f"{self.kind.__name__} has no field {name}")
        self.entries[name] = FieldBinding((first, *others), read, write)
        place = beside or first
        place.elem_classes = [*(place.elem_classes or []), f"field-{name}"]
        return first

    def text(self, name: str, **settings: Any) -> gr.Textbox:
        """Put a box for a text into the page, tied to a field. settings: of the component."""
        return self.add(name, gr.Textbox(value=self.default(name), **self._words(name), **settings))

    def picture(self, name: str, **settings: Any) -> fields.Picture:
        """Put a place for a picture into the page, tied to a field."""
        return self.add(
            name,
            fields.picture(label=self.t(f"page.field.{name}"), placeholder=self.t("page.picture.placeholder"), **settings),
            read=lambda value: value or "",
            write=lambda value: (value or None,),
        )

    def slider(self, name: str, step: float, **settings: Any) -> fields.Slider:
        """Put a slider into the page, tied to a field, within its limits."""
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
        """A number box."""
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
        """A box for a number whose emptiness says "choose for me"; `empty` is the field's value for that.

        It is a box of text because gradio's number box turns emptiness into 0.
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
        """One of the field's choices. labels: choice -> words, one for each."""
        choices = [(labels[choice], choice) for choice in self.choices(name)]
        return self.add(name, fields.Radio(choices, value=self.default(name), **self._words(name), **settings))

    def switch(self, name: str, **settings: Any) -> gr.Checkbox:
        """Put a checkbox into the page, tied to a field."""
        return self.add(name, gr.Checkbox(value=self.default(name), **self._words(name), **settings))

    @property
    def components(self) -> set[Block]:
        """Return the components of all fields, which an event is given to read the form."""
        return {component for entry in self.entries.values() for component in entry.components}

    def document(self, values: Mapping[Component, Any]) -> dict[str, Any]:
        """The request's JSON document as the components stand; without files that a browser may not name."""
        return self._document(values)[0]

    def _document(self, values: Mapping[Component, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """The document, and a problem for each file that is left out."""
        document: dict[str, Any] = {"mode": self.kind.mode}
        if "model" in self.entries:
            component = self.entries["model"].components[0]
            document |= self.models.recommended(values[component], self.kind)
        for name, entry in self.entries.items():
            value = entry.read(*(values[component] for component in entry.components))
            # An emptied box of a field that needs a value is a problem to report, not the default.
            document[name] = "" if value is None and not self.field_kind(name).optional else value
        kept, left_out = with_files(document, self.holds)
        return kept, [Problem(field, "file_not_uploaded", {"file": path[-200:]}) for field, path in left_out]

    def read(self, values: Mapping[Component, Any]) -> tuple[Request | None, tuple[Problem, ...]]:
        """The request, or None if a value cannot even be read; and every problem at once.

        The output folder's permissions are asked; nothing is written to find out, at every key that is pressed.
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
        """The value of every component for this request."""
        updates: dict[Component, Any] = {}
        for name, entry in self.entries.items():
            updates |= zip(entry.components, entry.write(getattr(request, name)), strict=True)
        return updates

    def _words(self, name: str) -> dict[str, Any]:
        info = self.t(f"page.info.{name}") if f"page.info.{name}" in table("en") else None
        return {"label": self.t(f"page.field.{name}"), "info": info}


@lru_cache(maxsize=8)
def _request(document: str) -> Request:
    """The request of a JSON document: the same one, with its plan, as long as nothing is changed."""
    return modes.from_json(json.loads(document))


def size_labels(sizes: Iterable[int]) -> dict[int, str]:
    """Return what sizes are called, by size."""
    return {size: f"{size} px" for size in sizes}


def _shown(value: float | None, empty: float | None) -> str:
    return "" if value == empty else f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str) -> int | float | str:
    # Full-width digits and a decimal comma are how some of the languages type numbers.
    text = unicodedata.normalize("NFKC", text).strip().replace(",", ".")
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
