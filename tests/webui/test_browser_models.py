"""Test a fresh installation in a browser: no models but the miniature, which a newcomer tries with three clicks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from eichi_utils.exchange.metadata import read_document
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models import hub
from eichi_utils.models.catalogue import Models
from eichi_utils.models.description import Example
from eichi_utils.render.engine import Engine
from eichi_utils.requests import modes
from locales import Translator
from tests.webui.browsing import FILM_PATIENCE, SEED, can_start, eventually, fill, fits, holds, shows, type_in, until

pytestmark = pytest.mark.browser

SIZES = "[...document.querySelectorAll('#size label')].map(label => parseInt(label.innerText))"
SMALL = (128, 160, 192)
EXAMPLES, UNDO = "#examples .row button", "#examples .undo"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """Return models with an empty hub cache and without --models."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Models()


@pytest.fixture
def worker(models: Models, tmp_path: Path) -> Iterator[Jobs]:
    """Run the real worker."""
    jobs = Jobs(Engine(models, tmp_path / "outputs", "cpu"))
    yield jobs
    jobs.close(60)


@pytest.fixture
def jobs(request: pytest.FixtureRequest, jobs: Jobs) -> Jobs:
    """Return the real worker if the test asks for it, otherwise the usual jobs."""
    return request.getfixturevalue("worker") if "worker" in request.fixturenames else jobs


def chosen(page, name: str) -> Locator:
    return page.locator(f"#{name} label.selected")


def offers(page, *sizes: int) -> None:
    """Wait until these are the sizes to choose from."""
    eventually(page, lambda: page.evaluate(SIZES), list(sizes))


def take_example(page, example: Example) -> None:
    """Set a seed, click on an example, and click on Start."""
    offers(page, *SMALL)
    type_in(page, SEED, "7")
    page.locator(EXAMPLES, has_text=example.prompt).click()
    expect(page.locator("#image img")).to_be_visible()
    holds(page, "#prompt textarea", example.prompt)
    holds(page, SEED, "7")
    can_start(page)
    page.click("#start")


def test_an_example_becomes_a_film(serve, open_page, models, worker) -> None:
    """The page offers the miniature; a click on an example and one on Start make a film, with nothing to download."""
    page = open_page(serve("reverse", "en", models=models).url)
    example = models.examples("miniature")[2]
    take_example(page, example)
    until(page, "finished", FILM_PATIENCE)
    (job,) = worker.all()
    stored = read_document(job.view.files[0])
    assert (stored["model"], stored["size"], stored["steps"], stored["seed"]) == ("miniature", 128, 15, 7)
    assert stored["prompt"] == example.prompt and [notice.key for notice in job.view.notices] == ["processor"]


@pytest.mark.parametrize(("mode", "language", "width", "height"), [("forward", "ja", 390, 844), ("single", "ru", 1280, 900)])
def test_every_page_offers_the_miniature(serve, open_page, models, mode: str, language: str, width: int, height: int) -> None:
    """Each page offers the miniature and asks the worker for it, as the standard page does. Other tests make such films
    without a page."""
    t, site = Translator(language), serve(mode, language, models=models)
    page = open_page(site.url, "/", width, height)
    expect(chosen(page, "model")).to_have_text(t("page.model.miniature_sizes", smallest=128, largest=192))
    shows(page, "#model label:not(.selected)", "42")
    fits(page, width)
    example = models.examples("miniature")[2]
    take_example(page, example)
    until(page, "finished")
    (request,) = site.engine.seen
    assert (request.mode, request.model, request.size, request.steps, request.seed) == (mode, "miniature", 128, 15, 7)
    assert request.prompt == example.prompt


def test_an_example_can_be_taken_back(serve, open_page, models, tower: str, tmp_path: Path) -> None:
    """A click on an example lost the picture and the prompt that were there."""
    page = open_page(serve("reverse", "en", models=models).url)
    examples, picture = page.locator(EXAMPLES), page.locator("#image img")
    prompts = [example.prompt for example in models.examples("miniature")]
    examples.nth(0).click()
    holds(page, "#prompt textarea", prompts[0])
    expect(picture).to_be_visible()
    expect(page.locator(UNDO)).to_be_hidden()
    mine = shutil.copy(tower, tmp_path / "mine.jpg")
    fill(page, mine, "My own words.")
    own = re.compile("mine")
    expect(picture).to_have_attribute("src", own)
    for number in (1, 2):
        examples.nth(number).click()
        holds(page, "#prompt textarea", prompts[number])
        expect(picture).not_to_have_attribute("src", own)
    page.click(UNDO)
    holds(page, "#prompt textarea", "My own words.")
    expect(picture).to_have_attribute("src", own)
    expect(page.locator(UNDO)).to_be_hidden()


def test_another_model_brings_its_sizes_and_loses_nothing(serve, open_page, models) -> None:
    """Offered sizes change with the model; what was typed stays, and so does the size each was last asked for."""
    page = open_page(serve("reverse", "en", models=models).url)
    page.locator(EXAMPLES).nth(0).click()
    expect(page.locator("#image img")).to_be_visible()
    holds(page, "#prompt textarea", models.examples("miniature")[0].prompt)
    type_in(page, "#prompt textarea", "My own words.")
    page.locator("#size label").nth(1).click()
    shows(page, "#summary", "160 × 160")
    can_start(page)
    real, small = page.locator("#model label").nth(0), page.locator("#model label").nth(1)
    for _ in range(2):
        real.click()
        eventually(page, lambda: (len(page.evaluate(SIZES)), min(page.evaluate(SIZES), default=0)), (10, 384))
        expect(chosen(page, "size")).to_have_text("640 px")
        shows(page, "#summary", "640 × 640")
        shows(page, "#model-hint", "42 GB")
        expect(page.locator(EXAMPLES)).to_have_count(0)
        small.click()
        offers(page, *SMALL)
        expect(chosen(page, "size")).to_have_text("160 px")
        shows(page, "#summary", "160 × 160")
        can_start(page)
        expect(page.locator("#problems li")).to_have_count(0)
    holds(page, "#prompt textarea", "My own words.")
    expect(page.locator("#image img")).to_have_count(1)


def test_a_reload_shows_the_jobs_model(serve, open_page, models, worker, tower: str) -> None:
    """The page begins with the miniature, but the running job is one of the other model (and fails for want of a network)."""
    kind = {"model": "framepack", "size": 512, "image": tower, "prompt": "x"}
    site = serve("reverse", "en", models=models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "snapshot_download", _offline)
        worker.submit(modes.from_json({"mode": "reverse", **kind}))
        page = open_page(site.url)
        until(page, "failed")
        eventually(page, lambda: len(page.evaluate(SIZES)), 10)
    expect(chosen(page, "model")).to_contain_text("FramePack")
    expect(chosen(page, "size")).to_have_text("512 px")
    expect(page.locator(EXAMPLES)).to_have_count(0)


def _offline(*args: object, **settings: object) -> None:
    raise ConnectionError("no network in tests")
