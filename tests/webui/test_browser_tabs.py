"""Tabs that were open before the server they show ended: another one is in its place, the same one again, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gradio.context
import pytest

from eichi_utils.requests.forward import ForwardRequest
from locales import Translator
from tests.webui.conftest import Site
from tests.webui.test_browser import fill, until

pytestmark = pytest.mark.browser

T = Translator("en")
BAR = ".eichi-tab"


@pytest.fixture
def started(serve, monkeypatch) -> Callable[..., Site]:
    """Starts the pages as in a process of their own, where gradio counts components from the beginning."""

    def start(*args, **settings) -> Site:
        monkeypatch.setattr(gradio.context.Context, "id", 0)
        return serve(*args, **settings)

    return start


@pytest.fixture
def tab(browser) -> Iterator[Callable]:
    """Opens a tab. That an event was refused or not answered, the browser notes as an error, so nobody counts them here."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})

    def go(url: str):
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        page.wait_for_selector("#start")
        page.wait_for_selector(".eichi-form:not([inert])")
        return page

    yield go
    context.close()


def test_a_tab_of_another_server_stops_no_film_and_keeps_what_was_typed(started, tab, tower):
    """Functions have numbers: "Use LoRA" in a tab of the standard page, once the F1 page ran on its port, pressed that one's
    Stop button; Start made nothing and said "[object Object]"."""
    site = started("reverse")
    page = tab(site.url)
    fill(page, tower, "my own words")
    page.fill("#seconds input[type=number]", "7")
    page.locator("#timeline [data-section='1']").click()
    page.wait_for_selector("#section-prompt textarea:visible")
    page.fill("#section-prompt textarea", "of one section")
    # Gradio takes note of what was typed a moment later, and of nothing in a part of the form that is closed by then.
    steps = page.locator(".field-steps input[type=number]")
    for _ in range(10):
        page.click("#advanced .label-wrap")
        if steps.input_value() == "11":
            break
        steps.fill("11")
        steps.press("Tab")
        page.click("#advanced .label-wrap")
    page.click("#advanced .label-wrap")
    page.click("#loras .label-wrap")
    page.wait_for_selector("#start:enabled")
    site.end()
    site = started("forward", port=site.port)
    site.engine.hold.clear()
    site.jobs.submit(ForwardRequest(image=tower, prompt="a film of somebody else", seconds=5.0))

    page.check("#lora-switch input")
    page.click("#start")
    page.wait_for_selector(BAR)
    assert T("page.tab.other") in page.inner_text(BAR)
    for kind in ("check", "uncheck", "check"):
        getattr(page, kind)("#lora-switch input")
        page.wait_for_timeout(200)
    (film,) = site.jobs.all()
    assert film.view.state == "running" and not film.view.stopping
    assert "[object Object]" not in page.inner_text("body")
    assert page.input_value("#prompt textarea") == "my own words"

    with page.expect_navigation():
        page.click(f"{BAR} button")
    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'my own words'")
    page.wait_for_function("document.querySelector('#seconds input[type=number]').value === '7'")
    page.wait_for_function("document.querySelector('#section-prompts-json textarea').value.includes('of one section')")
    # Gradio has no boxes in a part of the form that is closed, and Start took the usual number.
    ready = (".eichi-form:not([inert])", "#advanced .label-wrap:not(.open)", "#loras .label-wrap.open")
    page.wait_for_function(f"{list(ready)}.every(at => document.querySelector(at))")
    # The page that runs now, and its functions are its own.
    assert page.locator("nav [aria-current]").inner_text() == T("page.mode.forward")
    page.set_input_files("#image input[type=file]", tower)
    page.wait_for_selector("#start:enabled")
    page.click("#start")
    page.wait_for_selector("#queue li")
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
    page.wait_for_selector("#start")
    assert page.locator("nav [aria-current]").inner_text() == T("page.mode.forward")
    page.wait_for_timeout(2000)
    assert page.locator(BAR).count() == 0


def test_a_form_outlives_a_server_that_is_started_anew(started, tab, tower):
    """After one event without an answer gradio said "Connection Lost", took the page away and loaded it anew: all was gone."""
    site = started("reverse")
    page = tab(site.url)
    page.evaluate("window.same = true")
    fill(page, tower, "before")
    site.end()
    page.fill("#prompt textarea", "typed meanwhile")
    page.wait_for_selector(BAR)
    assert page.inner_text(BAR) == T("page.tab.silent")
    page.wait_for_timeout(2500)
    site = started("reverse", port=site.port)
    page.wait_for_selector(BAR, state="detached")
    page.fill("#prompt textarea", "and afterwards")
    page.wait_for_selector("#start:enabled")
    page.click("#start")
    until(page, "finished")
    assert site.jobs.all()[-1].request.prompt == "and afterwards"
    assert page.evaluate("window.same") and page.locator("#image img").is_visible()
