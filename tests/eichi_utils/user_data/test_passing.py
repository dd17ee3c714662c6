"""Test that temporary contents of a folder stay below a limit, and that some of the disk stays free."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from eichi_utils.problems import UserError
from eichi_utils.user_data.passing import BROKEN_SECONDS, LEAST_FREE, SAFE_SECONDS, need_room, purge_passing
from eichi_utils.user_data.purge import DAY_SECONDS

Usage = namedtuple("Usage", "total used free")


def aged(path: Path, seconds: float) -> Path:
    os.utime(path, (time.time() - seconds - 5,) * 2)
    return path


def named(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_gradios_own_uploads_go_after_a_day(tmp_path: Path):
    """Gradio's copies of uploads are deleted after a day; they were never deleted."""
    for name, days in (("a/old.png", 2), ("a/new.png", 0), ("b/old.png", 2), ("c", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        aged(tmp_path / name, days * DAY_SECONDS)
    (tmp_path / "fresh").mkdir()
    assert purge_passing(tmp_path) == 3
    assert named(tmp_path) == ["a", "a/new.png", "fresh"]
    assert purge_passing(tmp_path / "gone") == 0


@pytest.mark.parametrize(("most", "there"), [(10_000, "0123"), (2_500, "01"), (1_000, "01"), (900, "0"), (400, "")])
def test_what_passes_has_a_bound_within_the_day_too(most: int, there: str, tmp_path: Path):
    """Eight uploads of 100 MB lay there for a day, and so would eight thousand. The oldest go; if need be, also young ones."""
    for number in range(4):
        file = tmp_path / str(number) / "picture.png"
        file.parent.mkdir()
        file.write_bytes(bytes(1_000))
        aged(file, number * SAFE_SECONDS / 1.5)
    # Those of 0 and 400 seconds may be about to be used; there may be no more than twice as much as there shall be.
    purge_passing(tmp_path, most_bytes=most)
    assert "".join(path.name for path in sorted(tmp_path.iterdir())) == there


def test_a_broken_upload_goes_after_minutes(tmp_path: Path):
    """What gradio wrote of a broken upload stayed for a day; it goes after minutes. One under way, and a user's file of such
    a name, stay."""
    for name, seconds in (("tmpab12cd_9", BROKEN_SECONDS), ("tmpab12cd_8", 0), ("a/tmpab12cd_9", BROKEN_SECONDS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        aged(tmp_path / name, seconds)
    assert purge_passing(tmp_path) == 1
    assert named(tmp_path) == ["a", "a/tmpab12cd_9", "tmpab12cd_8"]


def test_many_small_files_are_too_many(tmp_path: Path):
    """A look at two hundred thousand of them each minute would take a processor from the film."""
    for number in range(9):
        (tmp_path / str(number)).touch()
        aged(tmp_path / str(number), SAFE_SECONDS + number)
    assert purge_passing(tmp_path, most_files=3) == 6
    assert named(tmp_path) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("free", "there"),
    [
        (LEAST_FREE, "0123"),
        (LEAST_FREE - 1, "012"),
        (LEAST_FREE - 1_500, "01"),
        (LEAST_FREE - 9_000, "01"),
        (10**9 - 9_000, ""),
    ],
)
def test_what_passes_makes_room_where_the_disk_is_full(free: int, there: str, tmp_path: Path, monkeypatch):
    """Uploads lay there for a day while films failed for want of room. The oldest go, young ones if need be."""
    for number in range(4):
        file = tmp_path / str(number) / "picture.png"
        file.parent.mkdir()
        file.write_bytes(bytes(1_000))
        aged(file, number * SAFE_SECONDS / 1.5)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
    purge_passing(tmp_path)
    assert "".join(path.name for path in sorted(tmp_path.iterdir())) == there


def test_a_disk_is_never_filled_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pages took files until nothing else could be written, films and settings neither."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, LEAST_FREE))
    need_room(tmp_path / "not there yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, LEAST_FREE - 1))
    with pytest.raises(UserError) as refused:
        need_room(tmp_path / "not there yet")
    (problem,) = refused.value.problems
    assert problem.key == "disk_low" and problem.values["folder"] == str(tmp_path)
