"""Test in a browser what a user sees when something goes wrong."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from eichi_utils.problems import Problem
from eichi_utils.requests.reverse import ReverseRequest
from locales import Translator
from tests.webui.browsing import (
    can_start,
    double_click_start,
    eventually,
    fill,
    holds,
    reload,
    shows,
    type_in,
    until,
    until_filled,
)

pytestmark = pytest.mark.browser

T = Translator("ja")
# Every handler of the page, asked as a program would: with too few values, with none of the right kind, and as nobody does.
ASK = """async () => {
  const calls = window.gradio_config.dependencies.filter(call => call.backend_fn), wrong = [];
  const headers = { 'Content-Type': 'application/json' };
  for (const data of [count => [], count => Array(count).fill({ a: null })])
    for (const call of calls) {
      const body = JSON.stringify({ data: data(call.inputs.length), fn_index: call.id, event_data: 5, session_hash: 'x' });
      const answer = await fetch('gradio_api/run/predict', { method: 'POST', body, headers });
      if (answer.status !== 200) wrong.push([call.id, answer.status, (await answer.text()).slice(0, 200)]);
    }
  return [calls.length, wrong]; }"""


def test_errors_are_sentences_and_a_double_click_is_one_film(serve, open_page, engine, tower, tmp_path):
    """A queue's failure left no trace on the page; a full folder for uploads was a popup with the exception's text; and a
    double click with a new picture failed in three of five."""
    engine.problem = Problem("loras/0", "lora_missing", {"file": "ink.safetensors"})
    site = serve("reverse", "ja")
    failed = site.jobs.submit(ReverseRequest(image=tower, prompt="first"))
    list(site.jobs.follow(failed.id))
    engine.problem = None
    page = open_page(site.url)
    until(page, "failed")
    fill(page, tower, "second")

    (tmp_path / "uploads").write_text("a file in the folder's way")
    page.click("#start")
    shows(page, "#told .told:visible", str(tmp_path / "uploads"), "File exists")
    holds(page, "#prompt textarea", "second")
    assert len(site.jobs.all()) == 1
    page.click("#told button")
    expect(page.locator("#told .told:visible")).to_have_count(0)

    (tmp_path / "uploads").unlink()
    double_click_start(page)
    assert [job.view.state for job in site.jobs.all()] == ["failed", "finished"]
    expect(page.locator("#told .told:visible")).to_have_count(0)
    for again in (True, False):
        expect(page.locator("#history li.failed")).to_be_visible()
        shows(page, "#history", T("page.state.failed"), "ink.safetensors", "first")
        if again:
            reload(page)

    # With a slow answer to the first question, an own prompt was replaced by the newest job's, and the wrong film was made.
    held: list[Route] | None = []
    page.route("**/gradio_api/run/**", lambda route: route.continue_() if held is None else held.append(route))
    page.reload()
    expect(page.locator(".eichi-form")).to_have_attribute("inert", "")
    eventually(page, lambda: len(held) > 0)
    late, held = held, None
    for route in late:
        route.continue_()
    until_filled(page)
    holds(page, "#prompt textarea", "second")
    type_in(page, "#prompt textarea", "my own")
    can_start(page)
    holds(page, "#prompt textarea", "my own")
    page.unroute_all(behavior="wait")

    count, wrong = page.evaluate(ASK)
    assert count > 50 and wrong == []
    assert page.request.get(site.url).status == 200
