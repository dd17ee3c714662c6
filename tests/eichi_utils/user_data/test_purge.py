"""Test that uploads are deleted by age and total size, but never one that is still named anywhere."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from eichi_utils.exchange.metadata import png_info
from eichi_utils.exchange.video import write_png
from eichi_utils.files.copies import keep
from eichi_utils.files.paths import new_job_id
from eichi_utils.jobs import housekeeping
from eichi_utils.jobs.housekeeping import DAYS, GIGABYTES, Housekeeper
from eichi_utils.jobs.queue import Job
from eichi_utils.requests.request import to_json
from eichi_utils.requests.reverse import ReverseRequest
from eichi_utils.user_data.passing import LEAST_FREE
from eichi_utils.user_data.presets import favourites
from eichi_utils.user_data.purge import DAY_SECONDS, GB, Results, names_in, purge
from eichi_utils.user_data.settings import AppSettings, JsonFile


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Return a folder with ten kept pictures of 10 kB that were used 0, 10, 20 ... 90 days ago."""
    folder = tmp_path / "uploads"
    for number in range(10):
        (tmp_path / "a.png").write_bytes(bytes([number]) * 10_000)
        aged(keep(tmp_path / "a.png", folder, f"{number}.png"), number * 10)
    return folder


def aged(path: Path, days: float) -> Path:
    os.utime(path, (time.time() - days * DAY_SECONDS - 60,) * 2)
    return path


def left(folder: Path) -> str:
    return "".join(sorted(path.stem[-1] for path in folder.iterdir()))


def kept(folder: Path, number: int) -> Path:
    (found,) = folder.glob(f"*_{number}.png")
    return found


@pytest.mark.parametrize(
    ("days", "gigabytes", "there"),
    [
        (30, 1, "012"),
        (1000, 55_000 / GB, "01234"),
        # What was used today stays, however little room there may be.
        (1000, 0, "0"),
        (30, 25_000 / GB, "01"),
        (1000, 1, "0123456789"),
    ],
)
def test_what_is_old_goes_and_what_is_too_much(uploads: Path, days: float, gigabytes: float, there: str):
    """Pictures that came through a page were kept for ever; old ones are deleted, and those beyond the limit."""
    deleted = purge(uploads, days, gigabytes, frozenset)
    assert left(uploads) == there and deleted == 10 - len(there)


def test_what_is_named_stays_and_counts(uploads: Path):
    """Uploads that a film names, by the whole name or by the digits that it begins with, stay and count in the limit."""
    names = frozenset({kept(uploads, 9).name, kept(uploads, 8).name[:12]})
    purge(uploads, 30, 35_000 / GB, lambda: names)
    assert left(uploads) == "089"


def test_nothing_goes_while_nobody_knows(uploads: Path):
    assert purge(uploads, 30, 0, lambda: None) == 0 and len(left(uploads)) == 10


def test_nobody_is_asked_without_need(uploads: Path):
    """Films are not searched for the uploads they name without need, because that takes time."""
    purge(uploads, 1000, 1, lambda: pytest.fail("asked"))
    purge(uploads / "gone", 1, 0, lambda: pytest.fail("asked"))


def test_only_our_own_files_go(uploads: Path, tmp_path: Path):
    """Only the program's own files are deleted, because the folder is the user's too."""
    holiday = aged(Path(shutil.copy(kept(uploads, 1), uploads / "holiday 7.png")), 500)
    link = uploads / f"{'0' * 12}_link8.png"
    (tmp_path / "elsewhere8.png").touch()
    link.symlink_to(tmp_path / "elsewhere8.png")
    purge(uploads, 1, 0, frozenset)
    assert holiday.exists() and link.is_symlink() and (tmp_path / "elsewhere8.png").exists()


def test_using_a_picture_makes_it_young(uploads: Path):
    again = keep(kept(uploads, 9), uploads)
    other = Path(shutil.copy(kept(uploads, 8), uploads.parent / "new name.png"))
    assert keep(other, uploads) == kept(uploads, 8)
    purge(uploads, 30, 1, frozenset)
    assert again == kept(uploads, 9) and left(uploads) == "01289"


def test_half_a_copy_is_made_whole(uploads: Path, tmp_path: Path):
    """A power cut left half of a picture, which was found again by its name for ever."""
    whole = Path(shutil.copy(kept(uploads, 3), tmp_path / "b.png"))
    kept(uploads, 3).write_bytes(b"half")
    assert keep(whole, uploads).read_bytes() == whole.read_bytes()


