"""Test stored prompts, LoRA and requests; files of the existing program are read and still work there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.problems import UserError
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from eichi_utils.user_data.presets import STARTUP_NAME, PromptPreset, PromptPresets, favourites, lora_presets
from eichi_utils.user_data.settings import JsonFile
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import found
from tests.eichi_utils.requests.test_request import other_values

COMPAT = GOLDEN / "compat"
LORAS = [{"file": "a.safetensors", "strength": 0.8}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of the golden presets."""
    for name in ("prompt_presets.json", "lora_presets.json", "favorite_settings.json"):
        shutil.copyfile(COMPAT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def prompts(folder: Path) -> PromptPresets:
    return PromptPresets(JsonFile(folder / "prompt_presets.json", ("presets",)))


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def refusal(call: Any) -> str:
    with pytest.raises(UserError) as error:
        call()
    ((_, key),) = found(error.value.problems)
    return key


def test_the_existing_programs_prompts(prompts: PromptPresets) -> None:
    """The existing program's prompts are read, its own first; the start-up prompt is known by its flag, whatever its name."""
    assert prompts.read() == (
        (
            PromptPreset("なし", "", is_default=True),
            PromptPreset("起動時デフォルト", "A man walks.", is_default=True, is_startup=True),
            PromptPreset("dance", "The girl dances gracefully, with clear movements, full of charm."),
        ),
        (),
    )
    assert prompts.startup() == "A man walks."


def test_saving_a_prompt_in_its_format(prompts: PromptPresets) -> None:
    """Every key that it writes, with the hash that it names its cache by; other entries stay as they were."""
    before = content(prompts.file.path)
    long = "A character walks. A character runs. " * 300
    prompts.save(" long ", long)
    entry = content(prompts.file.path)["presets"][-1]
    assert entry.pop("timestamp")[:2] == "20" and len(entry.pop("prompt_hash")) == 32
    assert entry == {"name": "long", "prompt": long, "is_default": False}
    assert content(prompts.file.path)["presets"][:-1] == before["presets"]
    prompts.save("dance", "new")
    assert len(content(prompts.file.path)["presets"]) == 4
    assert {preset.name: preset.prompt for preset in prompts.read()[0]}["dance"] == "new"


def test_the_hash_is_the_existing_programs(prompts: PromptPresets) -> None:
    """md5 of prompt and an empty negative prompt; it finds its cached text under this name."""
    prompts.save("a", "x")
    assert content(prompts.file.path)["presets"][-1]["prompt_hash"] == "efb1b873a1353815e99ce30a66134aa9"


def test_the_prompt_of_a_new_page(prompts: PromptPresets) -> None:
    """The existing program keeps a new page's prompt in two places; both say the same, whichever way it is saved."""
    for save in (prompts.save_startup, lambda prompt: prompts.save("起動時デフォルト", prompt)):
        prompt = f"{save} A character. A character."
        save(prompt)
        document = content(prompts.file.path)
        assert prompts.startup() == document["default_startup_prompt"] == document["presets"][2]["prompt"] == prompt
        assert document["presets"][2]["is_startup_default"] is True and len(document["presets"]) == 3


def test_older_and_new_files(tmp_path: Path) -> None:
    """Files without a start-up entry or without hashes are read, and so is a missing file."""
    file = tmp_path / "prompt_presets.json"
    prompts = PromptPresets(JsonFile(file, ("presets",)))
    assert (prompts.read(), prompts.startup()) == (((), ()), "")
    prompts.save_startup("begin")
    assert prompts.read()[0] == (PromptPreset(STARTUP_NAME, "begin", is_default=True, is_startup=True),)
    file.write_text(json.dumps({"presets": [{"name": "a", "prompt": "b"}]}))
    assert (prompts.read()[0], prompts.startup()) == ((PromptPreset("a", "b"),), "")
    file.write_text(json.dumps({"presets": [{"name": "a", "prompt": "b", "is_startup_default": True}]}))
    assert prompts.startup() == "b"


def test_deleting_a_prompt(prompts: PromptPresets) -> None:
    """The existing program brings its own ones back, so they are not offered for deletion."""
    prompts.delete("dance")
    assert [preset.name for preset in prompts.read()[0]] == ["なし", "起動時デフォルト"]
    assert refusal(lambda: prompts.delete("dance")) == "preset_unknown"
    assert refusal(lambda: prompts.delete("なし")) == "preset_is_default"
    assert refusal(lambda: prompts.save("  ", "x")) == "preset_name_needed"


def test_entries_that_are_none_stay_in_the_file(prompts: PromptPresets) -> None:
    prompts.file.update(lambda document: document["presets"].extend([5, {"name": "half"}, {"name": 3, "prompt": "x"}]))
    presets, notes = prompts.read()
    assert len(presets) == 3 and len(notes) == 3 and found(notes) == {("presets", "legacy_value")}
    prompts.save("half", "whole")
    entries = content(prompts.file.path)["presets"]
    assert entries[3] == 5 and entries[4]["prompt"] == "whole" and len(entries) == 6


def test_a_damaged_file_of_prompts_is_set_aside(prompts: PromptPresets) -> None:
    """A damaged file of prompts is set aside; the existing program overwrites it with its defaults."""
    prompts.file.path.write_text('{"presets": 5}')
    assert found(prompts.save("a", "b")) == {("settings", "settings_damaged")}
    assert prompts.read() == ((PromptPreset("a", "b"),), ())
    assert len(list(prompts.file.path.parent.glob("*.damaged-*"))) == 1


def test_the_existing_programs_lora_slots(folder: Path) -> None:
    """The existing program's LoRA slots are read, with "none" in any language, and each strength belongs to its slot."""
    assert lora_presets(folder).read() == (
        {"設定1": LORAS, "Setting 2": [{"file": "b.safetensors", "strength": 0.5}]},
        (),
    )


def test_lora_presets_without_end(folder: Path) -> None:
    """Any number of LoRA presets can be saved by name; the existing program's file is left as it is."""
    before = (folder / "lora_presets.json").read_bytes()
    presets = lora_presets(folder)
    many = [{"file": f"{number}.safetensors", "strength": -0.25} for number in range(9)]
    for number in range(20):
        presets.save(f"mine {number}", many)
    presets.save("mine 3", LORAS)
    presets.save("設定1", many)
    values, notes = presets.read()
    assert notes == () and len(values) == 22
    assert values["mine 3"] == LORAS and values["設定1"] == values["mine 4"] == many
    presets.delete("設定1")
    assert presets.read()[0]["設定1"] == LORAS
    assert refusal(lambda: presets.delete("設定1")) == "preset_is_old"
    assert refusal(lambda: presets.delete("gone")) == "preset_unknown"
    assert refusal(lambda: presets.save("", many)) == "preset_name_needed"
    assert refusal(lambda: presets.save("bad", "a.safetensors")) == "wrong_type"
    assert (folder / "lora_presets.json").read_bytes() == before


def test_slots_of_one_name_and_empty_ones(folder: Path) -> None:
    slots = [
        {"name": "A", "lora1": "a.safetensors", "scales": "0.8"},
        {"name": "A", "lora2": "b.safetensors", "scales": "1,x"},
        {"name": "B", "lora1": "なし", "lora2": None, "lora3": "無", "scales": "0.8,0.8,0.8"},
        "slot",
    ]
    (folder / "lora_presets.json").write_text(json.dumps({"presets": slots}))
    values, notes = lora_presets(folder).read()
    assert values == {"A": LORAS, "A (2)": [{"file": "b.safetensors", "strength": 0.8}]}
    assert found(notes) == {("scales", "legacy_value"), ("presets", "legacy_value")}


def test_the_existing_programs_favourites(folder: Path) -> None:
    values, notes = favourites(folder).read()
    made = modes.from_json(values["costume"])
    assert made.mode == "single" and made.prompt == "wearing a red coat" and made.seed == 42
    assert made.loras[0].file == "a.safetensors"
    assert found(notes) == {("size", "not_a_choice")}


@pytest.mark.parametrize("mode", list(modes.MODES))
def test_a_favourite_is_a_whole_request(mode: str, folder: Path, pictures: list[str]) -> None:
    """A favourite keeps every field of a request of any mode."""
    kept = favourites(folder)
    made = modes.MODES[mode](**other_values(mode, pictures))
    kept.save("all", to_json(made))
    assert modes.from_json(kept.read()[0]["all"]) == made
    kept.delete("all")
    assert set(kept.read()[0]) == {"costume"}


def test_what_is_no_favourite(folder: Path) -> None:
    """What is no favourite is refused when it is saved, and named if somebody wrote it into the file."""
    kept = favourites(folder)
    assert refusal(lambda: kept.save("a", {"mode": "future"})) == "mode_unknown"
    assert refusal(lambda: kept.save("a", [1])) == "mode_unknown"
    assert refusal(lambda: kept.save("a", {"mode": "single", "steps": 0})) == "out_of_range"
    assert not (folder / "favorites.json").exists()
    entries = [{"name": "a"}, {"name": "b", "value": {"mode": "single", "steps": 0, "seed": 5}}, 7]
    (folder / "favorites.json").write_text(json.dumps({"favorites": entries}))
    values, notes = kept.read()
    assert values["b"] == {"mode": "single", "seed": 5} and "a" not in values
    assert found(notes) >= {("mode", "mode_unknown"), ("steps", "out_of_range"), ("presets", "legacy_value")}
    kept.save("a", {"mode": "single"})
    assert content(folder / "favorites.json")["favorites"][2] == 7
