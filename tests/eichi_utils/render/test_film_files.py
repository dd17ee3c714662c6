"""Test the files that a run leaves: section videos, stills, frames, latents; nothing else is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eichi_utils.exchange.foreign_texts import parse_parameters
from eichi_utils.exchange.metadata import read_placed_document
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Event, Step, StopLevel
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.view import View
from eichi_utils.models.disk_space import extra_bytes, extra_counts
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import driver, section_loop
from eichi_utils.requests import modes
from tests.eichi_utils.helpers import SHORT, THREE, carry_out, changed, decoded, names_in, request

pytestmark = pytest.mark.model

# Lossless, so that frames of the film and frames as PNGs can be compared.
EVERYTHING = {
    "keep_section_videos": True, "section_stills": True, "save_frames": "all", "save_latents": True, "crf": 0,
}  # fmt: skip
# The three sections' frames in the whole film.
OWN = {"reverse": (range(44, 61), range(24, 44), range(0, 24)), "forward": (range(21), range(21, 41), range(41, 61))}
LATENTS = {"reverse": (5, 10, 16), "forward": (6, 11, 16)}


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace decoding by grey frames, each of another grey, so that every frame can be recognised."""
    calls = iter(range(100))

    def decode_frames(vae, latents, kept, room, side):
        count = 4 * latents.shape[2] - 3
        level = -0.9 + 0.02 * torch.arange(count) + 0.3 * next(calls)
        yield level.view(1, 1, -1, 1, 1).expand(1, 3, count, 16, 16)

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)


def pngs(folder: Path, job: str = "j") -> dict[int, numpy.ndarray]:
    """Return the saved frames of all sections' folders by number; no number may occur twice."""
    files = sorted(folder.glob(f"{job}_frames_section*/frame_*.png"))
    found = {int(file.stem.removeprefix("frame_")): numpy.asarray(Image.open(file)) for file in files}
    assert len(found) == len(files)
    assert all(len(file.stem) == len("frame_00000") for file in files)
    return found


def alike(one: numpy.ndarray, other: numpy.ndarray) -> bool:
    """Return whether two pictures are equal up to the rounding of the film's colours."""
    return numpy.abs(one.astype(int) - other.astype(int)).max() <= 4


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_everything_that_can_be_kept(mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None) -> None:
    """Frames are the film's, each once and in its section's folder; stills are sections' last frames (they used to be those of
    the section before, and frames were written again for every section); every film so far stays."""
    it = request(mode, pictures[0], **THREE, **EVERYTHING)
    events = carry_out(it, pool, tmp_path, "j")
    plan, whole = it.plan(), decoded(tmp_path / f"j_{LATENTS[mode][-1]}.mp4")
    assert tuple(plan.section_frames(number) for number in range(3)) == OWN[mode]
    frames = pngs(tmp_path)
    assert set(frames) == set(range(plan.frames)) and len(whole) == plan.frames
    assert all(alike(frames[number], whole[number]) for number in frames)
    for number, own in enumerate(OWN[mode]):
        folder = tmp_path / f"j_frames_section{number}"
        assert {file.name for file in folder.iterdir()} == {f"frame_{frame:05d}.png" for frame in own}
        still = "j_0_end.png" if mode == "reverse" and number == 0 else f"j_{number}.png"
        assert (numpy.asarray(Image.open(tmp_path / still)) == frames[own[-1]]).all()
        with Image.open(tmp_path / still) as picture:
            text = picture.info["parameters"]
        assert f"Section Number: {number}" in text and f"Frame Number: {own[-1]}" in text
        assert parse_parameters(text)["seed"] == 7 and parse_parameters(text)["prompt"] == "a cat runs"
        assert modes.from_json(read_placed_document(tmp_path / still, [Path(it.image).parent])) == it
    assert [len(decoded(tmp_path / f"j_{count}.mp4")) for count in LATENTS[mode]] == [4 * count - 3 for count in LATENTS[mode]]
    latents = load_file(tmp_path / "j.safetensors")["history_latents"]
    assert latents.shape[:3] == (1, 16, LATENTS[mode][-1]) and latents.dtype == torch.float32
    # The result first, the start picture last, and all there is.
    named = [Path(file).name for file in events[-1].files]
    assert named[0] == f"j_{LATENTS[mode][-1]}.mp4" and named[-1] == "j.png"
    assert set(named) == {name for name in names_in(tmp_path) if "/" not in name}
    view = View()
    for event in events[:-1]:
        view = view.after(event)
    assert set(view.files) == set(events[-1].files) and view.files[0] == events[-1].files[0]


def test_a_still_of_a_film_with_a_final_frame(pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None) -> None:
    """The still of a film with a final frame is not called its end, because the film's end is another picture."""
    carry_out(request("reverse", pictures[0], end_image=pictures[1], section_stills=True, **SHORT), pool, tmp_path, "j")
    assert names_in(tmp_path) == {"j.png", "j_0.png", "j_6.mp4"}


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_frames_of_the_last_section_only(mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None) -> None:
    """Only frames of the section made last are saved, which is the film's beginning in the standard mode."""
    carry_out(request(mode, pictures[0], save_frames="last", **THREE), pool, tmp_path, "j")
    assert set(pngs(tmp_path)) == set(OWN[mode][2])
    assert not (tmp_path / "j_frames_section0").exists()


