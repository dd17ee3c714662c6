"""Test tabs that were open before their server ended: another server is in its place, the same one again, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gradio.context
import pytest
from playwright.sync_api import expect

from eichi_utils.requests.forward import ForwardRequest
from locales import Translator
from tests.webui.browsing import (
    MARK_FILLED,
    PATIENCE,
    SECONDS,
    can_start,
    eventually,
    fill,
    heard,
    holds,
    shows,
    stored,
    type_in,
    until,
    until_filled,
)
from tests.webui.conftest import Site

pytestmark = pytest.mark.browser

T = Translator("en")
BAR = ".eichi-tab"


@pytest.fixture
def started(serve, monkeypatch) -> Callable[..., Site]:
    """Start the pages as in a process of their own, where gradio counts components from the beginning."""

    def start(*args, **settings) -> Site:
        monkeypatch.setattr(gradio.context.Context, "id", 0)
        return serve(*args, **settings)

    return start


@pytest.fixture
def tab(browser) -> Iterator[Callable]:
    """Open a tab. The browser notes a refused or unanswered event as an error, so errors are not counted here."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(MARK_FILLED)

    def go(url: str):
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        until_filled(page)
        return page

    yield go
    context.close()


def test_a_tab_of_another_server_stops_no_film_and_keeps_what_was_typed(started, tab, tower):
    """Functions have numbers: "Use LoRA" in a tab of the standard page, once the F1 page ran on its port, pressed that one's
    Stop button; Start made nothing and said "[object Object]"."""
    site = started("reverse")
    page = tab(site.url)
    fill(page, tower, "my own words")
    type_in(page, SECONDS, 7)
    page.locator("#timeline [data-section='1']").click()
    holds(page, "#section-number textarea", "1")
    page.fill("#section-prompt textarea", "of one section")
    eventually(page, lambda: stored(page, "#section-prompts-json"), {"1": "of one section"})
    # Gradio takes note of what was typed a moment later, and of nothing in a part of the form that is closed by then.
    page.click("#advanced .label-wrap")
    type_in(page, ".field-steps input[type=number]", 11)
    page.click("#advanced .label-wrap")
    expect(page.locator("#advanced .label-wrap.open")).to_have_count(0)
    page.click("#loras .label-wrap")
    expect(page.locator("#lora-switch input")).to_be_visible()
    can_start(page)
    site.end()
    site = started("forward", port=site.port)
    site.engine.hold.clear()
    site.jobs.submit(ForwardRequest(image=tower, prompt="a film of somebody else", seconds=5.0))

    page.check("#lora-switch input")
    page.click("#start")
    shows(page, BAR, T("page.tab.other"))
    for kind in ("uncheck", "check", "uncheck"):
        # Each is asked of the other server, which refuses it.
        heard(page, lambda kind=kind: getattr(page, kind)("#lora-switch input"))
    (film,) = site.jobs.all()
    eventually(page, lambda: film.view.state, "running")
    assert not film.view.stopping
    expect(page.locator("body")).not_to_contain_text("[object Object]")
    holds(page, "#prompt textarea", "my own words")

    with page.expect_navigation():
        page.click(f"{BAR} button")
    holds(page, "#prompt textarea", "my own words")
    holds(page, SECONDS, "7")
    eventually(page, lambda: stored(page, "#section-prompts-json"), {"1": "of one section"})
    # Gradio has no boxes in a part of the form that is closed, and Start took the usual number.
    for ready in ("html[data-filled] .eichi-form:not([inert])", "#advanced .label-wrap:not(.open)", "#loras .label-wrap.open"):
        expect(page.locator(ready)).to_be_visible()
    # The page that runs now, and its functions are its own.
    expect(page.locator("nav [aria-current]")).to_have_text(T("page.mode.forward"))
    page.set_input_files("#image input[type=file]", tower)
    can_start(page)
    page.click("#start")
    expect(page.locator("#queue li")).to_have_count(1)
    request = site.jobs.all()[-1].request
    assert (request.mode, request.prompt, request.seconds, request.steps) == ("forward", "my own words", 7.0, 11)
    assert dict(request.section_prompts) == {1: "of one section"}
    site.engine.hold.set()


def test_an_untouched_tab_of_another_server_is_loaded_anew(started, tab):
    site = started("reverse")
    page = tab(site.url)
    site.end()
    with page.expect_navigation():
        site = started("forward", port=site.port)
    until_filled(page)
    expect(page.locator("nav [aria-current]")).to_have_text(T("page.mode.forward"))
    # Its next word from the server is of its own page.
    for _ in range(2):
        page.wait_for_event("response", lambda answer: "/pulse/" in answer.url)
    expect(page.locator(BAR)).to_have_count(0)


def test_a_form_outlives_a_server_that_is_started_anew(started, tab, tower):
    """After one event without an answer gradio said "Connection Lost" and loaded the page again, and the whole form was
    lost."""
    site = started("reverse")
    page = tab(site.url)
    page.evaluate("window.same = true")
    fill(page, tower, "before")
    site.end()
    page.fill("#prompt textarea", "typed meanwhile")
    expect(page.locator(BAR)).to_have_text(T("page.tab.silent"))
    for _ in range(2):
        page.wait_for_event("requestfailed")
    site = started("reverse", port=site.port)
    expect(page.locator(BAR)).to_have_count(0)
    type_in(page, "#prompt textarea", "and afterwards")
    can_start(page)
    page.click("#start")
    until(page, "finished")
    assert site.jobs.all()[-1].request.prompt == "and afterwards"
    assert page.evaluate("window.same")
    expect(page.locator("#image img")).to_be_visible()
