"""Pictures that browsers do not know: seen in the page, and made into films as they are."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.testclient import TestClient
from gradio.components.image import ImageData
from PIL import Image

from tests.eichi_utils.files.test_picture_files import CASES
from webui.forms import fields
from webui.live.shown import ShownPictures


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Serves a folder as gradio does, with one file that nobody may see."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copyfile(CASES / "iphone_photo.heic", folder / "photo.heic")
    shutil.copyfile(CASES / "iphone_photo.heic", folder / "named.jpg")
    shutil.copyfile(CASES / "hostile" / "eps_endless_loop_named.png", folder / "script.png")
    Image.new("RGB", (2000, 1000), "red").save(folder / "large.tif")
    Image.new("RGB", (64, 64), "red").save(folder / "plain.png")
    app = FastAPI()
    app.add_middleware(ShownPictures)

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


@pytest.mark.browser
def test_a_telephone_s_photo_in_the_page(serve: Callable, open_page: Callable, tmp_path: Path) -> None:
    """It was refused before it was uploaded, as a file without a kind; now it is seen, and is the start picture as it is."""
    site = serve("reverse")
    page = open_page(site.url)
    shutil.copyfile(CASES / "iphone_photo.heic", tmp_path / "photo.heic")
    page.set_input_files("#image input[type=file]", str(tmp_path / "photo.heic"))
    page.wait_for_function("document.querySelector('#image img')?.naturalWidth === 256")
    page.fill("#prompt textarea", "She dances.")
    page.wait_for_selector("#start:not([disabled])")
    page.click("#start")
    while not site.engine.seen:
        page.wait_for_timeout(20)
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
