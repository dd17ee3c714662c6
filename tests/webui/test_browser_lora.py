"""Test LoRA in a browser: picked, set, started, changed and started again; slots, sets and missing files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from eichi_utils.exchange.metadata import read_document
from eichi_utils.files.picture_files import FORMAT_NAMES
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models import pool as loading
from eichi_utils.models.catalogue import Models
from eichi_utils.render.engine import Engine
from eichi_utils.requests.loras import Lora
from locales import Translator
from tests.diffusers_helper.inputs import GOLDEN
from tests.webui.browsing import (
    FILM_PATIENCE,
    SEED,
    can_start,
    cannot_start,
    eventually,
    fill,
    fits,
    heard,
    holds,
    reload,
    shows,
    stored,
    type_in,
    until,
)
from tests.webui.panels.test_lora_panel import INK, MINI, STYLE

ODD = """絵 の it's "0=0.5" <img src=x onerror=alert(1)> %20&amp;.safetensors"""


def choose(tab, number: int, file: str) -> None:
    """Choose a file in a slot by typing, as a user finds it among many."""
    tab.fill(f"#lora-file-{number} input", file)
    tab.keyboard.press("Enter")


def strength(tab, number: int, value: str) -> None:
    tab.fill(f"#lora-strength-{number} input[type=number]", value)
    tab.keyboard.press("Tab")


def press(tab, selector: str) -> None:
    """Click on an element that may lie below the pinned film or Start, after scrolling to it as a user would."""
    tab.locator(selector).evaluate("element => element.click()")


def slots(tab) -> list[tuple[str, float]]:
    return [(slot["file"], slot["strength"]) for slot in stored(tab, "#loras-json")]


def box_is(tab, *wanted: tuple[str, float]) -> None:
    """Wait until the slots hold this, and show it."""
    eventually(tab, lambda: slots(tab), list(wanted))
    for number, (file, value) in enumerate(wanted):
        holds(tab, f"#lora-file-{number} input", file or "None")
        holds(tab, f"#lora-strength-{number} input[type=number]", f"{value:g}")


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Jobs]:
    """Run the real worker with the miniature."""
    jobs = Jobs(Engine(Models(), tmp_path / "outputs", "cpu"))
    yield jobs
    jobs.close(60)


