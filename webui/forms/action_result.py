"""Show the result of a click beside its control: what was done or why nothing was, with an undo button or a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.problems import Problem
from locales import Translator
from webui.forms import words
from webui.static_files import element

UNDO = "undo"
# The most characters of an undo's values in Python's notation (`repr`): several times a full form. The server keeps an undo for
# each panel of each tab, so values a thousand times longer than any usable prompt, as after pasting a book, are not kept.
MOST_HELD = 100_000


class ActionResult:
    """Hold the element that shows a result (`box`) and the state that its buttons refer to (`about`).

    A click on one of its buttons carries the action's name (`action_of`).
    """

    def __init__(self, t: Translator, elem_id: str):
        self.t = t
        self.box = element("action_result", {}, "showActionResult", elem_id=elem_id, padding=False)
        self.about = gr.State(None)

    @property
    def outputs(self) -> list[Component]:
        """Return the components that the updates below change."""
        return [self.box, self.about]

    def done(self, text: str, notes: Iterable[Problem] = (), back: Any = None) -> dict[Component, Any]:
        """Return the updates that say an action was done, with an Undo button if `back` is given and not too large.

        notes: what of it could not be done. back: the values needed to undo it, None if it cannot be undone.
        """
        back = back if may_be_held(back) else None
        return self._say(text, notes, {} if back is None else {UNDO: self.t("page.undo")}, back)

    def ask(self, text: str, actions: Mapping[str, str], about: Any, notes: Iterable[Problem] = ()) -> dict[Component, Any]:
        """Return the updates that ask a question.

        actions: name -> words on the button. about: what the answer will refer to. notes: what to know before answering.
        """
        return self._say(text, notes, actions, about)

    def offer(self, url: str, name: str) -> dict[Component, Any]:
        """Return the updates that offer a file, whose download begins at once. url: its address; name: the file's name."""
        return {self.box: {"file": {"url": url, "name": name}}, self.about: None}

    def refused(self, problems: Iterable[Problem]) -> dict[Component, Any]:
        """Return the updates that say that nothing was done, and why."""
        lines = [["wrong", words.problem_sentence(self.t, problem)] for problem in problems]
        return {self.box: {"lines": lines}, self.about: None}

    def same(self) -> dict[Component, Any]:
        """Return updates that change nothing. An empty dictionary would not do: gradio takes it for a value."""
        return {self.box: gr.skip()}

    def nothing(self) -> dict[Component, Any]:
        """Return the updates that empty the element."""
        return {self.box: {}, self.about: None}

    def _say(self, text: str, notes: Iterable[Problem], actions: Mapping[str, str], about: Any) -> dict[Component, Any]:
        lines = [["said", text], *(["note", words.problem_sentence(self.t, note)] for note in notes)]
        return {self.box: {"lines": lines, "actions": dict(actions)}, self.about: about}


def may_be_held(back: Any) -> bool:
    """Tell whether the values that an undo needs are small enough to be kept for each tab."""
    return len(repr(back)) <= MOST_HELD


def clicked(event: gr.EventData, name: str) -> Any:
    """Return the value that an element's `trigger` sent under a name; None if there is none, as from a foreign client."""
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):
        return None


def action_of(event: gr.EventData) -> str:
    """Return the name of the action whose button was clicked, "None" if the event has none."""
    return str(clicked(event, "action"))
