"""Test LoRA on the pages: off, sets, uploads, cards, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eichi_utils.exchange.metadata import document_of
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.modes import MODES
from locales import LANGUAGES, Translator
from tests.diffusers_helper.inputs import GOLDEN
from tests.webui.forms.test_form import page as page
from webui.panels import lora_panel

MINI, INK, STYLE = "small/mini.safetensors", "ink.v1.safetensors", "Style.SAFETENSORS"


@pytest.mark.parametrize("mode", MODES)
def test_off_means_off_and_on_is_what_the_slots_say(page, mode, lora_folder):
    """Without the box ticked no LoRA is in the request, the metadata or the queue; in the existing program a chosen LoRA
    acts all the same."""
    built = page(mode)
    form = built.form
    switch, box = form.entries["loras"].components
    chosen = json.dumps([{"file": "", "strength": 2}, {"file": INK, "strength": 0.5}, {"file": STYLE, "strength": -1}])
    values = {component: component.value for component in form.components}
    assert form.document(values | {switch: False, box: chosen})["loras"] == []
    request, _ = form.read(values | {switch: True, box: chosen})
    assert request.loras == (Lora(INK, 0.5), Lora(STYLE, -1.0))
    assert INK in document_of(request) and STYLE in document_of(request)
    off, _ = form.read(values | {switch: False, box: chosen})
    assert off.loras == () and INK not in document_of(off) and built.context.jobs.submit(off).request.loras == ()


def test_a_file_that_does_not_fit_keeps_start_closed(page, lora_folder, tower):
    """Whoever chooses a LoRA of another model is told before Start, with the file's name and not its place on the server."""
    built = page("forward")
    for file, key in ((MINI, "shape"), ("gone.safetensors", "missing")):
        values = built.values(image=tower, prompt="x", loras=(Lora(INK), Lora(file)))
        _, problems = built.form.read(values)
        assert [(problem.field, problem.key) for problem in problems] == [("loras/1/file", f"lora_{key}")]
        shown = built.start.on_change(values)
        assert shown[built.start.start]["interactive"] is False
        text = shown[built.start.problems]
        assert Path(file).name in text and str(lora_folder) not in text
    # The same file is right for the model that it was made for.
    fitting = built.values(image=tower, prompt="x", loras=(Lora(MINI),), model="miniature", size=128)
    assert built.form.read(fitting)[1] == ()


def test_a_browser_cannot_name_any_file(page, lora_folder, tower):
    """A browser cannot even find out whether a file elsewhere exists; LoRA files of films that were made here are known."""
    built = page("single")
    outside = str(GOLDEN / "lora" / "bad_unknown_modules.safetensors")
    switch, box = built.form.entries["loras"].components
    values = built.values(image=tower, prompt="x") | {switch: True}
    for file in (outside, "../" + outside, f"x/../../{outside}"):
        request, problems = built.form.read(values | {box: json.dumps([{"file": file}])})
        assert request.loras[0].file == Path(outside).name and [p.key for p in problems] == ["lora_missing"]
    for text in ("{", "5", "[5]", '[{"file": 5}]', '[{"file": "a", "strength": "x"}]', '[{"file": "a", "weight": 1}]'):
        assert built.form.read(values | {box: text})[1], text
    built.context.jobs.submit(MODES["single"](image=tower, prompt="x", loras=(Lora(outside),)))
    request, problems = built.form.read(values | {box: json.dumps([{"file": outside}])})
    assert request.loras[0].file == outside and [p.key for p in problems] == ["lora_no_modules"]


@pytest.fixture
def panel(page, lora_folder, monkeypatch) -> Callable[..., lora_panel.LoraPanel]:
    """Return a function that builds a page and returns its LoRA panel: `panel("reverse", "en")`."""
    made = []
    wire = lora_panel.LoraPanel._wire
    monkeypatch.setattr(lora_panel.LoraPanel, "_wire", lambda self, *given: made.append(self) or wire(self, *given))

    def build(mode: str = "reverse", language: str = "en") -> lora_panel.LoraPanel:
        page(mode, language)
        return made[-1]

    return build


