"""Test which files a browser can make the server read: uploaded or made ones, and no others, whatever it sends.

Every client of a page could read any file of the server: gradio looks at the paths in a picture's value only on pages that it
launched itself, and ours are mounted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.exceptions import InvalidPathError
from gradio.processing_utils import _check_allowed
from PIL import Image

from eichi_utils.jobs.queue import Jobs
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import UserError
from eichi_utils.requests.file_fields import MOST_NAMED, with_files
from eichi_utils.requests.loras import is_below
from locales import Translator, table
from webui.app import PAGES, build
from webui.gradio_compat import paths_in
from webui.http.page_build import HEADER
from webui.http.path_check import OwnFiles

pytestmark = pytest.mark.slow

MODES = tuple(PAGES)
# Answers are the same with a login and without, so these tests run without.
open_only = pytest.mark.parametrize("site", [None], indirect=True, ids=["open"])
HELD = {"_type": "gradio.FileData"}


@dataclasses.dataclass
class Site:
    """Hold three pages as one application, and a private picture that nobody uploaded."""

    folder: Path
    client: TestClient
    pages: dict[str, tuple[str, gr.Blocks]]
    opened: list[str]
    builds: dict[str, str]

    @property
    def private(self) -> Path:
        return self.folder / "private.png"

    def ask(self, mode: str, number: int, data: list[Any], route: str = "run/predict") -> Any:
        """Call an event and return the server's answer."""
        event = {"field": "image", "action": "everything", "section": 1, "job": "x", "index": 0}
        body = {"data": data, "fn_index": number, "session_hash": "tests", "event_data": event, "trigger_id": None}
        headers = {HEADER: self.builds[mode]}
        return self.client.post(f"{self.pages[mode][0]}/gradio_api/{route}", json=body, headers=headers)

    def upload(self, mode: str, path: Path) -> str:
        files = {"files": (path.name, path.read_bytes())}
        return self.client.post(f"{self.pages[mode][0]}/gradio_api/upload", files=files).json()[0]

    def untouched(self) -> bool:
        """Return whether nobody has opened the private picture, and no copy of it lies where it would be served."""
        content = self.private.read_bytes()
        self.opened.clear()
        copies = [path for path in self.folder.rglob("*") if not path.is_symlink() and path.is_file() and path != self.private]
        return not any(path.stat().st_size == len(content) and path.read_bytes() == content for path in copies)


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """Collect the paths of all files that Python opens, newest last. An audit hook cannot be removed, only muted."""
    paths: list[str] = []
    listening = [True]

    def listen(event: str, arguments: tuple) -> None:
        if event == "open" and listening and isinstance(arguments[0], str):
            paths.append(arguments[0])

    sys.addaudithook(listen)
    yield paths
    listening.clear()


