"""What becomes of pictures where they cannot be kept, and of many clicks and large files at once."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.housekeeping import DAYS
from eichi_utils.kept import keep
from eichi_utils.problems import UserError
from eichi_utils.safe_reading import UnsafeError
from tests.webui.test_form import page as page
from tests.webui.whole import sentence
from tests.webui.whole import whole as whole


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["a file in the way", "a full disk"])
def trouble(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why nothing can be kept, as the key of the sentence."""
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
    """Nothing would ever come out of it, and the page's thread would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnsafeError):
        keep(tmp_path / "pipe.png", tmp_path / "uploads")


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "x", None, 10**9])
def test_for_how_long_pictures_are_kept_is_a_number(whole, value: object):
    it = whole("reverse")
    program = it.settings.program
    assert it.see(program.choose_uploads(DAYS, value)) and program.saved()[DAYS] == 30
    assert it.see(program.choose_uploads(DAYS, 7)) == "" and program.saved()[DAYS] == 7
