"""What a click has done, or why it did nothing: said beside its control, with the way back or a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from eichi_utils.problems import Problem
from locales import Translator
from webui.forms import words

UNDO = "undo"
# Characters of what an undo holds as Python writes it, several times a full form. The server keeps one for each panel of each
# tab; what somebody has pasted may be a thousand times as long as any prompt that can be used, and is not kept.
MOST_HELD = 100_000

HTML = '<div class="outcome" role="status"></div>'

CSS = """
.outcome { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px; font-size: 14px; }
.outcome:empty { display: none; }
p { flex: 1 1 100%; margin: 0; overflow-wrap: anywhere; }
p.note { color: var(--body-text-color-subdued); }
p.wrong { padding: 4px 8px; border-radius: 4px; color: var(--error-text-color); background: var(--error-background-fill); }
button { margin: 0 !important; padding: 4px 12px; min-height: 32px; border-radius: 6px; cursor: pointer; font-size: 13px;
  color: var(--body-text-color); background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
button:hover, button:focus-visible { border-color: var(--color-accent); }
"""

JS = """
function show() {
  const { lines = [], actions = {}, file } = props.value || {};
  const link = document.createElement('a');
  if (file) { link.href = file.url; link.download = link.textContent = file.name; }
  element.querySelector('.outcome').replaceChildren(
    ...(file ? [link] : []),
    ...lines.map(([look, text]) => { const line = document.createElement('p'); line.className = look; line.textContent = text;
      return line; }),
    ...Object.entries(actions).map(([action, label]) => {
      const button = document.createElement('button');
      button.type = 'button'; button.textContent = label; button.dataset.action = action;
      button.addEventListener('click', () => trigger('click', { action }));
      return button; }));
  // Asked for by a click, so it comes without a second one.
  if (file && file.url !== fetched) { fetched = file.url; link.click(); }
}
let fetched = '';
show();
watch('value', show);
"""


class Outcome:
    """The element, and what its buttons are about. Its click carries the action's name."""

    def __init__(self, t: Translator, elem_id: str):
        self.t = t
        self.box = gr.HTML({}, html_template=HTML, css_template=CSS, js_on_load=JS, elem_id=elem_id, padding=False)
        self.about = gr.State(None)

    @property
    def outputs(self) -> list[Component]:
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
