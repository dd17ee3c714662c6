"""Test stored prompts, favourites and settings, called as the page calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gradio as gr
import pytest

from eichi_utils.requests.modes import MODES
from eichi_utils.requests.request import to_json
from eichi_utils.user_data.presets import lora_presets
from tests.eichi_utils.zips import COMPAT
from tests.webui.forms.test_form import OTHER
from tests.webui.forms.test_form import page as page
from tests.webui.whole import Page, sentence
from tests.webui.whole import whole as whole
from webui import frame
from webui.forms.fields import NAME_CLASS
from webui.panels.settings_panel import setting_names, starting_fields

pytestmark = pytest.mark.slow


@pytest.fixture
def compat(tmp_path: Path) -> Path:
    """Put the existing program's presets where the page looks for them."""
    (tmp_path / "presets").mkdir()
    for name in ("prompt_presets.json", "favorite_settings.json"):
        shutil.copyfile(COMPAT / name, tmp_path / "presets" / name)
    return tmp_path


def test_the_existing_programs_prompts(whole: Page, compat: Path):
    page = whole()
    panel = page.prompts.panel
    assert panel.names() == ["なし", "起動時デフォルト", "dance"]
    assert starting_fields(page.built.context, page.built.form)[0] == {"prompt": "A man walks."}
    page.fill(prompt="mine")
    page.see(panel.apply(page.holds | {panel.name: "dance"}))
    assert page.request.prompt == "The girl dances gracefully, with clear movements, full of charm."
    page.undo(panel)
    assert page.request.prompt == "mine"


def test_names_as_an_existing_file_has_them(whole: Page, compat: Path):
    """A preset whose name has spaces at its ends was listed and then not found. New names are trimmed and at most 100
    letters long."""
    path = compat / "presets" / "prompt_presets.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["presets"].append({"name": " spaced ", "prompt": "spaced out"})
    path.write_text(json.dumps(document), encoding="utf-8")
    page = whole()
    panel = page.prompts.panel
    page.see(panel.apply(page.holds | {panel.name: " spaced "}))
    assert page.request.prompt == "spaced out"
    page.see(panel.delete({panel.name: " spaced "}))
    assert " spaced " not in panel.names()
    assert "at most 100" in page.see(panel.save(page.holds | {panel.name: "n" * 101}))


def test_saving_a_prompt_over_another_can_be_undone(whole: Page, compat: Path):
    """A replaced prompt can be restored. A long one that holds "A character" twice is kept whole: the existing page cut it."""
    page = whole()
    panel = page.prompts.panel
    long = "A character walks. A character runs. " * 200
    page.fill(prompt=long)
    assert "replaced" in page.see(panel.save(page.holds | {panel.name: " dance "}))
    assert panel.store.all()[0]["dance"] == long
    page.undo(panel)
    assert panel.store.all()[0]["dance"].startswith("The girl dances")
    assert page.see(panel.save(page.holds | {panel.name: "new"})) == "Saved as new."
    page.undo(panel)
    assert "new" not in panel.names()
    page.see(panel.delete({panel.name: "dance"}))
    assert "dance" not in panel.names()
    page.undo(panel)
    assert panel.store.all()[0]["dance"].startswith("The girl dances")


def test_names_that_cannot_be(whole: Page, compat: Path):
    panel = whole().prompts.panel
    for call, name, key in (
        (panel.delete, "なし", "preset_is_default"),
        (panel.delete, "", "preset_name_needed"),
        (panel.delete, "gone", "preset_unknown"),
    ):
        assert sentence(key) in call({panel.name: name})[panel.outcome.box]["lines"][0][1]
    page = whole()
    for name, key in (("", "preset_name_needed"), ("gone", "preset_unknown")):
        assert sentence(key) in page.see(page.prompts.panel.apply(page.holds | {page.prompts.panel.name: name}))
    for panel in (page.prompts.panel, page.favourites.panel):
        before = panel.store.all()
        for name in ("", "  ", None):
            assert sentence("preset_name_needed") in page.see(panel.save(page.holds | {panel.name: name}))
        assert panel.store.all() == before


