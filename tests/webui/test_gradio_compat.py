"""Test what gradio does for any caller: what it keeps, how long it works, and its answers to events that no page sends."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio import routes

from eichi_utils.jobs.queue import Jobs
from eichi_utils.models.catalogue import Models
from locales import Translator, table
from tests.virtual_time import in_virtual_time
from webui import gradio_compat
from webui.app import PAGES, build
from webui.context import QUIET, Context
from webui.frame import SESSIONS, Page
from webui.gradio_compat import MOST_FILES, WATCHED, UploadParser, UploadProgress
from webui.http.page_build import HEADER

pytestmark = pytest.mark.slow

SENTENCES = {sentence for name, sentence in table("en").items() if name.startswith(("page.door.", "problem.page_"))}


@dataclass
class Small:
    """Build a page of a few components. looked: (path, thread) of each look-up."""

    folder: Path
    looked: list[tuple[str, int]] = field(default_factory=list)
    blocks: Page | None = None
    client: TestClient | None = None

    def __call__(self, context: Context) -> Page:
        with Page(holds=self.holds, t=context.t, analytics_enabled=False) as self.blocks:
            self.blocks.place()
            files, text = gr.File(file_count="multiple"), gr.Textbox()
            choice, kept, number = gr.Dropdown(["a"]), gr.State(), gr.Slider(0, 10)
            files.change(lambda paths: str(len(paths)), files, text, api_name="count", **QUIET)
            text.change(self.change, [text, kept], [choice, kept, number, text], api_name="change", **QUIET)
            choice.change(
                lambda one, other, at: f"{one} {other} {at}", [choice, kept, number], text, api_name="choose", **QUIET
            )
            text.blur(None, None, None, js="() => {}", **QUIET)
        return self.blocks

    def holds(self, path: str) -> bool:
        self.looked.append((path, threading.get_ident()))
        return path.startswith(str(self.folder))

    @staticmethod
    def change(text: str, kept: str | None) -> list[Any]:
        choices = gr.update(choices=text.split()) if text else gr.update(visible=True, label="x")
        return [choices, (kept or "") + text, gr.update(visible=not text), gr.update(value="", placeholder=text)]

    def ask(self, name: str, data: list[Any], **more: Any) -> Any:
        return self.client.post(f"/gradio_api/run/{name}", json={"data": data, "session_hash": "tests", **more})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    page = Small(tmp_path_factory.mktemp("site"))
    jobs = Jobs(lambda *_: iter(()))
    own = {name: page.folder / name for name in ("uploads", "settings", "presets")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(page.folder / "temp"))
        patched.setattr("webui.app.PAGES", {mode: (path, page) for mode, (path, _) in PAGES.items()})
        app = build(jobs, "reverse", Translator("en"), page.folder / "outputs", models=Models(page.folder), **own)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as page.client:
            page.client.headers[HEADER] = page.client.get("/pulse/reverse").json()["build"]
            yield page
    jobs.close(10)


@pytest.fixture
def small(site: Small) -> Small:
    """Return the page without sessions, as if nobody had visited it."""
    site.blocks.state_holder.session_data.clear()
    site.looked.clear()
    return site


def events() -> Iterator[dict[str, Any] | bytes]:
    """Yield request bodies that no page sends."""
    yield from (b"", b"x", b"[]", b"null", b'{"data":', b"\xff", b'{"data": [], "fn_index": 1e400}')
    yield {}
    for number in (9_999_999, -1, 2**70, "x", 1.5, [0], {"a": 1}):
        yield {"data": [], "fn_index": number}
        yield {"data": [""], "fn_index": number, "session_hash": "tests"}
    for hash_ in ("x" * 65, "x" * 1_000_000, "", "a b", "\U0001f600", "\ud800", "a/b", "a\n", 7, ["a"]):
        yield {"data": ["", None], "fn_index": 1, "session_hash": hash_}
    for data in (None, "x", 7, {}, {"0": 1}):
        yield {"data": data, "fn_index": 1}
    for other in ({"trigger_id": "x"}, {"event_id": 7}, {"simple_format": "perhaps"}, {"batched": []}):
        yield {"data": [""], "fn_index": 1, **other}


@pytest.mark.parametrize("route", ["run/predict", "run/zzz", "api/zzz", "run/predict/", "api/%F0%9F%98%80"])
def test_an_event_that_no_page_sends(small: Small, route: str, caplog: pytest.LogCaptureFixture) -> None:
    """A function's number that is not there was "Internal Server Error" and a traceback for each; others repeated all of it."""
    for body in events():
        caplog.clear()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        got = small.client.post(f"/gradio_api/{route}", content=content, headers={"content-type": "application/json"})
        assert got.status_code in (400, 404, 413, 422), (body, got.text[:200])
        assert got.json().get("error") in SENTENCES or got.json() == {"detail": "There was an error parsing the body"}
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(said) <= 1 and not any(record.exc_info for record in said)
        assert all(len(record.getMessage()) < 500 for record in said)
    assert not small.blocks.state_holder.session_data