def test_sets_by_name(panel, tmp_path):
    """Any number of LoRA sets with any number of slots is kept by name; one of the existing program can be read but not
    deleted here."""
    (tmp_path / "presets").mkdir()
    old = {"name": "Setting 1", "lora1": "None", "lora2": INK, "lora3": "Нет", "scales": "0.8,0.25,1"}
    (tmp_path / "presets" / "lora_presets.json").write_text(json.dumps({"presets": [old]}))
    built = panel()
    assert [value for _, value in built.preset.choices] == ["Setting 1"]
    taken = built.apply_preset("Setting 1")
    assert taken[built.switch] is True and json.loads(taken[built.box]) == [{"file": INK, "strength": 0.25}]
    chosen = [{"file": INK, "strength": 0.5}, {"file": "", "strength": 2}, {"file": STYLE, "strength": -2}]
    kept = built.save_preset(" mine ", json.dumps(chosen))
    assert kept[built.preset]["value"] == "mine" and "Saved: mine" in kept[built.said]
    assert [value for _, value in kept[built.preset]["choices"]] == ["Setting 1", "mine"]
    assert json.loads(built.apply_preset("mine")[built.box]) == [chosen[0], chosen[2]]
    assert "Deleted: mine" in built.delete_preset("mine")[built.said]
    for said in (
        built.apply_preset("mine"),
        built.delete_preset("mine"),
        built.delete_preset("Setting 1"),
        built.save_preset("", json.dumps(chosen)),
    ):
        assert set(said) == {built.said} and 'class="wrong"' in said[built.said]
    assert "no LoRA to save" in built.save_preset("empty", "[]")[built.said]


def test_uploads_go_into_free_slots(panel, lora_folder, tmp_path):
    """Uploads go into free slots, beyond the slots that are shown too; those that cannot be used are named."""
    built = panel("single")
    names = ("a.safetensors", "b.safetensors", "c.pt")
    uploads = [str(shutil.copy(lora_folder / INK, tmp_path / name)) for name in names]
    filled = [{"file": INK, "strength": 0.5}, {"file": "", "strength": -1}, {"file": STYLE, "strength": 1}]
    got = built.on_upload(uploads, json.dumps(filled))
    slots = [(slot["file"], slot["strength"]) for slot in json.loads(got[built.box])]
    assert slots == [(INK, 0.5), ("uploads/a.safetensors", -1), (STYLE, 1), ("uploads/b.safetensors", 0.8)]
    assert "c.pt" in got[built.said] and ("uploads/a.safetensors",) * 2 in got[built.slots[11].file]["choices"]