@pytest.mark.parametrize("mode", MODES)
def test_a_page_that_is_loaded_again_offers_what_is_kept_now(whole: Page, mode: str):
    """Lists of names were those of the server's start: what was saved was missing from them after a reload, and so was what
    another page or program had put into the file meanwhile."""
    page = whole(mode)
    page.see(page.prompts.panel.save(page.holds | {page.prompts.panel.name: "mine"}))
    page.see(page.favourites.panel.save(page.holds | {page.favourites.panel.name: "whole"}))
    lora_presets(page.built.context.presets).save("set", [{"file": "ink.safetensors", "strength": 0.5}])
    calls = [call for call in page.built.blocks.fns.values() if call.fn and any(event == "load" for _, event in call.targets)]
    loaded = {component: update for call in calls for component, update in call.fn().items()}
    lists = {box.elem_id: update for box, update in loaded.items() if NAME_CLASS in (box.elem_classes or [])}
    offered = {"prompts-name": ["mine"], "favourites-name": ["whole"], "lora-preset": [("set", "set")]}
    # Without a value: what was typed meanwhile stays.
    assert lists == {name: gr.update(choices=choices) for name, choices in offered.items()}


def test_the_prompt_of_a_new_page(whole: Page, compat: Path):
    page = whole()
    page.see(page.prompts.save_startup("She waves."))
    assert starting_fields(page.built.context, page.built.form)[0] == {"prompt": "She waves."}
    page.undo(page.prompts.panel)
    assert starting_fields(page.built.context, page.built.form)[0] == {"prompt": "A man walks."}


@pytest.mark.parametrize("mode", MODES)
def test_a_favourite_is_the_whole_form(whole: Page, tower: str, mode: str, lora_folder: Path):
    """A favourite keeps every field and its pictures; only favourites of the page's mode are offered."""
    page = whole(mode)
    own = {name: value for name, value in OTHER.items() if name in page.built.form.entries}
    page.fill(image=tower, **own)
    panel = page.favourites.panel
    assert page.see(panel.save(page.holds | {panel.name: "best"})) == "Saved as best."
    other = whole(mode)
    other.see(other.favourites.panel.apply(other.holds | {other.favourites.panel.name: "best"}))
    before, after = to_json(page.request), to_json(other.request)
    assert Path(after["image"]).parent == page.built.context.uploads
    assert Path(before.pop("image")).read_bytes() == Path(after.pop("image")).read_bytes()
    assert before == after
    for different in set(MODES) - {mode}:
        assert whole(different).favourites.panel.names() == []
    other.undo(other.favourites.panel)
    assert other.request.prompt == ""


def test_a_favourite_of_another_version(whole: Page, tmp_path: Path):
    """A favourite of another version, with a field that is gone, a new one, and a value no longer possible, is applied as
    far as it fits."""
    (tmp_path / "presets").mkdir()
    entry = {"name": "old", "value": {"mode": "reverse", "prompt": "a cat", "gone": 1, "steps": 1000, "seconds": 3.0}}
    (tmp_path / "presets" / "favorites.json").write_text(json.dumps({"favorites": [entry]}))
    page = whole()
    page.fill(prompt="mine", crf=20)
    page.see(page.favourites.panel.apply(page.holds | {page.favourites.panel.name: "old"}))
    assert (page.request.prompt, page.request.seconds, page.request.steps, page.request.crf) == ("a cat", 3.0, 25, 16)


def test_a_favourite_with_a_mistake_is_refused(whole: Page, tmp_path: Path):
    page = whole()
    page.holds[page.built.form.entries["seed"].components[0]] = "many"
    assert "Seed: many" in page.see(page.favourites.panel.save(page.holds | {page.favourites.panel.name: "x"}))
    assert not (tmp_path / "presets").exists()


@pytest.mark.parametrize("mode", MODES)
def test_settings_are_what_the_next_start_begins_with(whole: Page, tower: str, mode: str, lora_folder: Path):
    """Saved settings, free of language and one set for each mode, hold how films are made but not pictures and prompts."""
    page = whole(mode, language="ja")
    own = {name: value for name, value in OTHER.items() if name in page.built.form.entries}
    page.fill(image=tower, **own)
    page.see(page.settings.save_settings(page.holds))
    new = whole(mode, language="ru")
    fields, notes = starting_fields(new.built.context, new.built.form)
    names = set(setting_names(new.built.form))
    assert fields == {name: to_json(page.request)[name] for name in names} and notes == []
    assert not names & {"image", "prompt", "seed", "section_prompts", "keyframes", "controls"} and {"steps", "size"} <= names
    for name in names:
        assert "eichi-saved" in new.built.form.entries[name].components[0].elem_classes
    page.undo(page.settings)
    assert starting_fields(new.built.context, new.built.form)[0] == {}


