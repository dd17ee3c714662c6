"""Test that pictures which browsers cannot show are seen in the page and made into films unchanged."""

from __future__ import annotations

import io
import shutil
import threading
import tracemalloc
from collections.abc import Callable, MutableMapping
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.testclient import TestClient
from gradio.components.image import ImageData
from PIL import Image

from tests.eichi_utils.files.test_picture_files import CASES
from tests.threads import in_a_loop
from tests.webui.browsing import can_start, eventually, type_in
from webui.forms import fields
from webui.live.browser_pictures import AT_ONCE, BrowserPictures


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Serve a folder as gradio does, with one file that nobody may see."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copyfile(CASES / "iphone_photo.heic", folder / "photo.heic")
    shutil.copyfile(CASES / "iphone_photo.heic", folder / "named.jpg")
    shutil.copyfile(CASES / "hostile" / "eps_endless_loop_named.png", folder / "script.png")
    Image.new("RGB", (2000, 1000), "red").save(folder / "large.tif")
    Image.new("RGB", (64, 64), "red").save(folder / "plain.png")
    app = FastAPI()
    app.add_middleware(BrowserPictures)

    @app.get("/f1/gradio_api/file={name}", response_model=None)
    def serve(name: str) -> FileResponse:
        return FileResponse(folder / name, status_code=403 if name == "photo.heif" else 200)

    shutil.copyfile(folder / "photo.heic", folder / "photo.heif")
    served = TestClient(app)
    served.folder = folder
    return served


def test_what_a_browser_gets(client: TestClient) -> None:
    """A telephone's photo was a broken picture in the page; everything that a browser knows goes through untouched."""
    for name, size in (("photo.heic", (256, 256)), ("named.jpg", (256, 256)), ("large.tif", (1280, 640))):
        answer = client.get(f"/f1/gradio_api/file={name}")
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert (picture.format, picture.size) == ("WEBP", size)
    for name in ("plain.png", "script.png", "photo.heif"):
        answer = client.get(f"/f1/gradio_api/file={name}")
        assert answer.content == (client.folder / name).read_bytes(), name


def test_noise_under_a_picture_s_name(client: TestClient) -> None:
    """Eight files of 150 MB of noise were collected whole, all at once, before anybody looked at them."""
    size = 40 * 2**20
    with (client.folder / "noise.heic").open("wb") as file:
        file.write(b"noise" * 20)
        file.truncate(size)
    sent: list[MutableMapping] = []

    async def send(message: MutableMapping) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": len(message.get("body", b""))}
        sent.append(message)

    async def receive() -> MutableMapping:
        await anyio.sleep_forever()
        return {}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "headers": [], "query_string": b"",
        "path": "/f1/gradio_api/file=noise.heic", "raw_path": b"", "scheme": "http", "client": ("a", 1), "server": ("b", 2),
    }  # fmt: skip
    tracemalloc.start()
    in_a_loop(client.app(scope, receive, send))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(message.get("body", 0) for message in sent) == size and most < 8 * 2**20
    client.get("/f1/gradio_api/file=noise.heic", headers={"range": "bytes=0-9"}).raise_for_status()


def test_pages_answer_while_pictures_wait(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are decoded wait for each other outside of the threads that answer everything else."""
    at_once, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def shown(path: str) -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        assert go.wait(10)
        with lock:
            at_once -= 1
        return b"a picture"

    monkeypatch.setattr("webui.live.browser_pictures._shown", shown)
    transport = httpx.ASGITransport(client.app)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as asking, anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(asking.get, "/f1/gradio_api/file=photo.heic")
            await anyio.sleep(0.05)
            assert (await asking.get("/f1/gradio_api/file=plain.png")).status_code == 200
            go.set()

    in_a_loop(ask())
    assert most == AT_ONCE


@pytest.mark.browser
def test_a_telephone_s_photo_in_the_page(serve: Callable, open_page: Callable, tmp_path: Path) -> None:
    """A telephone's photo was refused before its upload as a file without a type; now it is shown, and is the start picture
    unchanged."""
    site = serve("reverse")
    page = open_page(site.url)
    shutil.copyfile(CASES / "iphone_photo.heic", tmp_path / "photo.heic")
    page.set_input_files("#image input[type=file]", str(tmp_path / "photo.heic"))
    eventually(page, lambda: page.locator("#image img").evaluate("picture => picture.naturalWidth"), 256)
    type_in(page, "#prompt textarea", "She dances.")
    can_start(page)
    page.click("#start")
    eventually(page, lambda: len(site.engine.seen), 1)
    kept = Path(site.engine.seen[0].image)
    assert kept.read_bytes() == (CASES / "iphone_photo.heic").read_bytes()


def test_gradio_opens_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's own place for pictures opens whatever is uploaded, PostScript under a picture's name too."""

    def fail(*args: object, **settings: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", fail)
    script = str(CASES / "hostile" / "eps_endless_loop_named.png")
    place = fields.picture(label="x")
    assert place.preprocess(ImageData(path=script, orig_name="a.png")) == script
    assert Path(place.postprocess(script).path).read_bytes() == Path(script).read_bytes()