@pytest.fixture(scope="module", params=[None, ("me", "secret")], ids=["open", "login"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, opened: list[str]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "outputs").mkdir()
    Image.effect_noise((64, 64), 50).save(folder / "private.png")
    own = {name: folder / name for name in ("uploads", "settings", "presets")}
    jobs = Jobs(lambda *_: iter(()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(folder / "temp"))
        patched.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patched.setattr("eichi_utils.requests.loras.LORAS", folder / "lora")
        app = build(jobs, "reverse", Translator("en"), folder / "outputs", models=Models(folder), auth=request.param, **own)
        mounted = {route.path: route.app for route in app.routes if isinstance(getattr(route, "app", None), gr.routes.App)}
        pages = {mode: ("" if mode == "reverse" else path) for mode, (path, _) in PAGES.items()}
        with TestClient(app, base_url="http://127.0.0.1") as client:
            if request.param:
                client.post("/login", data={"username": "me", "password": "secret"})
            assert client.get("/config").status_code == 200
            builds = {mode: client.get(f"/pulse/{mode}").json()["build"] for mode in PAGES}
            yield Site(folder, client, {mode: (at, mounted[at].get_blocks()) for mode, at in pages.items()}, opened, builds)
    jobs.close(10)


def takes_files(block: Any) -> bool:
    """Return whether a component's value can name a file, by the schema with which gradio reads it."""
    model = getattr(block, "data_model", None)
    return model is not None and "FileData" in json.dumps({"title": model.__name__, **model.model_json_schema()})


def shaped(block: Any, value: Any) -> Any:
    """Return a file's value as the component wants it: alone, or in a list."""
    many = getattr(block, "file_count", "single") != "single" or isinstance(block, gr.Gallery)
    return [value] if many else value


def events(blocks: gr.Blocks) -> Iterator[tuple[int, list[Any], list[int]]]:
    """Yield (number, inputs, indices of the inputs that take files) of every event with a function."""
    for number, call in blocks.fns.items():
        if call.fn is not None:
            inputs = list(call.inputs)
            yield number, inputs, [place for place, block in enumerate(inputs) if takes_files(block)]


def usual(inputs: list[Any]) -> list[Any]:
    values = [None if block.stateful else block.value for block in inputs]
    return [value if isinstance(value, (str, int, float, bool, list, dict)) else None for value in values]


@pytest.mark.parametrize("mode", MODES)
def test_no_component_of_any_event_takes_a_file_of_the_server(site: Site, mode: str):
    """Each event that takes a file is asked by itself, as the page's own JavaScript asks and as scripts do."""
    blocks, tried = site.pages[mode][1], 0
    kinds = {type(block).__mro__[1].__name__ for block in blocks.blocks.values() if takes_files(block)}
    assert {"Image", "File"} <= kinds
    for number, inputs, places in events(blocks):
        for place in places:
            data = usual(inputs)
            data[place] = shaped(inputs[place], {"path": str(site.private), "orig_name": "x.png", "meta": HELD})
            site.opened.clear()
            answer = site.ask(mode, number, data)
            assert answer.status_code == 200 and "was not uploaded here" in answer.text, (number, answer.text[:200])
            assert str(site.private) not in site.opened, (number, inputs[place])
            tried += 1
    assert tried > 10 and site.untouched()


@pytest.mark.parametrize("route", ["run/{}", "api/{}"])
def test_no_route_takes_a_file_of_the_server(site: Site, route: str):
    blocks = site.pages["reverse"][1]
    for number, inputs, places in events(blocks):
        data = usual(inputs)
        for place in places:
            data[place] = shaped(inputs[place], {"path": str(site.private), "orig_name": "x.png", "meta": HELD})
        if not places:
            continue
        site.opened.clear()
        name = blocks.fns[number].api_name
        site.ask("reverse", number, data, route.format(name or "predict"))
    assert str(site.private) not in site.opened and site.untouched()


def test_names_that_lead_elsewhere_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch):
    """Names that lead elsewhere are refused without being opened: upwards, by a link, hidden, an address, or a pipe that
    nobody writes to."""
    outputs = site.folder / "outputs"
    if not (outputs / "link.png").is_symlink():
        (outputs / "link.png").symlink_to(site.private)
        os.mkfifo(outputs / "pipe.png")
        (outputs / ".eichi-x.png").write_bytes(site.private.read_bytes()[:-1])
    number, inputs, (first, *_) = next(event for event in events(site.pages["reverse"][1]) if event[2])
    monkeypatch.chdir(site.folder)
    for path in (
        "/etc/passwd",
        "/dev/zero",
        "private.png",
        f"{site.folder}/temp/../private.png",
        str(outputs / "link.png"),
        str(outputs / "pipe.png"),
        str(outputs / ".eichi-x.png"),
        "http://127.0.0.1:9/x.png",
        "file:///etc/passwd",
        "\\\\127.0.0.1\\share\\x.png",
        "a\0b",
        "x" * 5000,
        {"path": "/etc/passwd"},
        ["/etc/passwd"],
        7,
    ):
        data = usual(inputs)
        data[first] = {"path": path, "meta": HELD}
        site.opened.clear()
        answer = site.ask("reverse", number, data)
        assert answer.status_code == 200 and "was not uploaded here" in answer.text, path
        assert not {str(site.private), "/etc/passwd", "/dev/zero", str(path)} & set(site.opened), path


@open_only
@pytest.mark.parametrize("mode", MODES)
def test_what_was_uploaded_is_taken(site: Site, mode: str):
    """The same event with a real upload does its work, and the form has nothing to object to."""
    own = site.folder / f"{mode}.png"
    Image.new("RGB", (64, 64), "red").save(own)
    there = site.upload(mode, own)
    blocks = site.pages[mode][1]
    start = next(block for block in blocks.blocks.values() if getattr(block, "elem_id", "") == "image")
    for number, inputs, _ in events(blocks):
        if start in inputs:
            data = usual(inputs)
            data[inputs.index(start)] = {"path": there, "orig_name": "x.png", "meta": HELD}
            answer = site.ask(mode, number, data)
            assert "was not uploaded here" not in answer.text, number


@open_only
@pytest.mark.parametrize("mode", MODES)
def test_no_path_in_a_text_is_opened(site: Site, mode: str):
    """Keyframes, LoRA, folders and choices come as texts, which nobody checks but the form and the panels themselves."""
    blocks = site.pages[mode][1]
    lora = [{"file": name, "strength": 1} for name in (str(site.private), f"x/../../{site.private.name}")]
    texts = [str(site.private), json.dumps({"0": str(site.private), "1": str(site.private)}), json.dumps(lora)]
    for number, inputs, _ in events(blocks):
        for text in texts:
            places = [place for place, block in enumerate(inputs) if isinstance(block, (gr.Textbox, gr.Dropdown, gr.HTML))]
            data = usual(inputs)
            for place in places:
                data[place] = text
            if places:
                site.opened.clear()
                site.ask(mode, number, data)
                assert str(site.private) not in site.opened, (number, text)
    assert site.untouched()


@open_only
def test_states_are_the_servers(site: Site):
    """A path in a state, such as an undo's, is the server's own: a state that a browser sends is ignored."""
    blocks = site.pages["reverse"][1]
    for number, inputs, places in events(blocks):
        states = [place for place, block in enumerate(inputs) if block.stateful]
        if states and not places:
            data = usual(inputs)
            for place in states:
                data[place] = {str(block._id): str(site.private) for block in blocks.blocks.values() if takes_files(block)}
            site.opened.clear()
            site.ask("reverse", number, data)
            assert str(site.private) not in site.opened
    assert site.untouched()


def test_only_results_uploads_and_examples_are_served(site: Site):
    """The output folder also holds what is unfinished, locks and links; and settings may lie in it."""
    outputs = site.folder / "outputs"
    for name in ("film.txt", ".eichi-1.part.mp4", ".a.lock", "page.html", "drawing.svg"):
        (outputs / name).write_text("film")
    (outputs / ".hidden").mkdir(exist_ok=True)
    (outputs / ".hidden" / "a.txt").write_text("film")
    link, folder = outputs / "away.txt", outputs / "away"
    for one, target in ((link, site.private), (folder, site.folder)):
        if not one.is_symlink():
            one.symlink_to(target)

    def status(path: object, address: str = "file=") -> int:
        return site.client.get(f"/gradio_api/{address}{quote(str(path))}").status_code

    assert status(outputs / "film.txt") == 200 == status(Models().examples("miniature")[0].picture)
    hidden = [outputs / name for name in (".eichi-1.part.mp4", ".a.lock", "page.html", "drawing.svg", ".hidden/a.txt")]
    elsewhere = [link, folder / "private.png", site.private, outputs, "/etc/passwd", "http://127.0.0.1:9/", "/dev/zero"]
    for path in (*hidden, *elsewhere, site.folder / "settings" / "app_settings.json"):
        assert status(path) in (403, 404), path
        assert status(path, "file/") in (403, 404), path
    assert site.client.head(f"/oneframe/gradio_api/file={link}").status_code == 403


def test_an_upload_may_be_called_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A picture whose name began with a dot was uploaded, and then "was not uploaded here"; unfinished files are not shown."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temp"))
    own = OwnFiles((tmp_path / "outputs",))
    for name, shown in (
        ("temp/0/.cat.png", True),
        ("temp/0/.eichi-x.png", False),
        ("temp/0/.cat.part.png", False),
        ("temp/.0/cat.png", False),
        ("outputs/.cat.png", False),
        ("outputs/cat.png", True),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert own.holds(str(tmp_path / name)) == own.serves(str(tmp_path / name)) == shown, name


def test_settings_in_the_output_folder_are_not_shown(tmp_path: Path):
    """`--out webui` makes everything beside the program a result."""
    own = OwnFiles((tmp_path,), closed=(tmp_path / "settings",))
    (tmp_path / "settings").mkdir()
    for name in ("settings/app_settings.json", "film.mp4"):
        (tmp_path / name).touch()
    assert own.serves(str(tmp_path / "film.mp4"))
    assert not own.holds(str(tmp_path / "settings" / "app_settings.json"))


def test_gradio_checks_paths_too(site: Site):
    """Gradio's own check asks whether it has launched the page; an upgrade that asks for something else must be followed."""
    blocks = site.pages["reverse"][1]
    gr.context.LocalContext.blocks.set(blocks)
    try:
        with pytest.raises(InvalidPathError):
            _check_allowed(str(site.private), check_in_upload_folder=True)
            pytest.fail("gradio takes any path again: see `CheckedBlocks` in webui/gradio_compat.py, and what it asks for now")
    finally:
        gr.context.LocalContext.blocks.set(None)


def test_every_path_in_a_value_is_found():
    value = [{"path": "a"}, {"image": {"path": "b", "url": "x"}, "layers": [{"path": "c"}]}, ({"value": {"path": 7}},), "d", 1]
    assert sorted(map(str, paths_in(value))) == ["7", "a", "b", "c"]


def test_a_request_loses_foreign_files_and_says_which():
    document = {
        "image": "bad",
        "end_image": "good",
        "append_latents": "bad",
        "keyframes": {"1": "bad", "2": "good", "3": 7},
        "controls": [{"image": "good", "mask": "bad"}, {"image": "good"}, "text"],
    }
    kept, left_out = with_files(document, lambda path: path == "good")
    assert kept == {
        "image": "",
        "end_image": "good",
        "append_latents": "",
        "keyframes": {"2": "good", "3": 7},
        "controls": [{"image": "good"}, "text"],
    }
    assert [field for field, _ in left_out] == ["image", "append_latents", "keyframes/1", "controls/0/mask"]
    assert "{file}" in table("en")["problem.file_not_uploaded"]


def test_keyframes_have_an_end():
    """20,000 of them in one text, each looked at on the disk and then checked, held a thread for minutes; there are 40."""
    looked: list[str] = []

    def good(path: str) -> bool:
        return bool(looked.append(path)) or True

    many = {str(number): "a.png" for number in range(MOST_NAMED)}
    assert with_files({"keyframes": many}, good)[0]["keyframes"] == many and len(looked) == MOST_NAMED
    looked.clear()
    with pytest.raises(UserError, match="page_too_many_files"):
        with_files({"keyframes": many | {"-1": "a.png"}}, good)
    assert not looked


@pytest.mark.parametrize("name", ["", "/a", "\\a", "C:/a", "C:a", "\\\\host\\share\\a", "../a", "a/../../b", "a\\..\\b"])
def test_a_lora_of_a_page_lies_in_its_folder(name: str):
    """`C:a` is a file of another drive on Windows, though no absolute path."""
    assert not is_below(name)
    assert is_below("a.safetensors") and is_below("small/a b.safetensors") and is_below("small\\a.safetensors")
