"""Test from which build of a page an event comes, and that events of another one are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from locales import LANGUAGES, Translator
from webui.http.page_build import HEADER, SameBuild, build_of, sources

BUILDS = {"/": "first", "/f1/": "second"}


def page(*functions: Callable[..., Any], boxes: int = 1, **settings: Any) -> gr.Blocks:
    """Build a page with a button for each function, whose ids count from 0 as in a new process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gr.context.Context, "id", 0)
        with gr.Blocks(analytics_enabled=False) as blocks:
            shown = [gr.Textbox() for _ in range(boxes)]
            for function in functions:
                gr.Button().click(function, shown, shown, **settings)
    return blocks


def look(*values: str) -> str:
    return values[0]


def stop(*values: str) -> str:
    return values[0]


@pytest.mark.slow
def test_a_build_is_the_same_until_anything_of_the_page_is_another(monkeypatch):
    first = build_of(page(look, stop), "reverse", "/", "en")
    assert first == build_of(page(look, stop), "reverse", "/", "en")
    others = [
        build_of(page(stop, look), "reverse", "/", "en"),
        build_of(page(look), "reverse", "/", "en"),
        build_of(page(look, stop, boxes=2), "reverse", "/", "en"),
        build_of(page(look, stop, js="x => x"), "reverse", "/", "en"),
        build_of(page(look, stop), "forward", "/", "en"),
        build_of(page(look, stop), "reverse", "/endframe/", "en"),
        build_of(page(look, stop), "reverse", "/", "ja"),
    ]
    monkeypatch.setattr("webui.http.page_build.sources", lambda: f"{sources()} of the next version")
    others.append(build_of(page(look, stop), "reverse", "/", "en"))
    assert len({first, *others}) == 1 + len(others)


@pytest.fixture(params=["", "/eichi"])
def site(request) -> Iterator[tuple[TestClient, list[str]]]:
    """Provide an application at a path, and a list of its addresses that were reached."""
    root, reached = request.param, []

    async def note(asked: Request) -> PlainTextResponse:
        reached.append(asked.url.path.removeprefix(root))
        return PlainTextResponse("reached")

    routes = [Route("/{path:path}", note, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(SameBuild, builds=BUILDS, t=Translator("ru"))])
    yield TestClient(app, f"http://127.0.0.1{root}", root_path=root), reached


@pytest.mark.parametrize("below", ["gradio_api/run/predict", "gradio_api/run/look/", "gradio_api/api/predict"])
@pytest.mark.parametrize(("place", "build"), BUILDS.items())
def test_an_event_reaches_only_the_page_that_it_comes_from(site, place: str, build: str, below: str):
    """A click in a tab of the standard page stopped the film of the F1 page that had its port since then."""
    client, reached = site
    address = f"{place.strip('/')}/{below}".lstrip("/")
    others = [other for other in BUILDS.values() if other != build]
    for headers in ({}, *({HEADER: other} for other in (*others, "", f"{build}x"))):
        answer = client.post(address, headers=headers, json={"data": []})
        assert answer.status_code == 409 and answer.json()["error"] == Translator("ru")("page.door.build")
    assert not reached
    assert client.post(address, headers={HEADER: build}, json={"data": []}).text == "reached"
    assert reached == [f"/{address}"]


@pytest.mark.parametrize("path", ["", "f1/", "config", "gradio_api/upload", "gradio_api/runs", "pulse/reverse"])
def test_what_is_no_event_is_asked_for_no_build(site, path: str):
    assert site[0].get(path).text == "reached"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_says_it_in_its_language(language: str):
    for key in ("page.door.build", "page.tab.other", "page.tab.reload", "page.tab.silent"):
        assert language == "en" or Translator(language)(key) != Translator("en")(key)