def test_reset_is_for_good_and_can_be_undone(whole: Page, tower: str):
    """The existing page's reset changed the boxes and not the file. What the film is made of stays."""
    page = whole()
    page.fill(image=tower, prompt="mine", seed=5, steps=9, crf=30)
    page.see(page.settings.save_settings(page.holds))
    page.see(page.settings.reset_settings(page.holds))
    assert (page.request.steps, page.request.crf, page.request.prompt, page.request.seed) == (25, 16, "mine", 5)
    assert starting_fields(page.built.context, page.built.form)[0] == {}
    page.undo(page.settings)
    assert (page.request.steps, page.request.crf) == (9, 30)
    assert starting_fields(page.built.context, page.built.form)[0]["steps"] == 9


def test_the_existing_programs_settings(whole: Page, tmp_path: Path):
    """Read as long as ours are not there; for a small model that has its own sizes and steps, those stay."""
    (tmp_path / "settings").mkdir()
    shutil.copyfile(COMPAT / "app_settings.json", tmp_path / "settings" / "app_settings.json")
    page = whole()
    saved, _ = page.settings.settings.fields("reverse")
    fields, _ = starting_fields(page.built.context, page.built.form)
    assert saved and fields == {name: value for name, value in saved.items() if name in page.built.form.entries}
    monkey = dict(page.built.form.defaults)
    page.built.form.defaults = {**monkey, "model": "miniature"}
    fields, _ = starting_fields(page.built.context, page.built.form)
    assert not {"size", "steps"} & set(fields) and fields


def test_every_start_saves_where_it_shall(whole: Page, tower: str):
    page = whole()
    page.fill(image=tower, prompt="a cat", steps=9)
    page.see(page.settings.save_on_start(page.holds | {page.settings.on_start: False}))
    assert starting_fields(page.built.context, page.built.form)[0] == {}
    page.see(page.settings.switch_on_start(True))
    assert whole().settings.on_start.value is True
    page.see(page.settings.save_on_start(page.holds | {page.settings.on_start: True}))
    assert starting_fields(page.built.context, page.built.form)[0]["steps"] == 9


def test_settings_with_a_mistake_are_refused(whole: Page, tmp_path: Path):
    page = whole()
    page.holds[page.built.form.entries["steps"].components[0]] = None
    assert "Steps" in page.see(page.settings.save_settings(page.holds))
    assert not (tmp_path / "settings" / "app_settings.json").exists()


def test_a_damaged_file_is_told_and_kept(whole: Page, tmp_path: Path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "app_settings.json").write_text('{"a": ')
    page = whole()
    (tmp_path / "settings" / "app_settings.json").write_text('{"a": ')
    fields, notes = starting_fields(page.built.context, page.built.form)
    assert fields == {} and "damaged" in page.see(page.settings.on_load(notes))
    assert len(list((tmp_path / "settings").glob("*.damaged-*"))) == 2


def test_a_page_that_was_just_loaded_keeps_what_was_quick(whole: Page, compat: Path):
    """A loaded page was filled whole once the server knew its first values, and a picture dropped before that was lost."""
    page = whole()
    updates = page.form_updates.initial(starting_fields(page.built.context, page.built.form)[0])
    assert updates[page.prompts.prompt] == "A man walks."
    assert not page.built.form.components & set(updates) - {page.prompts.prompt, *page.built.form.entries["model"].components}


def test_a_plain_page_has_none_of_this(page):
    """`--plain` shows what the original page has."""
    texts = [block.elem_id for block in page("reverse", plain=True).blocks.blocks.values()]
    assert not {"exchange", "keeping", "prompts", "metadata-offer"} & set(texts)
    assert frame.SESSIONS > 20
