"""Test whole runs that fail: the reason is named, the files that are listed exist, and the next job runs."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusers_helper.models.transformer import PackedTransformer
from eichi_utils.exchange import video
from eichi_utils.exchange.video import FilmWriter
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import (
    Finished,
    Saved,
)
from eichi_utils.jobs.queue import Jobs, Stop
from eichi_utils.models.catalogue import Models
from eichi_utils.models.hub import ModelFiles
from eichi_utils.models.pool import ModelPool
from eichi_utils.render import driver, encoding, film_files, previews, section_loop
from eichi_utils.render.engine import Engine
from tests.eichi_utils.helpers import SHORT, SHORTEST, THREE, carry_out, decoded, found, names_in, request
from tests.eichi_utils.jobs.fakes import ending

pytestmark = pytest.mark.model


@pytest.fixture
def jobs(pool: ModelPool, tmp_path: Path) -> Iterator[Jobs]:
    """Provide the real worker with the shared pool; outputs are in tmp_path / "out"."""
    engine = Engine(Models(pool.files.models), tmp_path / "out")
    engine.__dict__["pool"] = pool
    jobs = Jobs(engine)
    yield jobs
    jobs.close(30)


def failing(error: Exception, at_call: int = 1, then: Callable | None = None) -> Callable:
    """Raise at one call, and do what `then` does at every other."""
    calls = iter(range(1, 1_000_000))

    def fail(*args: Any, **settings: Any) -> Any:
        if next(calls) == at_call:
            raise error
        return then(*args, **settings)

    return fail


POINTS = [
    ("single", Outputs, "prepare"),
    ("single", driver, "fit_pictures"),
    ("single", ModelPool, "check"),
    ("single", ModelFiles, "missing"),
    ("single", encoding, "encode_prompt"),
    ("single", encoding, "encode_image"),
    ("single", encoding, "encode_picture"),
    ("single", driver, "write_png"),
    ("single", section_loop, "TeaCache"),
    ("single", PackedTransformer, "prepare_job"),
    ("single", PackedTransformer, "step"),
    ("single", section_loop, "with_previews"),
    ("single", previews, "animated_webp"),
    ("single", section_loop, "decode_frames"),
    ("reverse", FilmWriter, "add"),
    ("reverse", FilmWriter, "write"),
    ("reverse", video, "encode_h264"),
    ("reverse", video, "join_segments"),
]


@pytest.mark.parametrize(("mode", "owner", "name"), POINTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_exception_anywhere_ends_as_failed_and_the_next_job_runs(
    mode: str, owner: Any, name: str, jobs: Jobs, pictures: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, cheap_decode: None,
) -> None:  # fmt: skip
    """A failed run tells its reason and the files that exist, and leaves no work files; worker and pool go on."""
    monkeypatch.setattr(owner, name, failing(RuntimeError("as if broken"), then=getattr(owner, name)))
    first = request(mode, pictures[0], step_cache="teacache", **SHORTEST[mode])
    job, after = jobs.submit(first), jobs.submit(first)
    view = ending(jobs, job)
    assert view.state == "failed"
    assert found(view.problems) == {("", "unexpected")}
    assert view.problems[0].values == {"kind": "RuntimeError", "reason": "as if broken"}
    good = ending(jobs, after)
    assert good.state == "finished", good.problems
    assert {Path(file).name for file in (*view.files, *good.files)} == names_in(tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x_6.mp4"), "disk_full"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_card_memory"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_reasons_that_the_user_can_mend_are_named(
    error: Exception, key: str, jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    cheap_decode: None,
) -> None:  # fmt: skip
    """A full disk while writing and memory that runs out while sampling are not called "unexpected"."""
    owner, name = (video, "join_segments") if key == "disk_full" else (PackedTransformer, "step")
    monkeypatch.setattr(owner, name, failing(error, then=getattr(owner, name)))
    view = ending(jobs, jobs.submit(request("reverse", pictures[0], **SHORT)))
    assert view.state == "failed"
    assert found(view.problems) == {("", key)}
    assert {Path(file).name for file in view.files} == names_in(tmp_path / "out")


def test_a_failure_in_the_third_section_names_the_film_of_the_second(
    jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """A failure names the files that exist, the result first: the film of the second section before the picture, and no
    shorter film."""
    monkeypatch.setattr(FilmWriter, "write", failing(RuntimeError("no"), at_call=3, then=FilmWriter.write))
    job = jobs.submit(request("reverse", pictures[0], **THREE))
    view = ending(jobs, job)
    assert view.state == "failed"
    assert names_in(tmp_path / "out") == {f"{job.id}.png", f"{job.id}_10.mp4"}
    assert [Path(file).name for file in view.files] == [f"{job.id}_10.mp4", f"{job.id}.png"]


@pytest.mark.parametrize("where", ["sampling", "the film", "a frame"])
def test_a_failed_run_keeps_the_latents_that_were_asked_for(
    where: str, jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """Stopped, a film left its latents; an error in its last section lost those of all others. The first reason is told."""
    # What fails, at which call; and latents and frames that are finished by then.
    owner, name, call, latents, frames = {
        "sampling": (section_loop, "with_previews", 3, 10, 37),
        "the film": (FilmWriter, "write", 3, 16, 20),
        "a frame": (film_files.FramePngs, "_write", 3, 10, 2),
    }[where]
    monkeypatch.setattr(owner, name, failing(RuntimeError("no"), at_call=call, then=getattr(owner, name)))
    job = jobs.submit(request("reverse", pictures[0], save_latents=True, save_frames="all", **THREE))
    view = ending(jobs, job)
    assert view.state == "failed" and view.problems[0].values["reason"] == "no"
    kept = tmp_path / "out" / f"{job.id}.safetensors"
    assert str(kept) in view.files
    assert load_file(kept)["history_latents"].shape[2] == latents
    assert len(list((tmp_path / "out").glob(f"{job.id}_frames_section*/*.png"))) == frames


def test_an_error_while_keeping_is_not_the_reason(
    jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """If the card's memory runs out and then the disk is full, the first error is told as the film's end."""
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(film_files, "write_latents", failing(full))
    no_memory = torch.OutOfMemoryError("no")
    monkeypatch.setattr(section_loop, "with_previews", failing(no_memory, at_call=2, then=section_loop.with_previews))
    view = ending(jobs, jobs.submit(request("reverse", pictures[0], save_latents=True, **THREE)))
    assert found(view.problems) == {("", "out_of_card_memory")}
    assert {Path(file).name for file in view.files} == names_in(tmp_path / "out")


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_folder_that_goes_away_while_a_film_is_made(
    how: str, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """If the folder of results was deleted, the film failed at its next section, perhaps hours later. The folder is made
    again, and the film in it is whole."""
    it, out = request("reverse", pictures[0], save_frames="last", section_stills=True, **THREE), tmp_path / "out"
    whole = carry_out(it, pool, tmp_path / "other", "j")[-1]
    for event in driver.run(it, it.plan(), pool, Outputs(out, "j"), Stop()):
        if isinstance(event, Saved) and event.kind == "so_far":
            if how == "deleted":
                shutil.rmtree(out)
            else:
                out.rename(tmp_path / f"moved {event.section}")
    assert isinstance(event, Finished) and event.frames == whole.frames == 61
    assert Path(event.files[0]).read_bytes() == Path(whole.files[0]).read_bytes()
    there = {path.name for path in out.iterdir()}
    assert {Path(file).name for file in event.files} == there and "j.png" not in there


def test_a_folder_that_cannot_be_made_again(
    jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """A drive that was pulled out is told with the folder's name, not as an error of the program."""
    write = FilmWriter.write

    def pulled(self: FilmWriter, *rest: Any) -> None:
        write(self, *rest)
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").write_text("a file in its place")

    monkeypatch.setattr(FilmWriter, "write", pulled)
    view = ending(jobs, jobs.submit(request("reverse", pictures[0], save_latents=True, **THREE)))
    assert view.state == "failed" and found(view.problems) == {("out", "folder_not_writable")}
    assert view.problems[0].values["folder"] == str(tmp_path / "out")


@pytest.mark.parametrize("what", ["a segment", "the film"])
def test_a_disk_that_fills_up_in_the_middle(
    what: str, jobs: Jobs, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_decode: None
) -> None:
    """The film of the sections before stays, and it is told that the disk is full; the next job runs."""
    full = OSError(errno.ENOSPC, "No space left on device")
    owner, name, call = (FilmWriter, "add", 3) if what == "a segment" else (video, "join_segments", 3)
    monkeypatch.setattr(owner, name, failing(full, at_call=call, then=getattr(owner, name)))
    job = jobs.submit(request("reverse", pictures[0], **THREE))
    view = ending(jobs, job)
    assert view.state == "failed" and found(view.problems) == {("", "disk_full")}
    assert view.frames == len(decoded(view.files[0])) == 37
    assert {Path(file).name for file in view.files} == names_in(tmp_path / "out") == {f"{job.id}.png", f"{job.id}_10.mp4"}
    assert ending(jobs, jobs.submit(request("single", pictures[0]))).state == "finished"