@pytest.mark.browser
class TestWithTheRealWorker:
    @pytest.fixture
    def jobs(self, worker: Jobs) -> Jobs:
        return worker

    def test_pick_set_start_and_start_again(self, serve, open_page, tower, jobs, lora_folder, monkeypatch):
        """The result's metadata names file and strength; another strength, or none, is another picture without a reload."""
        loads, load = [], loading.load_transformer
        monkeypatch.setattr(loading, "load_transformer", lambda *given: loads.append(given) or load(*given))
        (lora_folder / "small" / "mini.txt").write_text("zooming ink")
        Image.new("RGB", (64, 64), "red").save(lora_folder / "small" / "mini.png")
        tab = open_page(serve("single", "en", models=Models()).url)
        tab.locator("#model label", has_text="Miniature").click()
        fill(tab, tower, "The camera zooms in.")
        type_in(tab, SEED, "7")
        tab.click("#advanced button")
        type_in(tab, "#advanced input[type=number] >> nth=0", 2)
        tab.click("#loras button")
        tab.check("#lora-switch input")
        choose(tab, 0, MINI)
        strength(tab, 0, "1.5")
        expect(tab.locator("#lora-card-0 img")).to_be_visible()
        shows(tab, "#lora-card-0", "zooming ink", "PEFT, FramePack, rank 1; changes 1 of 90 layers")
        # Any name that a file can have is only a name.
        shutil.copy(lora_folder / MINI, lora_folder / ODD)
        press(tab, "#lora-rescan")
        choose(tab, 1, ODD)
        strength(tab, 1, "-0.35")
        box_is(tab, (MINI, 1.5), (ODD, -0.35), ("", 0.8))
        expect(tab.locator("#lora-card-1 .eichi-hint")).to_be_visible()
        pictures = []

        def made() -> list[dict]:
            can_start(tab)
            before = len(jobs.all())
            tab.click("#start")
            eventually(tab, lambda: len(jobs.all()) > before and jobs.all()[-1].view.ended, patience=FILM_PATIENCE)
            assert jobs.all()[-1].view.state == "finished", jobs.all()[-1].view.problems
            pictures.append(Path(jobs.all()[-1].view.picture))
            return read_document(pictures[-1])["loras"]

        # What a slider shows is what counts, also after its reset button, and where its box holds too much.
        tab.locator("#lora-strength-0 button").click()
        box_is(tab, (MINI, 0.8), (ODD, -0.35), ("", 0.8))
        strength(tab, 0, "7")
        box_is(tab, (MINI, 2), (ODD, -0.35), ("", 0.8))
        strength(tab, 0, "1.5")
        tab.evaluate("window.untouched = true")
        odd = {"file": ODD, "strength": -0.35}
        assert made() == [{"file": MINI, "strength": 1.5}, odd]
        strength(tab, 0, "-0.5")
        box_is(tab, (MINI, -0.5), (ODD, -0.35), ("", 0.8))
        assert made() == [{"file": MINI, "strength": -0.5}, odd]
        tab.uncheck("#lora-switch input")
        expect(tab.locator("#lora-file-0")).to_have_count(0)
        assert made() == []
        assert len(loads) == 1 and tab.evaluate("window.untouched")
        assert len({Image.open(picture).tobytes() for picture in pictures}) == 3

        # Another file under the name between pick and Start: nothing runs, and the page says which and why.
        tab.check("#lora-switch input")
        box_is(tab, (MINI, -0.5), (ODD, -0.35), ("", 0.8))
        can_start(tab)
        tensors = load_file(lora_folder / ODD)
        save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, lora_folder / ODD)
        tab.click("#start")
        shows(tab, "#problems .wrong", ODD, "NaN")
        assert len(jobs.all()) == 3
        expect(tab.locator("img[src=x]")).to_have_count(0)


