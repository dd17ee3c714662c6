"""Test that crashes, other programs and newer versions lose nothing from settings files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.problems import UserError
from eichi_utils.user_data import settings
from eichi_utils.user_data.settings import AppSettings, JsonFile
from tests.diffusers_helper.inputs import GOLDEN
from tests.eichi_utils.helpers import found, names_in, say_everything

COMPAT = GOLDEN / "compat"
ROOT = Path(__file__).parents[3]
LOCK = ".a.json.lock"


@pytest.fixture
def file(tmp_path: Path) -> JsonFile:
    return JsonFile(tmp_path / "a.json")


@pytest.fixture
def app(tmp_path: Path) -> AppSettings:
    """Return the settings of a copy of the existing program's golden file."""
    shutil.copyfile(COMPAT / "app_settings.json", tmp_path / "app_settings.json")
    return AppSettings(JsonFile(tmp_path / "app_settings.json"))


def content(file: JsonFile) -> Any:
    return json.loads(file.path.read_text(encoding="utf-8"))


def refusal(call: Any) -> str:
    with pytest.raises(UserError) as error:
        call()
    ((_, key),) = found(error.value.problems)
    return key


def test_what_is_written_is_read(file: JsonFile) -> None:
    """Settings that are written, Japanese included, are read again, and reading makes no file."""
    assert file.read() == ({}, ()) and names_in(file.path.parent) == set()
    values = {"猫": "🐈\n", "deep": {"list": [1, 2.5, None, True]}}
    assert file.update(lambda document: document.update(values)) == ()
    assert file.read() == (values, ())
    assert names_in(file.path.parent) == {"a.json", LOCK}
    assert '"猫": "🐈' in file.path.read_text(encoding="utf-8")


def test_only_what_a_person_can_read_has_lines(file: JsonFile) -> None:
    """A damaged file of half a megabyte, nested 60 levels deep, took half a second to write back with its indents."""
    file.update(lambda document: document.update(short=[1]))
    assert file.path.read_text().splitlines()[1:] == ['  "short": [', "    1", "  ]", "}"]
    deep = ["x" * 1000] * 500
    for _ in range(50):
        deep = {"one": deep}
    file.update(lambda document: document.update(deep=deep))
    assert len(file.path.read_text().splitlines()) == 1
    assert file.read()[0] == {"short": [1], "deep": deep}


def test_keys_that_nobody_knows_stay(file: JsonFile) -> None:
    file.path.write_text('\ufeff{"tomorrow": [1, {"a": 2}], "old": 1}', encoding="utf-8")
    file.update(lambda document: document.update(old=2))
    assert content(file) == {"tomorrow": [1, {"a": 2}], "old": 2}


def test_nothing_is_written_for_nothing(file: JsonFile) -> None:
    """The settings file is not written if nothing changed, nor if the change was refused half way."""
    file.path.write_text('{"a":1}')

    def half(document: dict) -> None:
        document["a"] = 2
        raise UserError([])

    with pytest.raises(UserError):
        file.update(half)
    file.update(lambda document: None)
    assert file.path.read_text() == '{"a":1}'


@pytest.mark.parametrize("data", [b'{"a": 1', b"[1]", b"null", b"\xff\xfe{", b"[" * 100_000, b'{"presets": {}}', b'"text"'])
def test_a_damaged_file_is_set_aside(data: bytes, tmp_path: Path) -> None:
    """A damaged settings file is reported once and kept whole under another name, where the new file does not replace it."""
    file = JsonFile(tmp_path / "a.json", ("presets",))
    file.path.write_bytes(data)
    values, notes = file.read()
    assert values == {} and found(notes) == {("settings", "settings_damaged")}
    (kept,) = tmp_path.glob("a.json.damaged-*")
    assert kept.read_bytes() == data and kept.name == notes[0].values["kept"]
    assert file.read() == ({}, ())
    file.path.write_bytes(data + b" ")
    assert found(file.update(lambda document: document.update(new=1))) == {("settings", "settings_damaged")}
    assert content(file) == {"new": 1}
    assert sorted(path.read_bytes() for path in tmp_path.glob("a.json.damaged-*")) == sorted([data, data + b" "])


def test_an_empty_file_holds_nothing(file: JsonFile) -> None:
    """An empty file counts as empty settings, as in the existing program; there is nothing to set aside."""
    file.path.write_bytes(b" \n")
    assert file.read() == ({}, ())


