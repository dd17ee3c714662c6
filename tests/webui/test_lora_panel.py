"""LoRA on the pages: picked, set, started, changed and started again; off is off; sets; files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils import models as loading
from eichi_utils.catalogue import Models
from eichi_utils.engine import Engine
from eichi_utils.jobs import Jobs
from eichi_utils.loras import Lora
from eichi_utils.metadata import read_document
from locales import Translator
from tests.diffusers_helper.inputs import GOLDEN
from tests.webui.test_form import page as page

MINI, INK, STYLE = "small/mini.safetensors", "ink.v1.safetensors", "Style.SAFETENSORS"


def choose(tab, number: int, file: str) -> None:
    """A file in a slot, typed as a user finds it among many."""
    tab.fill(f"#lora-file-{number} input", file)
    tab.keyboard.press("Enter")


def strength(tab, number: int, value: str) -> None:
    tab.fill(f"#lora-strength-{number} input[type=number]", value)
    tab.keyboard.press("Tab")


def slots(tab) -> list[tuple[str, float]]:
    return [(slot["file"], slot["strength"]) for slot in json.loads(tab.input_value("#loras-json textarea"))]


def box_is(tab, *wanted: tuple[str, float]) -> None:
    """Wait until the slots hold this, and show it."""
    text = json.dumps([list(slot) for slot in wanted])
    tab.wait_for_function(
        "wanted => JSON.stringify(JSON.parse(document.querySelector('#loras-json textarea').value)"
        ".map(slot => [slot.file, slot.strength])) === JSON.stringify(JSON.parse(wanted))",
        arg=text,
    )
    for number, (file, value) in enumerate(wanted):
        shown = "([id, text]) => document.querySelector(id)?.value === text"
        tab.wait_for_function(shown, arg=[f"#lora-file-{number} input", file or "None"])
        tab.wait_for_function(shown, arg=[f"#lora-strength-{number} input[type=number]", f"{value:g}"])


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Jobs]:
    """The real one, with the miniature."""
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
        tab.set_input_files("#image input[type=file]", tower)
        tab.fill("#prompt textarea", "The camera zooms in.")
        tab.fill("#seed textarea, #seed input", "7")
        tab.click("#advanced button")
        tab.fill("#advanced input[type=number] >> nth=0", "2")
        tab.click("#loras button")
        tab.check("#lora-switch input")
        choose(tab, 0, MINI)
        strength(tab, 0, "1.5")
        tab.wait_for_selector("#lora-card-0 img")
        card = tab.inner_text("#lora-card-0")
        assert "zooming ink" in card and "PEFT, FramePack names, rank 1; changes 1 of 90 layers" in card
        pictures = []

        def made() -> list[dict]:
            tab.wait_for_selector("#start:enabled")
            before = len(jobs.all())
            tab.click("#start")
            while len(jobs.all()) == before or not jobs.all()[-1].view.ended:
                tab.wait_for_timeout(50)
            assert jobs.all()[-1].view.state == "finished", jobs.all()[-1].view.problems
            pictures.append(Path(jobs.all()[-1].view.picture))
            return read_document(pictures[-1])["loras"]

        tab.evaluate("window.untouched = true")
        assert made() == [{"file": MINI, "strength": 1.5}]
        strength(tab, 0, "-0.5")
        box_is(tab, (MINI, -0.5), ("", 0.8), ("", 0.8))
        assert made() == [{"file": MINI, "strength": -0.5}]
        tab.uncheck("#lora-switch input")
        tab.wait_for_selector("#lora-file-0", state="detached")
        assert made() == []
        assert len(loads) == 1 and tab.evaluate("window.untouched")
        assert len({Image.open(picture).tobytes() for picture in pictures}) == 3


@pytest.mark.browser
def test_slots_sets_and_what_is_wrong(serve, open_page, tower, lora_folder, tmp_path):
    """On a telephone, in Japanese: nothing runs without a file that is missing, and nothing that was chosen gets lost."""
    t = Translator("ja")
    (tmp_path / "presets").mkdir()
    old = {"name": "設定1", "lora1": INK, "lora2": "なし", "lora3": "gone.safetensors", "scales": "0.5,0.8,1.25"}
    (tmp_path / "presets" / "lora_presets.json").write_text(json.dumps({"presets": [old]}))
    site = serve("reverse", "ja")
    tab = open_page(site.url, "/", 390, 844)
    tab.set_input_files("#image input[type=file]", tower)
    tab.fill("#prompt textarea", "She dances.")
    tab.click("#loras button")
    tab.fill("#lora-preset input", "設定1")
    tab.keyboard.press("Enter")
    tab.click("#lora-preset-load")
    # A strength belongs to its own file, and what is not there is said beside its slot.
    tab.wait_for_selector("#lora-card-1 .wrong")
    assert slots(tab) == [(INK, 0.5), ("gone.safetensors", 1.25)]
    assert "gone.safetensors" in tab.inner_text("#lora-card-1") and str(lora_folder) not in tab.inner_text("#lora-card-1")
    tab.wait_for_selector("#problems .wrong")
    assert tab.is_disabled("#start")

    # It comes into the folder; scanned again, everything that was chosen is still chosen, and it can start.
    shutil.copy(lora_folder / INK, lora_folder / "gone.safetensors")
    tab.click("#lora-rescan")
    tab.wait_for_selector("#lora-card-1 .eichi-hint")
    choose(tab, 2, "gone.safetensors")
    tab.click("#lora-add")
    tab.wait_for_selector("#lora-file-3")
    choose(tab, 3, STYLE)
    strength(tab, 3, "-2")
    chosen = (INK, 0.5), ("gone.safetensors", 1.25), ("gone.safetensors", 0.8), (STYLE, -2)
    tab.wait_for_function("document.querySelectorAll('.eichi-lora-card').length === 4")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.wait_for_selector("#start:enabled")

    tab.fill("#lora-preset input", "四つ")
    tab.click("#lora-preset-save")
    tab.wait_for_function("text => document.querySelector('#lora-said').innerText.includes(text)", arg="四つ")
    (own,) = json.loads((tmp_path / "presets" / "loras.json").read_text(encoding="utf-8"))["loras"]
    assert [tuple(lora.values()) for lora in own["value"]] == list(chosen)

    # A section may have its LoRA weaker; the whole choice is the film's, and there again after a reload.
    tab.locator("#quick label").nth(1).click()
    tab.locator("#timeline [data-section='1']").click()
    tab.wait_for_selector("#section-lora-scale")
    tab.wait_for_function("document.querySelector('#section-number textarea')?.value === '1'")
    tab.fill("#section-lora-scale input[type=number]", "0.5")
    tab.keyboard.press("Tab")
    tab.wait_for_selector("#timeline [data-section='1'] .lora")
    tab.wait_for_selector("#start:enabled")
    tab.click("#start")
    tab.wait_for_selector("#progress [data-state=finished]")
    (request,) = site.engine.seen
    assert request.loras == tuple(Lora(*slot) for slot in chosen) and request.section_lora_scales == {1: 0.5}
    assert request.plan().sections[1].lora_strengths == (0.25, 0.625, 0.4, -1.0)
    tab.reload()
    tab.wait_for_selector("#timeline [data-section='1'] .lora")
    tab.click("#loras button")
    box_is(tab, *chosen)

    # A slot that is removed takes its strength along; an upload fills the first free one.
    tab.click("#lora-remove-0")
    box_is(tab, *chosen[1:])
    shutil.copy(GOLDEN / "lora" / "bad_shape.safetensors", tmp_path / "small.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"x")
    with tab.expect_file_chooser() as chooser:
        tab.click("#lora-upload")
    chooser.value.set_files([tmp_path / "small.safetensors", tmp_path / "bad.pt"])
    tab.wait_for_selector("#lora-card-3 .wrong")
    assert slots(tab)[3][0] == "uploads/small.safetensors"
    assert "torch.load" in tab.inner_text("#lora-said") and t("page.lora.count", count=4) in tab.inner_text("#loras")