def test_results_are_read_a_few_at_a_time(tmp_path: Path):
    """A folder of ten thousand films is not read in one go; until all were read, nobody knows what they name."""
    request = ReverseRequest(image="/else/where/0123456789ab_a.png", keyframes={1: r"C:\eichi\uploads\b.png"}, prompt="x")
    for number in range(5):
        write_png(tmp_path / f"{number}.png", Image.new("RGB", (16, 16)), png_info(request))
    (tmp_path / "sub_frames_section0").mkdir()
    for number in range(3):
        shutil.copy(tmp_path / "0.png", tmp_path / "sub_frames_section0" / f"frame_{number}.png")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "broken.safetensors").write_bytes(b"no latents")
    results = Results((tmp_path, tmp_path / "gone"), most=3)
    assert [results.names() for _ in range(2)] == [None, None]
    assert results.names() == {"0123456789ab_a.png", "b.png"} == results.names()
    (tmp_path / "broken.mp4").unlink()
    (tmp_path / "new.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert len(results.names()) == 2


def test_what_was_abandoned_is_found_wherever_the_program_puts_it(tmp_path: Path):
    """Trials of writing lay for ever beside `outputs`, which was not there yet, and half films deep in users' own folders."""
    webui = tmp_path / "webui"
    deep = webui / "outputs" / "2026" / "11" / "cats" / "white" / "small"
    places = (webui, tmp_path, webui / "inputs", webui / "logs", deep)
    other, name = webui / "not ours", ".eichi-00000000-1-1-0123"
    for place in (*places, other):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
        aged(place / name, 3)
    settings = AppSettings(JsonFile(webui / "settings" / "app_settings.json"))
    folders = {"uploads": webui / "inputs" / "uploads", "presets": webui / "presets", "others": (webui / "logs",)}
    keeper = Housekeeper(settings, "reverse", lambda: (), results=(webui / "outputs",), **folders)
    assert keeper.begin() == len(places)
    assert [place for place in (*places, other) if (place / name).exists()] == [other]


def test_what_anything_names_survives_a_round(uploads: Path, tmp_path: Path):
    """A job's pictures, a favourite's, those of a damaged file of favourites, and of a film in the output folder."""
    outputs, presets = tmp_path / "outputs", tmp_path / "presets"
    outputs.mkdir()
    by_job, by_favourite, by_damaged, by_film = (kept(uploads, number) for number in (9, 8, 7, 6))
    job = Job(new_job_id(), ReverseRequest(image=str(by_job), prompt="x"), ReverseRequest())
    saved = to_json(ReverseRequest(prompt="x")) | {"end_image": str(by_favourite)}
    assert favourites(presets).save("mine", {**saved, "image": str(by_favourite)}) == ()
    (presets / "favorites.json.damaged-1").write_text(json.dumps({"image": str(by_damaged)})[:-3])
    film = ReverseRequest(keyframes={3: str(by_film)}, prompt="x")
    write_png(outputs / "a.png", Image.new("RGB", (16, 16)), png_info(film))
    settings = AppSettings(JsonFile(tmp_path / "settings" / "app_settings.json"))
    folders = {"uploads": uploads, "presets": presets, "results": (outputs,)}
    keeper = Housekeeper(settings, "reverse", lambda: (job,), **folders)
    assert keeper.round() == 3 and left(uploads) == "0126789"
    settings.save_program({DAYS: 5, GIGABYTES: 1})
    assert keeper.round() == 2 and left(uploads) == "06789"
    (presets / "favorites.json").unlink()
    (presets / "favorites.json").mkdir()
    aged(kept(uploads, 0), 500)
    assert keeper.round() == 0, "what favourites name is not known"


def test_names_of_a_request():
    assert names_in({"image": "/a/b.png", "controls": [{"image": "c.png", "mask": "C:\\d.png"}], "keyframes": 7}) == {
        "b.png",
        "c.png",
        "d.png",
    }
    assert names_in([1]) == names_in(None) == frozenset()


def test_a_disk_that_becomes_full_is_tidied_up_soon(tmp_path: Path, monkeypatch):
    """A look each minute: meanwhile a fast network fills what is left of any disk, and the film that runs is lost."""
    keeper = Housekeeper(
        AppSettings(JsonFile(tmp_path / "settings.json")),
        "reverse",
        lambda: (),
        uploads=tmp_path / "uploads",
        presets=tmp_path / "presets",
        results=(),
        passing=tmp_path,
    )
    free, looks = [LEAST_FREE], threading.Event()
    monkeypatch.setattr(housekeeping, "SOON", 0.01)
    monkeypatch.setattr(housekeeping, "remove_abandoned", lambda *_: 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(Housekeeper, "look", lambda self: looks.set() or 0)
    keeper.start()
    try:
        # The first looks, of the beginning.
        assert looks.wait(5)
        keeper._thread.join(0.2)
        looks.clear()
        assert not looks.wait(0.2)
        free[0] = LEAST_FREE - 1
        assert looks.wait(5)
    finally:
        keeper.close()
        keeper._thread.join(5)
