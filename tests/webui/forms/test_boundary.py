"""Test that errors in a page's handler, and calls that no browser sends, end in a sentence and leave the form as it was."""

from __future__ import annotations

import errno
import inspect
import logging
import math
import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import gradio as gr
import pytest
from gradio.routes import ORJSONResponse
from gradio.state_holder import SessionState

from eichi_utils.files.folders import OutputFolders
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.log_file import FOLDER, Log
from locales import LANGUAGES, Translator, table
from tests.threads import in_a_loop
from webui.app import PAGES
from webui.context import Context
from webui.forms.boundary import MOST_CHARACTERS, ErrorBoundary, problems_at
from webui.gradio_compat import number_of

pytestmark = pytest.mark.slow

ASKER = SimpleNamespace(client=SimpleNamespace(host="192.0.2.1"))
DEEP = "[" * 5000
# Values that are given to every input of every handler, to all at once and to some.
VALUES: tuple[Any, ...] = (
    None, "", "x" * 6000, "\ud800", [], ["a", 1], {}, {"a": None}, -1, 10**30, math.nan, math.inf, True,
    DEEP, '{"0": null}', '[{"file": {}, "strength": "x"}]', "../../etc/passwd", {"path": "/etc/passwd"},
)  # fmt: skip
EVENTS: tuple[Any, ...] = (
    None, {}, [], "action", 5, {"action": []}, {"action": "nope"}, {"action": "up", "job": []},
    {"action": "remove", "job": "gone"},
    {"index": None}, {"index": -5}, {"index": 10**9}, {"section": -1}, {"section": {"a": 1}}, {"section": 10**9}, {"field": []},
    {"field": "nope"}, {"field": "folder"}, {"action": "undo"}, {"action": "everything"},
)  # fmt: skip
USUAL = {"section": 0, "index": 0, "action": "prompt", "field": "image", "job": "x"}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call functions without a thread for each, because there are thousands of calls here."""

    async def called(fn: Any, *args: Any, **_: Any) -> Any:
        return fn(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", called)


@pytest.fixture
def whole_page(jobs, tmp_path, unserved) -> Any:
    """Return a function that builds a page with all its panels, also those for a card and a log."""

    def build(mode: str, language: str = "en") -> ErrorBoundary:
        t = Translator(language)
        card = SimpleNamespace(total=24 * 2**30)
        engine = SimpleNamespace(card=card, reserve_gb=0.5, never_fits=lambda request: ())
        (tmp_path / "outputs").mkdir(exist_ok=True)
        context = Context(
            jobs,
            t,
            mode,
            tmp_path / "outputs",
            tmp_path / "uploads",
            models=Models(tmp_path),
            settings=tmp_path / "settings",
            presets=tmp_path / "presets",
            engine=engine,
            log=Log("test", t, OutputFolders(tmp_path, (), FOLDER)),
        )
        return PAGES[mode][1](context)

    return build


def ask(page: ErrorBoundary, call: Any, inputs: list) -> dict[str, Any]:
    """Call a handler and return its answer as a browser gets it."""
    return in_a_loop(asked(page, call, inputs, None, SessionState(page)))


async def asked(page: ErrorBoundary, call: Any, inputs: list, event: Any, state: SessionState) -> dict[str, Any]:
    answer = await page.process_api(call, inputs, state=state, request=ASKER, event_data=gr.EventData(None, event))
    ORJSONResponse(answer["data"])
    return answer


def said(page: ErrorBoundary, call: Any, answer: dict[str, Any]) -> list[str]:
    """Return the lines of an answer that say what went wrong."""
    at = call.outputs.index(page.message) if page.message in call.outputs else -1
    assert len(answer["data"]) == len(call.outputs) + (at == -1)
    return answer["data"][at].get("lines", [])


def handlers(page: ErrorBoundary) -> list[Any]:
    """Return the events of a page that call the server, each function once."""
    found = {}
    for call in page.fns.values():
        if call.fn is not None:
            found.setdefault((str(call.fn), len(call.inputs)), call)
    return list(found.values())


def standing(call: Any) -> list[Any]:
    values = [getattr(block, "value", None) for block in call.inputs]
    return [None if callable(value) else value for value in values]


def nasty(call: Any) -> Iterator[tuple[list[Any], Any]]:
    usual = standing(call)
    for value in VALUES:
        yield [value] * len(usual), USUAL
    for number in range(len(usual) if len(usual) > 1 else 0):
        value = VALUES[number * 7 % len(VALUES)]
        yield [value if other == number else one for other, one in enumerate(usual)], USUAL
    if any(part.annotation in (gr.EventData, "gr.EventData") for part in inspect.signature(call.fn).parameters.values()):
        for event in EVENTS:
            yield usual, event


@pytest.mark.parametrize("mode", PAGES)
def test_what_no_browser_sends_is_understood_or_refused_in_a_sentence(whole_page, jobs, at_once, caplog, mode):
    """A click without an action was a KeyError, a number in a box of text an AttributeError; all of it went to the user as a
    popup with the exception's text, and as a traceback to the console."""
    page = whole_page(mode)
    refused = [table("en")["problem.page_value"]], [table("en")["problem.file_not_uploaded"].format(file="/etc/passwd")]
    failed = []

    async def every() -> None:
        # One tab asks everything: what gradio keeps of a tab takes as long to make as twenty answers.
        state = SessionState(page)
        for call in handlers(page):
            for inputs, event in nasty(call):
                caplog.clear()
                lines = said(page, call, await asked(page, call, inputs, event, state))
                errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
                if errors or lines not in ([], *refused):
                    failed.append((call.name, str(inputs)[:200], event, lines, [str(record.exc_info) for record in errors]))

    in_a_loop(every())
    assert not failed, "\n".join(map(str, failed[:20]))
    assert jobs.all() == ()


