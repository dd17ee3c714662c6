"""Test pictures where they cannot be stored, many clicks at once, and large files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.files.copies import keep
from eichi_utils.files.paths import UserFolders
from eichi_utils.files.safe_reading import UnsafeError
from eichi_utils.jobs.housekeeping import DAYS, Housekeeper
from eichi_utils.problems import Problem, UserError
from eichi_utils.user_data.settings import AppSettings, JsonFile
from tests.webui.forms.test_form import page as page
from tests.webui.whole import sentence
from tests.webui.whole import whole as whole
from webui.app import UPLOADED, start_housekeeping

pytestmark = pytest.mark.slow


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["a file in the way", "a full disk"])
def trouble(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Cause one of two reasons why nothing can be kept, and return the key of its sentence."""
    if request.param == "a full disk":
        monkeypatch.setattr(shutil, "copyfileobj", full)
        return "uploads_full"
    (tmp_path / "uploads").touch()
    return "uploads_not_written"


def test_start_says_why_nothing_can_be_kept(whole, tower: str, trouble: str, tmp_path: Path):
    """The tab showed `[Errno 28] No space left on device`. The page's boundary says what is raised; the form stays as it is."""
    it = whole("reverse")
    it.fill(image=tower, prompt="a cat")
    before, start = dict(it.holds), it.built.start
    with pytest.raises(UserError) as said:
        start.submit(it.holds)
    assert [problem.key for problem in said.value.problems] == [trouble]
    assert it.built.context.jobs.all() == () and it.holds == before
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".eichi-")]


def test_a_favourite_says_why_nothing_can_be_kept(whole, tower: str, trouble: str):
    it = whole("reverse")
    it.fill(image=tower, prompt="a cat")
    panel = it.favourites.panel
    it.holds[panel.name] = "mine"
    assert sentence(trouble) in it.see(panel.save(it.holds)) and panel.names() == []


def test_a_double_click_with_a_new_picture_makes_one_film(page, tmp_path: Path):
    """Three of five failed: both clicks wrote one temporary file. Both may also find that nothing was submitted yet."""
    built = page("reverse")
    for number in range(5):
        picture = tmp_path / f"{number}.png"
        Image.effect_noise((640, 480), 100).convert("RGB").save(picture)
        values, errors = built.values(image=str(picture), prompt=f"cat {number}", seed=number), []
        together = threading.Barrier(3)

        def click(values=values, errors=errors, together=together) -> None:
            together.wait()
            try:
                built.start.submit(values)
            except OSError as error:
                errors.append(error)

        clicks = [threading.Thread(target=click) for _ in range(3)]
        for one in clicks:
            one.start()
        for one in clicks:
            one.join()
        assert errors == [] and len(built.context.jobs.all()) == number + 1
    assert len(list((tmp_path / "uploads").iterdir())) == 5


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    """A named pipe is refused: the page's thread would wait for ever for its content."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnsafeError):
        keep(tmp_path / "pipe.png", tmp_path / "uploads")


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "x", None, 10**9])
def test_for_how_long_pictures_are_kept_is_a_number(whole, value: object):
    it = whole("reverse")
    program = it.settings.program
    assert it.see(program.choose_uploads(DAYS, value)) and program.saved()[DAYS] == 30
    assert it.see(program.choose_uploads(DAYS, 7)) == "" and program.saved()[DAYS] == 7


def test_gradios_uploads_lie_in_a_folder_of_this_programs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gradio's uploads lay in the system's temporary folder, on some systems in memory, beside those of other programs, and
    for ever. In a folder that the user named nothing is deleted, because other programs use it too."""
    folders = UserFolders(**{name: tmp_path / name for name in ("outputs", "uploads", "settings", "presets", "cache", "logs")})
    monkeypatch.setattr(Housekeeper, "start", lambda self: None)
    saved = AppSettings(JsonFile(tmp_path / "app_settings.json"))
    monkeypatch.setenv(UPLOADED, "")
    monkeypatch.delenv(UPLOADED)
    keeper = start_housekeeping(folders, saved, "reverse", lambda: (), (tmp_path,))
    assert os.environ[UPLOADED] == str(tmp_path / "cache" / "uploads") == str(keeper.passing)
    assert tmp_path in keeper.results.folders and keeper.uploads == tmp_path / "uploads"
    monkeypatch.setenv(UPLOADED, str(tmp_path / "other"))
    assert start_housekeeping(folders, saved, "reverse", lambda: (), ()).passing is None


@pytest.mark.parametrize("language", ["en", "ja", "zh-tw", "ru"])
def test_a_page_says_where_things_are_kept(serve, language: str):
    """A program in a folder that cannot be written keeps them elsewhere, which users must be able to find."""
    notice = Problem("", "program_folder_read_only", {"folder": "/opt/eichi", "place": "/home/me/<eichi>"})
    with urllib.request.urlopen(f"{serve('single', language, notices=(notice,)).url}/config") as answer:
        blocks = {block["props"].get("elem_id"): block["props"] for block in json.load(answer)["components"]}
    assert "/opt/eichi" in blocks["notice"]["value"] and "/home/me/&lt;eichi&gt;" in blocks["notice"]["value"]