def test_nothing_is_kept_unasked(pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None) -> None:
    """Only the whole film stays, and only files that the job wrote are deleted: the existing program deletes every film
    whose name begins with the job's id."""
    others = {"j_5.mp4.bak", "j_copy.mp4", "j_original.mp4", "k_5.mp4"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    carry_out(request("reverse", pictures[0], **THREE), pool, tmp_path, "j")
    assert names_in(tmp_path) == others | {"j.png", "j_16.mp4"}
    assert {(tmp_path / name).read_bytes() for name in others} == {b"mine"}


def until(events: Iterator[Event], stop: Stop, level: StopLevel, section: int) -> None:
    for event in events:
        if isinstance(event, Step) and event.section == section:
            stop.request(level)


@pytest.mark.parametrize("level", [StopLevel.SECTION, StopLevel.NOW])
def test_a_stopped_film_has_all_its_files(
    level: StopLevel, pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None
) -> None:
    """A stopped film has frames and latents of what is in the film so far, and no others."""
    stop = Stop()
    it = request("reverse", pictures[0], **THREE, **EVERYTHING)
    until(driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop), stop, level, 1)
    done = 2 if level == StopLevel.SECTION else 1
    assert set(pngs(tmp_path)) == {frame for own in OWN["reverse"][:done] for frame in own}
    film_frames = decoded(tmp_path / f"j_{5 * done}.mp4")
    assert all(alike(frame, film_frames[number - (61 - len(film_frames))]) for number, frame in pngs(tmp_path).items())
    assert load_file(tmp_path / "j.safetensors")["history_latents"].shape[2] == 5 * done


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_saved_latents_are_what_is_decoded(
    mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved latents are the whole film's in the order of playing, to the last bit; those of one section are decoded all at
    once."""
    seen = []

    def decode_frames(vae, latents, kept, room, side):
        seen.append(latents)
        yield torch.zeros(1, 3, 4 * latents.shape[2] - 3, 16, 16)

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)
    carry_out(request(mode, pictures[0], save_latents=True, **SHORT), pool, tmp_path, "j")
    assert torch.equal(load_file(tmp_path / "j.safetensors")["history_latents"], seen[0])


def test_a_smaller_tile_is_another_picture(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """18 x 14 cells do not fit into tiles of 16; the same latents come out slightly different."""
    made = {}
    for tile in (None, 128, 256):
        path = carry_out(request("single", pictures[0], vae_tile=tile), pool, tmp_path, f"{tile}")[-1].files[0]
        with Image.open(path) as picture:
            made[tile] = numpy.asarray(picture)
    assert (made[None] == made[256]).all()
    assert made[None].shape == made[128].shape and (made[None] != made[128]).any()


@pytest.mark.parametrize(("vae_cache", "name"), [(False, "decode_frames"), (True, "decode_after")])
def test_films_are_decoded_in_tiles_too(
    vae_cache: bool, name: str, pool: ModelPool, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of decoding are given the tile's side in latent cells (its effect:
    tests/diffusers_helper/vae/test_latents.py)."""
    sides = []

    def noted(vae, latents, known, room, side):
        sides.append(side)
        yield torch.zeros(1, 3, 4 * latents.shape[2] - 3, 16, 16)

    monkeypatch.setattr(section_loop, name, noted)
    for tile in (None, 135):
        carry_out(request("forward", pictures[0], vae_tile=tile, vae_cache=vae_cache, **SHORT), pool, tmp_path, f"{tile}")
    assert sides == [None, 16]


def test_files_are_announced_before_the_start(pictures: list[str]) -> None:
    """The number of files is announced before the start, and their room on the disk is checked."""
    it = request("reverse", pictures[0], **THREE, **EVERYTHING)
    assert extra_counts(it, it.plan()) == {"section_videos": 2, "section_stills": 3, "frames": 61, "latents": 1}
    assert extra_counts(changed(it, save_frames="last"), it.plan())["frames"] == 24
    plain = request("reverse", pictures[0], **THREE)
    assert extra_counts(plain, plain.plan()) == {} and extra_bytes(plain, plain.plan(), 640, 640) == 0
    assert extra_bytes(it, it.plan(), 640, 640) > 60 * 640 * 640 * 3
    single = request("single", pictures[0])
    assert extra_counts(single, single.plan()) == {}


def test_every_announced_file_is_whole(pool: ModelPool, pictures: list[str], tmp_path: Path, flat: None) -> None:
    """At every event the announced files are whole, and no deleted file is still named."""
    it, view = request("reverse", pictures[0], **THREE, section_stills=True, save_frames="all", save_latents=True), View()
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop()):
        view = view.after(event)
        assert [file for file in view.files if not Path(file).exists()] == []
        assert not [name for name in names_in(tmp_path) if ".part" in name and not name.startswith(".eichi")]
