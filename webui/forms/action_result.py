"""What a click has done, or why it did nothing: said beside its control, with the way back or a question."""

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
# Characters of what an undo holds as Python writes it, several times a full form. The server keeps one for each panel of each
# tab; what somebody has pasted may be a thousand times as long as any prompt that can be used, and is not kept.
MOST_HELD = 100_000


class ActionResult:
    """The element, and what its buttons are about. Its click carries the action's name."""

    def __init__(self, t: Translator, elem_id: str):
        self.t = t
        self.box = element("action_result", {}, "showActionResult", elem_id=elem_id, padding=False)
        self.about = gr.State(None)

    @property
    def outputs(self) -> list[Component]:
        """Return the components that its answers change."""
        return [self.box, self.about]

    def done(self, text: str, notes: Iterable[Problem] = (), back: Any = None) -> dict[Component, Any]:
        """It was done. notes: what of it was not. back: what is needed to undo it, None where it cannot be.

        There is no way back to what is larger than any form that can be used.
        """
        back = back if may_be_held(back) else None
        return self._say(text, notes, {} if back is None else {UNDO: self.t("page.undo")}, back)

    def ask(self, text: str, actions: Mapping[str, str], about: Any, notes: Iterable[Problem] = ()) -> dict[Component, Any]:
        """A question. actions: name -> words on the button. about: what the answer is about. notes: what to know before."""
        return self._say(text, notes, actions, about)

    def offer(self, url: str, name: str) -> dict[Component, Any]:
        """A file to download, which begins at once."""
        return {self.box: {"file": {"url": url, "name": name}}, self.about: None}

    def refused(self, problems: Iterable[Problem]) -> dict[Component, Any]:
        """Nothing was done, for these reasons."""
        lines = [["wrong", words.problem_sentence(self.t, problem)] for problem in problems]
        return {self.box: {"lines": lines}, self.about: None}

    def same(self) -> dict[Component, Any]:
        """All outputs stay as they are; gradio takes an empty dictionary for a value."""
        return {self.box: gr.skip()}

    def nothing(self) -> dict[Component, Any]:
        """Nothing is to be said."""
        return {self.box: {}, self.about: None}

    def _say(self, text: str, notes: Iterable[Problem], actions: Mapping[str, str], about: Any) -> dict[Component, Any]:
        lines = [["said", text], *(["note", words.problem_sentence(self.t, note)] for note in notes)]
        return {self.box: {"lines": lines, "actions": dict(actions)}, self.about: about}


def may_be_held(back: Any) -> bool:
    """Tell whether what an undo needs is small enough to be kept for each tab."""
    return len(repr(back)) <= MOST_HELD


def clicked(event: gr.EventData, name: str) -> Any:
    """Return what an element's `trigger` said under a name, or None; only another program than our page says nothing."""
    try:
        return getattr(event, name)
    except (AttributeError, TypeError):
        return None


def action_of(event: gr.EventData) -> str:
    """Return which button was clicked."""
    return str(clicked(event, "action"))