def test_uploads_beyond_the_last_slot_stay_in_the_folder(panel, lora_folder, tmp_path):
    """Uploads went into slots that no page shows, and Start was disabled for "too many LoRA" that nobody could see."""
    built = panel("single")
    upload = str(shutil.copy(lora_folder / INK, tmp_path / "more.safetensors"))
    full = [{"file": INK, "strength": 0.1}] * 12
    got = built.on_upload([upload], json.dumps(full))
    assert json.loads(got[built.box]) == full and "uploads/more.safetensors" in got[built.said]
    assert (lora_folder / "uploads" / "more.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_lies_in_the_folder_and_cannot_be_chosen_is_said(panel, lora_folder, language):
    """A .pt in the folder was silently ignored; the existing program lists it. How to convert it is said as well."""
    built = panel("forward", language)
    assert built.report_files()[built.said].count("<p") == 1
    (lora_folder / "small" / "old.pt").write_bytes(b"x")
    (lora_folder / "<b>.BIN").write_bytes(b"x")
    told = built.report_files()[built.said]
    assert "small/old.pt" in told and "torch.load" in told and "<b>" not in told
    assert all("old" not in value for _, value in built.report_files()[built.slots[0].file]["choices"])


def test_a_set_of_another_page_is_there_after_a_rescan(panel):
    """A set saved on one page is listed on the others after a rescan; they listed it only when the program was started
    again."""
    one, other = panel("reverse"), panel("forward")
    one.save_preset("mine", json.dumps([{"file": INK, "strength": -0.5}]))
    assert [value for _, value in other.refresh_files()[other.preset]["choices"]] == ["mine"]


def test_two_files_of_one_name_are_told_apart(page, lora_folder, tower):
    """The sentences said mini.safetensors of both, and which of them was wrong stayed a riddle."""
    (lora_folder / "other").mkdir()
    shutil.copy(lora_folder / INK, lora_folder / "other" / "mini.safetensors")
    built = page("forward")
    shown = built.start.on_change(built.values(image=tower, prompt="x", loras=(Lora("other/mini.safetensors"), Lora(MINI))))
    text = shown[built.start.problems]
    assert MINI in text and "other/mini" not in text and str(lora_folder) not in text


def test_a_slider_that_shows_its_strength_is_left_alone(panel):
    """A strength of many digits was sent again at every look, for sliders pass on rounded numbers: an answer that came late
    took back what was moved meanwhile."""
    built = panel("reverse")
    slots = json.dumps([{"file": INK, "strength": 0.1 + 0.2}, {"file": INK, "strength": 0.5}, {"file": "", "strength": None}])
    shown = {built.switch: True, built.box: slots, built.seen: None, built.filled: []}
    values = shown | {c: c.value for slot in built.slots for c in (slot.file, slot.strength)}
    values[built.form.entries["model"].components[0]] = "framepack"
    values |= {built.slots[number].strength: strength for number, strength in enumerate((0.3, 0.4, 0.8))}
    updates = built.on_change(values)
    assert built.slots[0].strength not in updates
    assert updates[built.slots[1].strength] == 0.5 and updates[built.slots[2].strength] is None


def test_what_is_moved_while_the_box_does_not_know_it_yet_stays(panel):
    """On a busy computer the browser told the strength's box of a slider's move two seconds late; a look in between set the
    slider back to 0.8, and the user's strength was lost."""
    built = panel("reverse")
    model = {built.form.entries["model"].components[0]: "framepack"}
    parts = {c: c.value for slot in built.slots for c in (slot.file, slot.strength)}
    slots = [{"file": INK, "strength": 0.8, "theirs": True}, {"file": INK, "strength": 0.8}, {"file": INK, "strength": 0.8}]
    values = {**parts, **model, built.switch: True, built.box: json.dumps(slots), built.seen: None}
    values |= {slot.file: INK for slot in built.slots[:3]} | {slot.strength: -0.4 for slot in built.slots[:3]}
    # Their own, as it was at the last look, and filled anew.
    updates = built.on_change(values | {built.filled: [[INK, 1.0], [INK, 0.8], [INK, 1.0]]})
    moved = [slot.strength in updates for slot in built.slots[:3]]
    assert moved == [False, False, True] and updates[built.slots[2].strength] == 0.8
    assert updates[built.filled][:3] == [[INK, 0.8]] * 3
    # The mark is the page's own and no part of a request.
    document = built.form.document(
        {c: c.value for c in built.form.components} | {built.switch: True, built.box: json.dumps(slots)}
    )
    assert document["loras"] == [{"file": INK, "strength": 0.8}] * 3


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_card_says_what_a_file_does(panel, lora_folder, language):
    """A LoRA's card shows format, rank, layers, what is left out and why it cannot be used, and no HTML of the file's."""
    panel, t = panel("single", language), Translator(language)
    report = t("page.lora.report", format="kohya, FramePack", ranks="1", applied=1, layers=553)
    assert report in panel._card(INK, "framepack") and "class" in panel._card(INK, "framepack")
    extra = {"lora_unet_no_such.lora_up.weight": torch.zeros(2, 2), "lora_te_x.lora_up.weight": torch.zeros(2, 2)}
    save_file({**load_file(lora_folder / INK), **extra}, lora_folder / "part.safetensors")
    (lora_folder / "part.txt").write_text("<b>ink</b>")
    card = panel._card("part.safetensors", "framepack")
    assert card.count('class="notice"') == 2 and "lora_unet_no_such" in card and "&lt;b&gt;ink" in card
    for file in (MINI, "gone.safetensors", "../../x"):
        assert 'class="wrong"' in panel._card(file, "framepack")
    assert panel._card("", "framepack") == ""