@pytest.mark.browser
def test_slots_sets_and_what_is_wrong(serve, open_page, tower, lora_folder, tmp_path):
    """On a telephone, in Japanese, nothing runs without a missing file, and no choice is lost: neither a strength between
    the slider's steps, nor a slot while LoRA are off and the page is reloaded."""
    t = Translator("ja")
    (tmp_path / "presets").mkdir()
    old = {"name": "設定1", "lora1": INK, "lora2": "なし", "lora3": "gone.safetensors", "scales": "0.5,0.8,0.333"}
    (tmp_path / "presets" / "lora_presets.json").write_text(json.dumps({"presets": [old]}))
    site = serve("reverse", "ja")
    tab = open_page(site.url, "/", 390, 844)
    fill(tab, tower, "She dances.")
    press(tab, "#loras button")
    tab.fill("#lora-preset input", "設定1")
    tab.keyboard.press("Enter")
    press(tab, "#lora-preset-load")
    # A strength belongs to its own file, and what is not there is said beside its slot.
    expect(tab.locator("#lora-card-1 .wrong")).to_be_visible()
    eventually(tab, lambda: slots(tab)[:2], [(INK, 0.5), ("gone.safetensors", 0.333)])
    shows(tab, "#lora-card-1", "gone.safetensors")
    expect(tab.locator("#lora-card-1")).not_to_contain_text(str(lora_folder))
    expect(tab.locator("#problems .wrong")).to_be_visible()
    cannot_start(tab)

    # It comes into the folder; scanned again, everything that was chosen is still chosen, and it can start.
    shutil.copy(lora_folder / INK, lora_folder / "gone.safetensors")
    press(tab, "#lora-rescan")
    expect(tab.locator("#lora-card-1 .eichi-hint")).to_be_visible()
    choose(tab, 2, "gone.safetensors")
    press(tab, "#lora-add")
    expect(tab.locator("#lora-file-3")).to_be_visible()
    choose(tab, 3, STYLE)
    strength(tab, 3, "-2")
    chosen = (INK, 0.5), ("gone.safetensors", 0.333), ("gone.safetensors", 0.8), (STYLE, -2)
    expect(tab.locator(".eichi-lora-card")).to_have_count(4)
    fits(tab, 390)
    can_start(tab)

    # A section may have its LoRA weaker; the whole choice is the film's, and there again after a reload.
    press(tab, "#quick label >> nth=1")
    press(tab, "#timeline [data-section='1']")
    holds(tab, "#section-number textarea", "1")
    # What is no picture is refused in the page's language, and a narrow place shows the whole sentence.
    (tmp_path / "words.txt").write_text("no picture")
    tab.set_input_files("#section-picture input[type=file]", tmp_path / "words.txt")
    line = tab.locator("#section-picture > .eichi-wrong")
    expect(line).to_have_text(t("problem.picture_unknown_format", file="words.txt", formats=FORMAT_NAMES))
    ends = "at => document.querySelector(at).getBoundingClientRect().bottom"
    eventually(tab, lambda: tab.evaluate(ends, "#section-picture > .eichi-wrong") <= tab.evaluate(ends, "#section-picture"))
    fits(tab, 390)
    expect(tab.locator("#section-lora-scale")).to_be_visible()
    # Left empty, it was made 0 by gradio.
    scale, lora_of_1 = "#section-lora-scale input[type=number]", tab.locator("#timeline [data-section='1'] .lora")
    tab.fill(scale, "")
    tab.keyboard.press("Tab")
    expect(tab.locator(".field-section_lora_scales > .eichi-wrong")).to_have_text(t("problem.value_needed"))
    cannot_start(tab)
    tab.fill(scale, "0.33")
    tab.keyboard.press("Tab")
    expect(lora_of_1).to_be_visible()
    can_start(tab)
    press(tab, "#start")
    until(tab, "finished")
    (request,) = site.engine.seen
    assert request.loras == tuple(Lora(*slot) for slot in chosen) and request.section_lora_scales == {1: 0.33}
    assert request.plan().sections[1].lora_strengths == pytest.approx((0.165, 0.10989, 0.264, -0.66))
    reload(tab)
    expect(lora_of_1).to_be_visible()
    press(tab, "#loras button")
    box_is(tab, *chosen)
    # A section that is opened while LoRA are off keeps its scale.
    press(tab, "#lora-switch input")
    press(tab, "#timeline [data-section='1']")
    holds(tab, "#section-number textarea", "1")
    press(tab, "#lora-switch input")
    holds(tab, scale, "0.33")
    eventually(tab, lambda: stored(tab, "#section-lora-scales-json"), {"1": 0.33})

    # Off, no film names the slots; reloaded, they are there again.
    heard(tab, lambda: press(tab, "#lora-switch input"))
    expect(tab.locator("#section-lora-scale")).to_be_hidden()
    can_start(tab)
    press(tab, "#start")
    eventually(tab, lambda: len(site.jobs.all()) == 2 and site.jobs.all()[1].view.ended)
    assert site.engine.seen[1].loras == ()
    reload(tab)
    press(tab, "#loras button")
    holds(tab, "#prompt textarea", "She dances.")
    expect(tab.locator("#lora-switch input")).not_to_be_checked()
    press(tab, "#lora-switch input")
    box_is(tab, *chosen)

    # A slot that is removed takes its strength along; an upload fills the first free one.
    press(tab, "#lora-remove-0")
    box_is(tab, *chosen[1:])
    shutil.copy(GOLDEN / "lora" / "bad_shape.safetensors", tmp_path / "small.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"x")
    with tab.expect_file_chooser() as chooser:
        press(tab, "#lora-upload")
    chooser.value.set_files([tmp_path / "small.safetensors", tmp_path / "bad.pt"])
    expect(tab.locator("#lora-card-3 .wrong")).to_be_visible()
    eventually(tab, lambda: slots(tab)[3][0], "uploads/small.safetensors")
    shows(tab, "#lora-said", "torch.load")
    shows(tab, "#loras", t("page.lora.count", count=4))