def test_a_crash_while_writing_leaves_the_old_file(file: JsonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash or a full disk during writing leaves the old file: the new one takes its name only when it is whole on the
    disk."""
    file.path.write_text('{"a": 1}')

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settings.os, "fsync", full)
    assert refusal(lambda: file.update(lambda document: document.update(a=2))) == "settings_not_written"
    assert content(file) == {"a": 1}
    assert names_in(file.path.parent) == {"a.json", LOCK}


def test_a_link_stays_a_link(file: JsonFile, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "b.json").write_text('{"a": 1}')
    file.path.symlink_to(tmp_path / "real" / "b.json")
    file.update(lambda document: document.update(a=2))
    assert file.path.is_symlink() and json.loads((tmp_path / "real" / "b.json").read_text()) == {"a": 2}


def process(script: str, *words: object) -> subprocess.Popen:
    """Start another Python process with a script, without the tests' slow imports."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


HOLD = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys
from pathlib import Path
from eichi_utils.user_data.settings import JsonFile

def change(document, number):
    document[f"{sys.argv[2]}{number}"] = number
    document["sum"] = document.get("sum", 0) + 1

for number in range(40):
    JsonFile(Path(sys.argv[1])).update(lambda document: change(document, number))
    JsonFile(Path(sys.argv[1])).read()
"""


@pytest.mark.process
def test_who_waits_too_long_is_told(tmp_path: Path) -> None:
    """Waiting for the settings' lock ends with an error, so that another process that hangs does not make this one hang."""
    file = JsonFile(tmp_path / "a.json", wait=0.1)
    file.path.write_text('{"a": 1}')
    with process(HOLD, tmp_path / LOCK) as other:
        assert other.stdout.readline() == "held\n"
        assert refusal(lambda: file.update(lambda document: document.update(a=2))) == "settings_locked"
        assert refusal(file.read) == "settings_locked"
        other.communicate("go\n", timeout=60)
    file.update(lambda document: document.update(a=3))
    assert content(file) == {"a": 3}


@pytest.mark.process
def test_two_processes_lose_nothing(file: JsonFile) -> None:
    """Each reads what the other wrote a moment ago, not what was there when it began."""
    file.path.write_text('{"mine": 1}')
    others = [process(COUNT, file.path, name) for name in "ab"]
    for other in others:
        other.communicate(timeout=120)
        assert other.returncode == 0
    keys = {f"{name}{number}": number for name in "ab" for number in range(40)}
    assert content(file) == {"mine": 1, "sum": 80, **keys}


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    """A folder in the settings file's place, or a file in its folder's, is reported as a problem."""
    (tmp_path / "folder.json").mkdir()
    assert refusal(JsonFile(tmp_path / "folder.json").read) == "settings_unreadable"
    (tmp_path / "file").write_text("x")
    below = JsonFile(tmp_path / "file" / "a.json")
    assert refusal(lambda: below.update(lambda document: document.update(a=1))) == "settings_not_written"
    assert below.read() == ({}, ())


def test_a_folder_that_may_only_be_read(file: JsonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that an administrator gave are read without a lock."""
    file.path.write_text('{"a": 1}')
    monkeypatch.setattr(settings.os, "access", lambda path, wanted: wanted != os.W_OK)
    monkeypatch.setattr(settings.filelock, "FileLock", lambda *a, **k: pytest.fail("a lock was made"))
    assert file.read() == ({"a": 1}, ())


def test_the_existing_programs_settings_are_the_first_ones(app: AppSettings) -> None:
    """The existing program's settings are read in every language in which it saves them; unknown ones are named and kept."""
    before = content(app.file)
    fields, notes = app.fields("reverse")
    assert fields["size"] == 768 and fields["padding"] == 0.7 and fields["step_cache"] == "none" and notes == ()
    assert fields["save_frames"] == "all" and fields["section_stills"] is fields["save_latents"] is True
    assert app.fields("forward")[0] == {"size": 640, "influence": 101.0, "save_frames": "last"}
    fields, notes = app.fields("single")
    assert fields == {"size": 960, "context_2x": False} and found(notes) == {("unknown_future_key", "legacy_unknown")}
    program = app.program("reverse")
    assert program["output_folder"] == "outputs" and program["log_enabled"] is True and program["log_folder"] == "logs"
    choices = {name: app.choice("reverse", name) for name in settings.CHOICES}
    assert choices == {
        "save_settings_on_start": True,
        "alarm_on_completion": False,
        "log_enabled": True,
        "log_folder": "logs",
        "reserve_gb": 2,
        "uploads_days": 30.0,
        "uploads_gb": 10.0,
    }
    assert app.choice("forward", "alarm_on_completion") is True
    assert content(app.file) == before


def test_the_oldest_block(app: AppSettings) -> None:
    """Settings of the oldest version, a single block for all pages, are read."""
    app.file.update(lambda document: document.update(app_settings={"steps": 7}))
    assert app.fields("reverse")[0]["steps"] == 30
    app.file.update(lambda document: document.pop("app_settings_eichi"))
    assert app.fields("reverse")[0] == {"steps": 7} and app.fields("single")[0]["size"] == 960


def test_ours_lie_beside_the_old_ones(app: AppSettings) -> None:
    """The old program finds its own blocks as it left them; ours go before from now on, and can be taken back."""
    before = content(app.file)
    assert app.save_fields("reverse", {"steps": 12, "prompt": "猫", "padding": None}) == ()
    app.save_fields("reverse", {"steps": 13})
    app.save_program({"language": "ru", "alarm_on_completion": True})
    assert app.fields("reverse") == ({"steps": 13, "prompt": "猫", "padding": None}, ())
    assert app.fields("forward")[0] == {"size": 640, "influence": 101.0, "save_frames": "last"}
    assert app.program("single") | {"language": "ru", "alarm_on_completion": True} == app.program("single")
    assert {name: value for name, value in content(app.file).items() if name != "eichi"} == before
    app.reset_fields("reverse")
    assert app.fields("reverse") == ({}, ())


def test_the_log_is_set_in_its_place(app: AppSettings) -> None:
    """The old program writes its log where our page says, and the other way round; what it added to the block stays."""
    app.file.update(lambda document: document["log_settings"].update(tomorrow=1))
    app.save_program({"log_enabled": False, "log_folder": "diary", "alarm_on_completion": True})
    assert content(app.file)["log_settings"] == {"log_enabled": False, "log_folder": "diary", "tomorrow": 1}
    assert content(app.file)["eichi"] == {"program": {"alarm_on_completion": True}}
    app.file.update(lambda document: document["log_settings"].update(log_enabled=True))
    assert app.choice("single", "log_enabled") is True and app.choice("single", "log_folder") == "diary"


@pytest.mark.parametrize("value", [None, "yes", 1, [], float("nan"), float("inf"), -1, ""])
def test_choices_of_a_wrong_kind_are_the_usual_ones(value: Any, tmp_path: Path) -> None:
    """A file that somebody edited neither stops the program nor switches on what nobody chose."""
    app = AppSettings(JsonFile(tmp_path / "app_settings.json"))
    own = {"program": dict.fromkeys(settings.CHOICES, value)}
    document = {"eichi": own, "log_settings": {"log_enabled": value, "log_folder": value}}
    app.file.path.write_text(json.dumps(document), encoding="utf-8")
    found = {name: app.choice("reverse", name) for name in settings.CHOICES}
    numbers = {name: 1 for name in ("reserve_gb", "uploads_days", "uploads_gb")} if value == 1 else {}
    expected = {**settings.CHOICES, **numbers, **({"log_folder": "yes"} if value == "yes" else {})}
    assert found == expected


def test_saved_values_of_another_version(app: AppSettings) -> None:
    """Saved values that this version cannot use are named, kept in the file, and survive the next saving."""
    app.save_fields("forward", {"tomorrow": 1, "steps": 0, "size": 512})
    fields, notes = app.fields("forward")
    assert fields == {"size": 512}
    assert found(notes) == {("tomorrow", "key_unknown"), ("steps", "out_of_range")}
    app.save_fields("forward", {"size": 640})
    assert content(app.file)["eichi"]["forward"] == {"tomorrow": 1, "steps": 0, "size": 640}


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"reverse": 5, "program": []}])
def test_blocks_that_are_none(value: Any, tmp_path: Path) -> None:
    """Valid JSON of the wrong shape is read as empty settings."""
    app = AppSettings(JsonFile(tmp_path / "app_settings.json"))
    document = {"eichi": value, "app_settings_f1": value, "log_settings": value, "output_folder": value}
    app.file.update(lambda old: old.update(document))
    assert app.fields("forward")[0] == {}
    assert app.program("forward") == ({"output_folder": "text"} if value == "text" else {})
    app.save_fields("forward", {"steps": 3})
    assert app.fields("forward")[0] == {"steps": 3}


def test_a_damaged_settings_file_is_said(app: AppSettings) -> None:
    app.file.path.write_text("{")
    fields, notes = app.fields("reverse")
    assert fields == {} and [note.key for note in say_everything(notes)] == ["settings_damaged"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
def test_a_pipe_in_the_files_place_is_not_waited_for(tmp_path: Path) -> None:
    """Every page waited for ever for somebody to write into it."""
    os.mkfifo(tmp_path / "app_settings.json")
    assert refusal(JsonFile(tmp_path / "app_settings.json").read) == "settings_unreadable"
