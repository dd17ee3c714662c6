"""Act as a user in a browser, and wait for what the user then waits to see.

A page answers when it can. So nothing is looked at once: every look here and every `expect` waits until it is so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, Request, expect

# Milliseconds that a look waits at most: pages are slow on a busy machine, and what is there at once costs no time.
PATIENCE = 60_000
# The same for a film that is really made.
FILM_PATIENCE = 300_000
PROMPT = "The girl dances gracefully."
# For a context's `add_init_script`. The form is inert from the first question on until the answer has filled it; that it was,
# and is no more, an attribute says.
MARK_FILLED = """new MutationObserver(changes => {
  if (changes.some(change => change.oldValue !== null && change.target.matches('.eichi-form:not([inert])')))
    document.documentElement.dataset.filled = '';
}).observe(document, { subtree: true, attributeFilter: ['inert'], attributeOldValue: true });"""
SEED, SECONDS, FOLDER = "#seed :is(textarea, input)", "#seconds input[type=number]", "#output_folder :is(textarea, input)"


def until_filled(page: Page) -> None:
    """Wait until the form can be typed into: before that, the first answer replaces what it holds."""
    expect(page.locator("html[data-filled] .eichi-form:not([inert])")).to_be_visible()


def reload(page: Page) -> None:
    page.reload()
    until_filled(page)


def shows(at: Page | Locator, place: str, *texts: str) -> None:
    """Wait until the first such place holds all the texts."""
    for text in texts:
        expect(at.locator(place).first).to_contain_text(text)


def holds(page: Page, place: str, value: str) -> None:
    """Wait until a box holds exactly this."""
    expect(page.locator(place)).to_have_value(value)


def eventually(page: Page, look: Callable[[], Any], wanted: Any = True, patience: int = PATIENCE) -> None:
    """Wait until `look` returns what is wanted, while the page goes on; for what no `expect` can see."""
    for _ in range(patience // 50):
        if look() == wanted:
            return
        page.wait_for_timeout(50)
    assert look() == wanted


def fits(page: Page, width: int) -> None:
    """Wait until the page is no wider than its window."""
    eventually(page, lambda: page.evaluate("document.documentElement.scrollWidth") <= width)


def stored(page: Page, place: str) -> Any:
    """Return the JSON value that a hidden box holds now."""
    return json.loads(page.locator(f"{place} textarea").input_value())


def asks(request: Request, *values: Any) -> bool:
    """Return whether a request calls a handler of the page with all these values: texts, numbers, paths of files."""
    if not (request.method == "POST" and "/gradio_api/run/" in request.url):
        return False
    told = [str(one.get("path") if isinstance(one, dict) else one) for one in request.post_data_json["data"]]
    return all(str(value) in told for value in values)


def heard(page: Page, act: Callable[[], Any], *values: Any) -> None:
    """Do something, and wait until the server has answered a call with all these values."""
    with page.expect_response(lambda answer: asks(answer.request, *values)):
        act()


def type_in(page: Page, place: str, value: str | int | float) -> None:
    """Type another text, and wait until the server has it: gradio sends it a moment later."""
    heard(page, lambda: page.fill(place, str(value)), value)


def fill(page: Page, picture: str, prompt: str = PROMPT) -> None:
    """Fill in a picture and another prompt, and wait until the server has both and Start is enabled."""
    with page.expect_response(lambda answer: "/gradio_api/upload?" in answer.url) as uploaded:
        page.set_input_files("#image input[type=file]", picture)
    (path,) = uploaded.value.json()
    heard(page, lambda: page.fill("#prompt textarea", prompt), path, prompt)
    can_start(page)


def double_click_start(page: Page) -> None:
    """Start a film by a double click, and wait until both clicks have been answered."""
    asked: set[Request] = set()
    page.on("request", lambda request: asked.add(request) if asks(request) else None)
    for ends in ("requestfinished", "requestfailed"):
        page.on(ends, lambda request: asked.discard(request))
    page.dblclick("#start")
    until(page, "finished")
    eventually(page, lambda: not asked)


def can_start(page: Page) -> None:
    expect(page.locator("#start")).to_be_enabled()


def cannot_start(page: Page) -> None:
    expect(page.locator("#start")).to_be_disabled()


def until(page: Page, state: str, patience: int = PATIENCE) -> None:
    """Wait until the job that the page shows is in that state."""
    expect(page.locator(f"#progress [data-state={state}]")).to_be_visible(timeout=patience)
