"""Test damaged files of settings, presets and times: whole parts are used, the rest is set aside and reported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.jobs.timings import RunTimes, Timings, kind_of
from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.presets import PromptPresets, favourites, lora_presets
from eichi_utils.user_data.settings import CHOICES, AppSettings, JsonFile
from tests.eichi_utils.helpers import names_in, request, say_everything

NUMBER = "7" * 400


def as_text(whole: str, entry: str, value: str) -> bytes:
    """Return a good JSON text with one more entry, whose value is no JSON."""
    return whole.replace("{", f'{{"{entry}": {value},', 1).encode()


def wrong_types(value: Any) -> Any:
    """Change every value of a document to another type."""
    if isinstance(value, dict):
        return {name: wrong_types(part) for name, part in value.items()}
    if isinstance(value, list):
        return [wrong_types(part) for part in value]
    return [value] if isinstance(value, str) else "text"


# Ways to damage a good JSON file.
DAMAGES: dict[str, Callable[[Path, str], Any]] = {
    "number of 400 digits": lambda path, good: path.write_bytes(as_text(good, "x", NUMBER)),
    "NaN": lambda path, good: path.write_bytes(as_text(good, "x", "[1, NaN]")),
    "1e999": lambda path, good: path.write_bytes(as_text(good, "x", "1e999")),
    "half a surrogate pair": lambda path, good: path.write_bytes(as_text(good, "x", '"\\ud800"')),
    "half a surrogate pair in a name": lambda path, good: path.write_bytes(as_text(good, "\\udfff", "1")),
    "nested deeply": lambda path, good: path.write_bytes(as_text(good, "x", "[" * 500 + "]" * 500)),
    "nested without end": lambda path, good: path.write_bytes(b"[" * 200_000),
    "cut off": lambda path, good: path.write_bytes(good.encode()[:-3]),
    "a list": lambda path, good: path.write_bytes(b"[1, 2]"),
    "nothing": lambda path, good: path.write_bytes(b""),
    "bytes": lambda path, good: path.write_bytes(bytes(range(256))),
    "wrong types": lambda path, good: path.write_text(json.dumps(wrong_types(json.loads(good)))),
    "all of one type": lambda path, good: path.write_text(json.dumps(dict.fromkeys(json.loads(good), NUMBER))),
    "UTF-16": lambda path, good: path.write_bytes(good.encode("utf-16")),
    "a mark": lambda path, good: path.write_bytes(good.encode("utf-8-sig")),
    "a folder": lambda path, good: path.mkdir(),
    "a pipe": lambda path, good: os.mkfifo(path),
    "too large": lambda path, good: path.write_bytes(b" " * (17 * 2**20)),
}
# Kinds of damage that leave the other values readable.
STILL_GOOD = {name for name in DAMAGES if name.startswith(("number", "NaN", "1e999", "half", "nested deeply", "UTF", "a mark"))}
# Kinds of damage that only the user can set aside.
IN_THE_WAY = ("a folder", "a pipe", "too large")

FILES = ("app_settings.json", "prompt_presets.json", "loras.json", "favorites.json", "timings.json")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a folder with a good file of each kind."""
    folder = tmp_path / "good"
    app = AppSettings(JsonFile(folder / "app_settings.json"))
    app.save_fields("reverse", {"steps": 12})
    app.save_program({"alarm_on_completion": False, "log_folder": "diary"})
    PromptPresets(JsonFile(folder / "prompt_presets.json", ("presets",))).save("猫", "猫が走る")
    lora_presets(folder).save("ink", [{"file": "ink.safetensors", "strength": 0.5}])
    favourites(folder).save("mine", {"mode": "reverse", "prompt": "a cat"})
    Timings(JsonFile(folder / "timings.json")).keep(RunTimes("kind", 1.0, 2.0, 0.5, 3.0))
    return folder


