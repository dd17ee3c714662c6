"""The group for latents, as a user has it: wrong files, a right one, and the film that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from eichi_utils.files.latent_header import read_info
from eichi_utils.files.pictures import fitted_size
from locales import Translator
from tests.eichi_utils.helpers import latent_file
from tests.webui.test_browser import fill, until

pytestmark = pytest.mark.browser

BESIDE = ".field-append_latents .eichi-wrong"
# Gradio's own word, in the browser's language, for taking a file away.
CLEAR = "document.querySelector('#append_latents button[aria-label]:not([aria-label=\"\"])').getAttribute('aria-label')"
LANGUAGE, WIDTH, HEIGHT = "ja", 390, 844


@pytest.fixture
def files(tmp_path: Path, engine, tower: str) -> dict[str, str]:
    """Of every kind; "good" lies in the output folder."""
    height, width = fitted_size(tower, 640)
    engine.outputs.mkdir()
    broken = numpy.full((1, 16, 2, height // 8, width // 8), numpy.nan, numpy.float32)
    save_file({"history_latents": broken}, tmp_path / "nan.safetensors")
    (tmp_path / "cat.safetensors").write_bytes(b"a picture of a cat")
    return {
        "cat": str(tmp_path / "cat.safetensors"),
        "nan": str(tmp_path / "nan.safetensors"),
        "small": latent_file(tmp_path / "small.safetensors", 6, 64, 96),
        "good": latent_file(engine.outputs / "earlier.safetensors", 10, height, width),
    }


def test_an_earlier_film_comes_after_the_new_one(serve, open_page, tower, files):
    """Each wrong file says what is wrong beside its place and keeps the film from starting; the right one says what it is."""
    t = Translator(LANGUAGE)
    site = serve("reverse", LANGUAGE)
    page = open_page(site.url, "/", WIDTH, HEIGHT)
    fill(page, tower)
    page.locator("#latents > button").click()
    for name in ("cat", "nan", "small"):
        page.set_input_files("#append_latents input[type=file]", files[name])
        page.wait_for_function(f"document.querySelector('{BESIDE}')?.textContent.includes('{name}.safetensors')")
        page.wait_for_selector("#start:disabled")
        if name == "small":
            assert "96 x 64" in page.inner_text(BESIDE)
        page.locator(f'#append_latents button[aria-label="{page.evaluate(CLEAR)}"]').click()
        page.wait_for_selector("#start:enabled")

    page.locator("#latents-chosen input").click()
    page.get_by_role("option", name="earlier.safetensors").click()
    info = read_info(files["good"])
    page.wait_for_function("document.querySelector('#latents-info').textContent.includes('37')")
    for text in (f"{info.width} × {info.height}", "1.23"):
        assert text in page.inner_text("#latents-info")
    page.fill("#append_trim_start input", "11")
    page.wait_for_selector(".field-append_trim_start .eichi-wrong")
    page.fill("#append_trim_start input", "2")
    page.fill("#film_trim_end input", "1")
    page.fill("#join_latents input[type=number]", "4")
    page.press("#join_latents input[type=number]", "Tab")
    # 10 latents of one second, without one; 4 in between; 8 of the file.
    page.wait_for_function("document.querySelector('#summary').textContent.includes('81')")
    assert t("page.files.joined") in page.inner_text("#summary")
    page.locator("#save_latents input").check()
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH

    page.click("#start")
    until(page, "finished")
    (job,) = site.jobs.all()
    request = job.request
    assert (request.append_trim_start, request.film_trim_end, request.join_latents, request.save_latents) == (2, 1, 4, True)
    kept = Path(request.append_latents)
    assert kept.parent == site.engine.outputs.parent / "uploads" and kept.read_bytes() == Path(files["good"]).read_bytes()

    page.reload()
    page.wait_for_selector("#start:enabled")
    page.locator("#latents > button").click()
    page.wait_for_function("document.querySelector('#latents-info').textContent.includes('37')")
    assert page.input_value("#join_latents input[type=number]") == "4"
