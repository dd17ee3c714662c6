"""Catch every exception of the page handlers: show a sentence on the page, and write the cause into the log.

The form stays as it was. Gradio itself would show the exception's text, such as `'seconds'`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import gradio as gr

from eichi_utils.jobs.queue import problems_of
from eichi_utils.problems import Problem, UserError
from locales import Translator
from webui.forms import words
from webui.gradio_compat import AnsweredBlocks, Event, can_be_sent, unchanged, was_raised_while_reading
from webui.static_files import element

# The most characters of an error's text in the log: a refused value may have megabytes.
SHOWN_CHARACTERS = 300
# The most characters of text in one event. Prompts for a hundred sections have half a million.
MOST_CHARACTERS = 4_000_000

logger = logging.getLogger(__name__)


class ErrorBoundary(AnsweredBlocks):
    """Build a page whose handlers' errors are shown in `message` as sentences.

    Every handler's answer gets one more value, for `message`, so that a handler need not know of it; a handler that writes
    there itself has it among its outputs.
    """

    def __init__(self, t: Translator, **settings: Any):
        super().__init__(**settings)
        self.t = t

    def place(self) -> gr.HTML:
        """Create `message` at the current place of the page and return it; call it once, inside the page's block."""
        self.message = element("messages", {}, "showMessages", elem_id="told", padding=False)
        return self.message

    async def answer(self, event: Event, inputs: list[Any], run: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Return an event's answer; if its handler fails, one that says why in `message` and changes nothing else."""
        said = gr.skip()
        try:
            if sum(len(value) for value in inputs if isinstance(value, str)) > MOST_CHARACTERS:
                raise UserError([Problem("", "page_too_much", {"most": MOST_CHARACTERS})])
            answer = await run()
            answer["data"] = sendable(answer["data"])
        except Exception as error:
            _log(event, error)
            said = message_value(self.t, problems_at(error))
            answer = unchanged(event)
        if self.message not in event.outputs:
            answer["data"] = [*answer["data"], said]
        elif said != gr.skip():
            answer["data"][event.outputs.index(self.message)] = said
        return answer


def message_value(t: Translator, problems: Iterable[Problem], look: str = "wrong") -> dict[str, Any]:
    """Return the value of `message` that shows these problems. look: "wrong", or "note" where nothing failed."""
    lines = [words.problem_sentence(t, problem) for problem in problems]
    return {"lines": lines, "look": look, "at": time.monotonic_ns(), "close": t("page.close")} if lines else {}


def sendable(data: list[Any]) -> list[Any]:
    """Return an answer's values as gradio's JSON can hold them.

    Lone surrogates, which file names and typed text may have, become "?", and integers of more than 64 bits become text.
    """
    return data if can_be_sent(data) else _whole(data)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    if isinstance(value, dict):
        return {_whole(name): _whole(part) for name, part in value.items()}
    return [_whole(part) for part in value] if isinstance(value, (list, tuple)) else value


def problems_at(error: Exception) -> tuple[Problem, ...]:
    """Return what to tell the user about an exception that ended a handler.

    That is what the user can mend, if anything; else that it failed and that the log has the cause.
    """
    if was_raised_while_reading(error):
        return (Problem("", "page_value"),)
    problems = problems_of(error)
    if all(problem.key != "unexpected" for problem in problems):
        return problems
    if isinstance(error, OSError) and error.strerror:
        return (Problem("", "page_system", {"file": str(error.filename or "-")[:500], "reason": error.strerror}),)
    return (Problem("", "page_failed"),)


def _log(event: Event, error: Exception) -> None:
    if isinstance(error, UserError) or was_raised_while_reading(error):
        logger.warning("%s was not carried out: %s", event.name, str(error)[:SHOWN_CHARACTERS])
    else:
        logger.error("%s failed", event.name, exc_info=error)