def read_all(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Read each store: its values, or None where it refuses; and all problems."""
    app = AppSettings(JsonFile(folder / "app_settings.json"))
    stores: dict[str, Callable[[], Any]] = {
        "app_settings.json": lambda: app.fields("reverse"),
        "prompt_presets.json": PromptPresets(JsonFile(folder / "prompt_presets.json", ("presets",))).read,
        "loras.json": lora_presets(folder).read,
        "favorites.json": favourites(folder).read,
        "timings.json": JsonFile(folder / "timings.json").read,
    }
    values, said = {}, []
    for name, read in stores.items():
        try:
            values[name], notes = read()
            said += notes
        except UserError as error:
            values[name] = None
            said += error.problems
    return values, said


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_told_and_lose_nothing_else(damage: str, good: Path, tmp_path: Path) -> None:
    """A number of 400 digits in the settings kept the server from starting; one preset named "\\ud800" made every page answer
    500 until somebody found and edited the file."""
    whole, _ = read_all(good)
    place = tmp_path / "bad"
    place.mkdir()
    for name in FILES:
        DAMAGES[damage](place / name, (good / name).read_text(encoding="utf-8"))
    values, said = read_all(place)
    say_everything(said)
    if damage in STILL_GOOD:
        for name in FILES:
            part = dict(values[name]) if isinstance(values[name], dict) else values[name]
            if isinstance(part, dict):
                part.pop("x", None)
            assert part == whole[name], name
    silent = damage in ("nothing", "UTF-16", "a mark")
    assert bool(said) != silent
    if damage not in IN_THE_WAY:
        kept = {path.name.split(".damaged")[0] for path in place.glob("*.damaged-*")}
        if damage.startswith(("number", "NaN", "1e999", "half", "nested", "cut", "a list", "bytes")):
            assert kept == set(FILES)
        # What was said once is not said at every reading, and saving works again.
        again = {problem.key for problem in read_all(place)[1]}
        assert not again & {"settings_damaged", "settings_partly_damaged"}
        AppSettings(JsonFile(place / "app_settings.json")).save_fields("reverse", {"steps": 13})
        assert AppSettings(JsonFile(place / "app_settings.json")).fields("reverse")[0]["steps"] == 13


@pytest.mark.parametrize("damage", DAMAGES)
def test_choices_and_estimates_go_on(damage: str, good: Path) -> None:
    """Damaged settings and timings end neither the choices that the server needs at its start nor the estimates of a page."""
    for name in ("app_settings.json", "timings.json"):
        text = (good / name).read_text(encoding="utf-8")
        (good / name).unlink()
        DAMAGES[damage](good / name, text)
    app, timings = AppSettings(JsonFile(good / "app_settings.json")), Timings(JsonFile(good / "timings.json"))
    for choice, usual in CHOICES.items():
        try:
            found = app.choice("reverse", choice)
            assert type(found) is type(usual) or isinstance(found, (int, float))
        except UserError as error:
            say_everything(error.problems)
            assert damage in IN_THE_WAY
    assert timings.seconds(request("reverse", ""), 128, 128) is None
    say_everything(timings.keep(RunTimes("kind", 1.0, 2.0, 0.5, 3.0)))


@pytest.mark.parametrize("number", ["1e300", "-1", '"1"', "null", "[]", "99999999999999999999"])
def test_times_that_nothing_took(number: str, tmp_path: Path) -> None:
    """Impossible times in the file, such as 1e300 seconds, give no estimate."""
    asked = request("reverse", "")
    entry = {"start": 1.0, "step": 1.0, "share": 1.0, "section": 1.0}
    text = json.dumps({kind_of(asked, 128, 128): entry})
    (tmp_path / "timings.json").write_text(text)
    timings = Timings(JsonFile(tmp_path / "timings.json"))
    assert timings.seconds(asked, 128, 128) is not None
    (tmp_path / "timings.json").write_text(text.replace('"step": 1.0', f'"step": {number}'))
    assert timings.seconds(asked, 128, 128) is None


def test_what_is_damaged_in_a_folder_that_may_only_be_read(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file in a read-only folder cannot be set aside, and the program goes on all the same."""
    file = JsonFile(good / "app_settings.json")
    file.path.write_bytes(as_text(file.path.read_text(), "x", NUMBER))

    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    document, notes = file.read()
    assert document["eichi"]["reverse"] == {"steps": 12} and {note.key for note in notes} == {"settings_unreadable"}


UNSTORABLE = {
    "half": "\ud800",
    "control": "a\x1b[2Jb",
    "line": "a\nb",
    "paragraph": "a\u2029b",
    "nul": "a\0b",
    "long": "n" * 5000,
    "empty": " ",
    "list": ["a"],
    "number": 10**400,
}


@pytest.mark.parametrize("name", UNSTORABLE.values(), ids=UNSTORABLE)
def test_names_that_cannot_be_kept(name: Any, good: Path) -> None:
    """Through the API of a page a preset could get any name; with half a surrogate pair no page was shown any more."""
    before = {path: path.read_bytes() for path in good.iterdir()}
    prompts = PromptPresets(JsonFile(good / "prompt_presets.json", ("presets",)))
    calls = [
        lambda: prompts.save(name, "a cat"),
        lambda: lora_presets(good).save(name, [{"file": "ink.safetensors"}]),
        lambda: favourites(good).save(name, {"mode": "reverse", "prompt": "a cat"}),
        lambda: prompts.delete(name),
        lambda: lora_presets(good).delete(name),
        lambda: favourites(good).delete(name),
    ]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        say_everything(error.value.problems)
    assert {path: path.read_bytes() for path in good.iterdir()} == before


DEEP: Any = None
for _ in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf"), 10**400, DEEP, {"\ud800": 1}, [1], None], ids=ascii)
def test_values_that_cannot_be_kept(value: Any, good: Path) -> None:
    """Each value that cannot be kept is refused with a sentence, and the values kept before stay."""
    before = {path: path.read_bytes() for path in good.iterdir()}
    calls: list[Callable[[], Any]] = [
        lambda: PromptPresets(JsonFile(good / "prompt_presets.json", ("presets",))).save("a", value),
        lambda: PromptPresets(JsonFile(good / "prompt_presets.json", ("presets",))).save_startup(value),
        lambda: lora_presets(good).save("a", [{"file": value}]),
        lambda: lora_presets(good).save("a", [{"file": "ink.safetensors", "strength": value}]),
        lambda: lora_presets(good).save("a", value),
        lambda: favourites(good).save("a", {"mode": "reverse", "prompt": value}),
        lambda: favourites(good).save("a", {"mode": "reverse", "seed": value}),
        lambda: favourites(good).save("a", {"mode": "single", "controls": [{"image": value}]}),
        lambda: favourites(good).save("a", {"mode": value}),
        lambda: favourites(good).save("a", value),
    ]
    if value not in ([1], None) and value is not DEEP:
        app = AppSettings(JsonFile(good / "app_settings.json"))
        calls += [lambda: app.save_program({"log_folder": value}), lambda: app.save_fields("reverse", {"steps": value})]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        say_everything(error.value.problems)
    assert {path: path.read_bytes() for path in good.iterdir()} == before


def test_more_than_can_be_read_again_is_not_written(tmp_path: Path) -> None:
    file = JsonFile(tmp_path / "a.json")
    with pytest.raises(UserError) as error:
        file.update(lambda document: document.update(a="x" * (5 * 2**20)))
    say_everything(error.value.problems)
    assert names_in(tmp_path) == {".a.json.lock"}


def test_the_copy_of_good_files_is_good(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "copy")
    values, said = read_all(tmp_path / "copy")
    assert said == [] and all(values.values())
