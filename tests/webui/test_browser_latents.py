"""Test the group for latents in a browser: wrong files, a right one, and the film that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from eichi_utils.files.latent_header import read_info
from eichi_utils.files.pictures import fitted_size
from locales import Translator
from tests.eichi_utils.helpers import latent_file
from tests.webui.browsing import (
    FOLDER,
    PROMPT,
    can_start,
    cannot_start,
    fill,
    fits,
    heard,
    holds,
    reload,
    shows,
    type_in,
    until,
)

pytestmark = pytest.mark.browser

BESIDE = ".field-append_latents .eichi-wrong"
# Its name is gradio's own word, in the browser's language, for taking a file away.
CLEAR = '#append_latents button[aria-label]:not([aria-label=""])'
JOIN = "#join_latents input[type=number]"
LANGUAGE, WIDTH, HEIGHT = "ja", 390, 844


@pytest.fixture
def files(tmp_path: Path, engine, tower: str) -> dict[str, str]:
    """Make two files of latents, a good one in the output folder and one that is too small."""
    height, width = fitted_size(tower, 640)
    engine.outputs.mkdir()
    return {
        "small": latent_file(tmp_path / "small.safetensors", 6, 64, 96),
        "good": latent_file(engine.outputs / "earlier.safetensors", 10, height, width),
    }


def test_an_earlier_film_comes_after_the_new_one(serve, open_page, tower, files):
    """A wrong file says what is wrong beside its place and keeps the film from starting; the right one says what it is."""
    t = Translator(LANGUAGE)
    site = serve("reverse", LANGUAGE)
    page = open_page(site.url, "/", WIDTH, HEIGHT)
    fill(page, tower)
    page.locator("#latents > button").click()
    page.set_input_files("#append_latents input[type=file]", files["small"])
    shows(page, BESIDE, "small.safetensors", "96 x 64")
    cannot_start(page)
    page.locator(CLEAR).first.click()
    can_start(page)

    page.locator("#latents-chosen input").click()
    page.get_by_role("option", name="earlier.safetensors").click()
    info = read_info(files["good"])
    shows(page, "#latents-info", "37", f"{info.width} × {info.height}", "1.23")
    page.fill("#append_trim_start input", "11")
    expect(page.locator(".field-append_trim_start .eichi-wrong")).to_be_visible()
    page.fill("#append_trim_start input", "2")
    page.fill("#film_trim_end input", "1")
    page.fill(JOIN, "4")
    page.press(JOIN, "Tab")
    # 10 latents of one second, without one; 4 in between; 8 of the file.
    shows(page, "#summary", "81", t("page.files.joined"))
    heard(page, page.locator("#save_latents input").check)
    can_start(page)
    fits(page, WIDTH)

    # What is saved and where, on a telephone.
    page.locator("#output > button").click()
    type_in(page, FOLDER, "cats")
    fits(page, WIDTH)
    can_start(page)

    page.click("#start")
    until(page, "finished")
    page.click("#viewer .metadata summary")
    shows(page, "#viewer .metadata dl", PROMPT, t("page.field.output_folder"), "cats")
    fits(page, WIDTH)
    (job,) = site.jobs.all()
    request = job.request
    assert (request.append_trim_start, request.film_trim_end, request.join_latents, request.save_latents) == (2, 1, 4, True)
    kept = Path(request.append_latents)
    assert kept.parent == site.engine.outputs.parent / "uploads" and kept.read_bytes() == Path(files["good"]).read_bytes()

    reload(page)
    can_start(page)
    page.locator("#latents > button").click()
    shows(page, "#latents-info", "37")
    holds(page, JOIN, "4")
