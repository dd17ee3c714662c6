"""A fresh installation in a browser: no models but the miniature, which a newcomer tries with three clicks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusers_helper.vae.frames import FRAMES_PER_LATENT
from eichi_utils.exchange.metadata import read_document
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models import hub
from eichi_utils.models.catalogue import Models
from eichi_utils.render import section_loop
from eichi_utils.render.engine import Engine
from eichi_utils.requests import modes
from locales import Translator

pytestmark = pytest.mark.browser

SIZES = "[...document.querySelectorAll('#size label')].map(label => parseInt(label.innerText))"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    """An empty hub cache and no --models."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Models()


@pytest.fixture
def jobs(models: Models, tmp_path: Path) -> Iterator[Jobs]:
    """The real worker."""
    jobs = Jobs(Engine(models, tmp_path / "outputs", "cpu"))
    yield jobs
    jobs.close(60)


def chosen(page, name: str) -> str:
    return page.inner_text(f"#{name} label.selected")


@pytest.mark.parametrize(
    "mode,language,width,height", [("reverse", "en", 1280, 900), ("forward", "ja", 390, 844), ("single", "ru", 1280, 900)]
)
def test_an_example_becomes_a_film(
    serve, open_page, models, jobs, monkeypatch, mode: str, language: str, width: int, height: int
) -> None:
    """Every page offers the miniature; a click on an example and one on Start make a film, with nothing to download."""
    if mode == "forward":
        # Decoding is most of the time, and the same as the other mode's.
        monkeypatch.setattr(section_loop, "decode_frames", grey)
    t = Translator(language)
    page = open_page(serve(mode, language, models=models).url, "/", width, height)
    assert chosen(page, "model") == t("page.model.miniature_sizes", smallest=128, largest=192)
    assert "42" in page.inner_text("#model label:not(.selected)")
    assert page.evaluate(SIZES) == [128, 160, 192]
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.fill("#seed textarea, #seed input", "7")
    example = models.examples("miniature")[2]
    page.locator("#examples .row button", has_text=example.prompt).click()
    page.wait_for_selector("#image img")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value === {example.prompt!r}")
    assert page.input_value("#seed textarea, #seed input") == "7"
    page.wait_for_selector("#start:enabled")
    page.click("#start")
    page.wait_for_selector("#progress [data-state=finished]", timeout=120_000)
    (job,) = jobs.all()
    stored = read_document(job.view.files[0])
    assert (stored["model"], stored["size"], stored["steps"], stored["seed"]) == ("miniature", 128, 15, 7)
    assert stored["prompt"] == example.prompt and [notice.key for notice in job.view.notices] == ["processor"]


def test_an_example_can_be_taken_back(serve, open_page, models, tower: str, tmp_path: Path) -> None:
    """A click on an example lost the picture and the prompt that were there."""
    page = open_page(serve("reverse", "en", models=models).url)
    examples = page.locator("#examples .row button")
    prompts = [example.prompt for example in models.examples("miniature")]
    prompt_is = "document.querySelector('#prompt textarea').value === {!r}"
    examples.nth(0).click()
    page.wait_for_function(prompt_is.format(prompts[0]))
    assert page.locator("#examples .undo").is_hidden()
    mine = shutil.copy(tower, tmp_path / "mine.jpg")
    page.set_input_files("#image input[type=file]", mine)
    page.fill("#prompt textarea", "My own words.")
    own = "document.querySelector('#image img')?.src.includes('mine')"
    page.wait_for_function(own)
    for number in (1, 2):
        examples.nth(number).click()
        page.wait_for_function(prompt_is.format(prompts[number]))
        page.wait_for_function(f"!{own}")
    page.click("#examples .undo")
    page.wait_for_function(prompt_is.format("My own words."))
    page.wait_for_function(own)
    assert page.locator("#examples .undo").is_hidden()


def test_another_model_brings_its_sizes_and_loses_nothing(serve, open_page, models) -> None:
    """Offered sizes change with the model; what was typed stays, and so does the size each was last asked for."""
    page = open_page(serve("reverse", "en", models=models).url)
    page.locator("#examples .row button").nth(0).click()
    page.wait_for_selector("#image img")
    page.wait_for_function("document.querySelector('#prompt textarea').value")
    page.fill("#prompt textarea", "My own words.")
    page.locator("#size label").nth(1).click()
    page.wait_for_selector("#start:enabled")
    real, small = page.locator("#model label").nth(0), page.locator("#model label").nth(1)
    for _ in range(2):
        real.click()
        page.wait_for_function(f"{SIZES}.length === 10")
        assert min(page.evaluate(SIZES)) == 384 and chosen(page, "size") == "640 px"
        page.wait_for_function("document.querySelector('#summary').textContent.includes('640 × 640')")
        assert "42 GB" in page.inner_text("#model-hint")
        assert page.locator("#examples .row button").count() == 0
        small.click()
        page.wait_for_function(f"{SIZES}.length === 3")
        assert chosen(page, "size") == "160 px"
        page.wait_for_function("document.querySelector('#summary').textContent.includes('160 × 160')")
        page.wait_for_selector("#start:enabled")
        assert page.locator("#problems li").count() == 0
    assert page.input_value("#prompt textarea") == "My own words."
    assert page.locator("#image img").count() == 1


def test_a_reload_shows_the_jobs_model(serve, open_page, models, jobs, tower: str) -> None:
    """The page begins with the miniature, but the running job is one of the other model (and fails for want of a network)."""
    kind = {"model": "framepack", "size": 512, "image": tower, "prompt": "x"}
    site = serve("reverse", "en", models=models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "snapshot_download", _offline)
        jobs.submit(modes.from_json({"mode": "reverse", **kind}))
        page = open_page(site.url)
        page.wait_for_selector("#progress [data-state=failed]")
        page.wait_for_function(f"{SIZES}.length === 10")
    assert chosen(page, "model").startswith("FramePack") and chosen(page, "size") == "512 px"
    assert page.locator("#examples .row button").count() == 0


def grey(vae: object, latents: Tensor, *_: object) -> Iterator[Tensor]:
    yield torch.zeros(1, 3, FRAMES_PER_LATENT * latents.shape[2] - 3, 8 * latents.shape[3], 8 * latents.shape[4])


def _offline(*args: object, **settings: object) -> None:
    raise ConnectionError("no network in tests")