def small(fn: Any, outputs: int = 2) -> tuple[ErrorBoundary, Any]:
    """Return a page with one handler, and its event."""
    with ErrorBoundary(Translator("en"), analytics_enabled=False) as page:
        page.place()
        boxes = [gr.Textbox() for _ in range(outputs)]
        gr.Button().click(fn, boxes[0], boxes, queue=False)
    return page, page.fns[0]


def plain(_: str) -> Any:
    raise KeyError("seconds")


async def waiting(_: str) -> Any:
    raise KeyError("seconds")


def yielding(_: str) -> Iterator[Any]:
    raise KeyError("seconds")
    yield


async def yielding_later(_: str) -> Any:
    raise KeyError("seconds")
    yield


def half(_: str) -> Any:
    return {}["seconds"], ""


@pytest.mark.parametrize("fn", [plain, waiting, yielding, yielding_later, half])
def test_any_handler_ends_in_a_sentence_and_the_cause_in_the_log(unserved, caplog, fn):
    """A one-frame picture on the F1 page ended in a popup that said `'seconds'`."""
    page, call = small(fn)
    answer = ask(page, call, ["a"])
    assert said(page, call, answer) == [table("en")["problem.page_failed"]]
    assert answer["data"][:-1] == [gr.skip(), gr.skip()] and not answer["is_generating"]
    (record,) = [record for record in caplog.records if record.name == "webui.forms.boundary"]
    assert record.exc_info[0] is KeyError


def test_an_answer_with_too_few_values_is_an_error_too(unserved):
    """An answer with too few values is handled like other errors: gradio finds it after the handler, inside of the boundary."""
    page, call = small(lambda text: [text])
    assert said(page, call, ask(page, call, ["a"])) == [table("en")["problem.page_failed"]]


def test_a_handler_that_does_well_says_nothing(unserved):
    page, call = small(lambda text: (text, "b"))
    answer = ask(page, call, ["a"])
    assert answer["data"] == ["a", "b", gr.skip()] and said(page, call, answer) == []


@pytest.mark.parametrize("error", [
    (UserError([Problem("", "disk_full")]), "disk_full"),
    (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b.png"), "page_system"),
    (OSError(errno.EROFS, "Read-only file system", "/a/b.png"), "page_system"),
    (MemoryError(), "out_of_memory"),
    (KeyError("seconds"), "page_failed"),
    (StopIteration(), "page_failed"),
])  # fmt: skip
def test_what_can_be_mended_is_named(error):
    (problem,) = problems_at(error[0])
    assert problem.key == error[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_start_without_room_for_the_picture_says_so(whole_page, jobs, tmp_path, tower, at_once, language):
    """A folder for uploads that is full or may not be written to was a popup with the exception's text."""
    page = whole_page("reverse", language)
    (tmp_path / "uploads").write_text("a file in the folder's way")
    t = Translator(language)
    call = next(call for call in page.fns.values() if call.name == "submit")
    picture = {"path": shutil.copy(tower, tmp_path / "outputs"), "meta": {"_type": "gradio.FileData"}}
    values = {getattr(block, "elem_id", None): number for number, block in enumerate(call.inputs)}
    inputs = standing(call)
    inputs[values["image"]], inputs[values["prompt"]] = picture, "a cat"
    asked = page.process_api(call, inputs, state=SessionState(page), request=ASKER, explicit_call=True)
    (line,) = said(page, call, in_a_loop(asked))
    assert line == t("problem.uploads_not_written", folder=str(tmp_path / "uploads"), reason="File exists")
    assert jobs.all() == ()


def test_a_page_whose_loading_fails_is_there_all_the_same(whole_page, at_once, monkeypatch):
    page = whole_page("reverse")
    monkeypatch.setattr("webui.forms.form_updates.FormUpdates.initial", plain)
    call = next(call for call in page.fns.values() if call.name == "fill")
    answer = ask(page, call, [])
    assert said(page, call, answer) == [table("en")["problem.page_failed"]]
    assert all(value == gr.skip() for value in answer["data"][:-1])


def test_megabytes_of_text_are_not_kept(whole_page, at_once):
    """Gradio keeps what each of the last 500 tabs has sent, of any length."""
    page = whole_page("single")
    call = next(call for call in page.fns.values() if call.name == "on_change")
    lines = said(page, call, ask(page, call, ["x" * (MOST_CHARACTERS + 1)] * len(call.inputs)))
    assert lines == [Translator("en")("problem.page_too_much", most=MOST_CHARACTERS)]


@pytest.mark.parametrize("mode", PAGES)
def test_every_handler_of_a_page_can_tell(jobs, tmp_path, monkeypatch, mode):
    """Every handler of a page has `told` among its outputs once, by the description that the browser gets."""
    monkeypatch.setattr(gr.routes.App, "create_app", lambda *args, **settings: None)
    page = PAGES[mode][1](Context(jobs, Translator("en"), mode, tmp_path, models=Models(tmp_path)))
    calls = [call for call in page.get_config_file()["dependencies"] if call["backend_fn"]]
    assert len(calls) > 20 and all(call["outputs"].count(number_of(page.message)) == 1 for call in calls)