def test_an_event_with_more_than_pages_send(small: Small) -> None:
    """Further data of gradio's that our pages do not send is no error, and an event of no function of the server's has no
    effect."""
    hostile = ({"trigger_id": 10**12}, {"trigger_id": -1}, {"event_id": "x" * 1000}, {"simple_format": True}, {"batched": True})
    for more in (*hostile, {"event_data": [1, {"a": 2**60}]}, {"event_data": "x", "oauth_token": "x"}, {"fn_index": 3}):
        for data in ([], ["a"], ["a", None], [{"path": "x"}, {}, [[]]], ["a"] * 50):
            assert small.ask("change", data, **more).status_code == 200
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for path in ("run/change", "api/change", "upload", "cancel", "reset", "info", "upload_progress", "startup-events"):
            assert small.client.request(method, f"/gradio_api/{path}").status_code < 500


def test_many_files_in_one_event(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """19,000 times the same path in one event had each looked up on the disk, and nobody else was answered for 13 s."""
    noted: list[str] = []
    monkeypatch.setattr(gradio_compat, "note_use", noted.append)
    (small.folder / "temp").mkdir(exist_ok=True)
    own = [small.folder / "temp" / f"{number}" for number in range(MOST_FILES)]
    for path in own:
        path.write_text("x")
    files = [{"path": str(path), "meta": {"_type": "gradio.FileData"}} for path in own]
    assert small.ask("count", [files]).json()["data"][0] == str(MOST_FILES)
    assert [path for path, _ in small.looked] == noted and sorted(noted) == sorted(str(path) for path in own)
    assert {thread for _, thread in small.looked}.isdisjoint({threading.get_ident()})
    small.looked.clear()
    assert small.ask("count", [files[:1] * MOST_FILES]).json()["data"][0] == str(MOST_FILES)
    assert len(small.looked) == 1
    small.looked.clear()
    began = time.monotonic()
    said = small.ask("count", [[{"path": str(own[0])}] * 19_000]).text
    assert f"{MOST_FILES} at most" in said and not small.looked and time.monotonic() - began < 5


def test_the_disk_is_not_waited_for_by_everybody(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked up in a thread, so that other users' requests go on while the disk is slow."""
    threads: list[int] = []
    monkeypatch.setattr(small.blocks, "holds", lambda path: threads.append(threading.get_ident()) or False)
    loops: list[int] = []
    before = Page.process_api

    async def noting(self: Page, *args: Any, **settings: Any) -> Any:
        loops.append(threading.get_ident())
        return await before(self, *args, **settings)

    monkeypatch.setattr(Page, "process_api", noting)
    assert "was not uploaded" in small.ask("count", [[{"path": "/etc/passwd"}]]).text
    assert threads and loops and set(threads).isdisjoint(loops)


def test_a_tab_costs_little(small: Small) -> None:
    """700 KB for each name of a session, of which 500 are kept for each of three pages: a GB.

    A copy of every component that was ever updated was kept, and what all of them look like.
    """
    # What the browser is told of the look is no less.
    update = {"__type__": "update"}
    told = [
        update | {"visible": True, "label": "x"},
        None,
        update | {"visible": True},
        update | {"value": "", "placeholder": ""},
    ]
    assert small.ask("change", ["", None]).json()["data"][:4] == told
    assert small.ask("change", ["a", None]).json()["data"][2] == update | {"visible": False}
    assert small.ask("change", ["", None]).json()["data"][:4] == told
    (tab,) = small.blocks.state_holder.session_data.values()
    usual = small.blocks.default_config.blocks
    assert not tab.config_values and all(tab.blocks_config.blocks[number] is block for number, block in usual.items())
    # What a value is checked by is kept: gradio refuses a choice that is not offered.
    assert "page sent a value" in small.ask("choose", ["c", None, 1]).text
    assert small.ask("change", ["b c", None]).status_code == 200
    assert small.ask("choose", ["c", None, 1]).json()["data"][0] == "c ab c 1"
    changed = [number for number, block in usual.items() if tab.blocks_config.blocks[number] is not block]
    assert len(changed) == 1 and not tab.config_values
    assert small.ask("change", ["", None]).status_code == 200
    assert small.ask("choose", ["c", None, 1]).json()["data"][0] == "c ab c 1"


def test_tabs_have_an_end(small: Small) -> None:
    """The number of remembered tabs is limited: the one used last stays, and a forgotten one begins anew."""
    for number in range(SESSIONS + 10):
        assert small.ask("change", ["b", None], session_hash=f"tab{number}").status_code == 200
        small.ask("change", ["c", None], session_hash="used")
    kept = small.blocks.state_holder.session_data
    assert len(kept) == SESSIONS and "tab0" not in kept and "used" in kept
    assert small.ask("choose", ["b", None, 1], session_hash="tab100").json()["data"][0] == "b b 1"
    assert "page sent a value" in small.ask("choose", ["b", None, 1], session_hash="tab0").text


def test_uploads_are_forgotten(small: Small) -> None:
    """Gradio kept the state of an upload that nobody watches, and each path, for ever."""
    progress = routes.file_upload_statuses
    assert isinstance(progress, UploadProgress)
    for number in range(WATCHED + 20):
        got = small.client.post(f"/gradio_api/upload?upload_id=u{number}", files={"files": ("a.png", f"{number}")})
        assert got.status_code == 200
    assert len(progress._statuses) <= WATCHED and len(progress._signals) <= WATCHED
    assert f"u{WATCHED + 19}" in progress._statuses and "u0" not in progress._signals
    assert not small.blocks.upload_file_set
    last = small.client.get(f"/gradio_api/upload_progress?upload_id=u{WATCHED + 19}")
    assert '"msg": "done"' in last.text and f"u{WATCHED + 19}" not in progress._signals


def test_asking_for_an_upload_that_is_not_there_leaves_nothing() -> None:
    """A signal stayed for each name; one that comes in time is seen by all who wait."""

    async def wait() -> None:
        progress = UploadProgress()
        for number in range(10):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(progress.is_tracked(f"u{number}"), 0.01)
        assert not progress._signals
        waiting = [asyncio.create_task(progress.is_tracked("v")) for _ in range(3)]
        await asyncio.sleep(0.01)
        progress.append("v", "a.png", b"x")
        assert await asyncio.gather(*waiting) == [True] * 3
        assert progress.pop("v").chunk_size == 1
        progress.set_done("v")
        assert progress.is_done("v")
        progress.stop_tracking("v")
        assert not progress._signals and not progress._statuses

    in_virtual_time(wait())


@pytest.mark.parametrize("border", ["", "x" * 300, "\u00e9"])
def test_borders_of_an_upload(small: Small, border: str) -> None:
    """A multipart boundary of 300 letters is refused with an answer; it ended in a traceback."""
    kind = f"multipart/form-data; boundary={border}".encode("latin-1")
    got = small.client.post("/gradio_api/upload", content=b"--x", headers={"content-type": kind})
    assert got.status_code == 400 and UploadParser.__name__ not in got.text
