"""Test whole runs with the tiny real networks: files, events, reproducibility, stopping."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from diffusers_helper.vae.latents import to_uint8
from eichi_utils.exchange.metadata import read_placed_document
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import (
    STAGES,
    Event,
    Finished,
    Notice,
    Saved,
    Stage,
    Started,
    Step,
    StopLevel,
    Stopped,
)
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.view import View
from eichi_utils.models.catalogue import Models
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import driver
from eichi_utils.render.conditions import profile_problems
from eichi_utils.render.engine import Engine
from eichi_utils.requests import modes
from eichi_utils.requests.single import Control
from tests.eichi_utils.helpers import SHORT, SHORTEST, THREE, carry_out, decoded, found, names_in, notices_of, picture, request

pytestmark = pytest.mark.model

# "start" is the engine's: it comes before the networks' libraries are imported.
RUN_STAGES = [stage for stage in STAGES if stage != "start"]


@pytest.fixture(scope="module")
def runs(pool: ModelPool, pictures: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Run each mode once; return request, folder and events by mode."""
    made = {}
    for mode, fields in SHORTEST.items():
        folder = tmp_path_factory.mktemp(mode)
        it = request(mode, pictures[0], prompt="猫が走る", **fields)
        made[mode] = it, folder, carry_out(it, pool, folder, "first")
    return made


def result_of(events: list[Event]) -> numpy.ndarray:
    """Return the frames of a run's result."""
    path = events[-1].files[0]
    if path.endswith(".mp4"):
        return decoded(path)
    with Image.open(path) as picture:
        return numpy.asarray(picture)


@pytest.mark.parametrize("mode", list(SHORTEST))
def test_every_mode_makes_its_files(mode: str, runs: dict) -> None:
    """Every mode makes the result, then the fitted start picture, and nothing else, with the announced sizes and frame
    counts."""
    _made, folder, events = runs[mode]
    (started,) = [event for event in events if isinstance(event, Started)]
    end = events[-1]
    assert isinstance(end, Finished)
    expected = ["first_oneframe.png", "first_input.png"] if mode == "single" else ["first_6.mp4", "first.png"]
    assert [Path(file).name for file in end.files] == expected
    assert names_in(folder) == set(expected)
    frames = result_of(events)
    assert frames.shape[-3:] == (started.height, started.width, 3) == (112, 144, 3)
    assert end.frames == started.frames == (1 if mode == "single" else 21)
    assert mode == "single" or len(frames) == 21
    assert (started.sections, started.steps, started.seed) == (1, 2, 7)
    with Image.open(end.files[1]) as start:
        assert start.size == (started.width, started.height)
    # A picture of one colour would mean that nothing was decoded.
    assert frames.std() > 1


@pytest.mark.parametrize("mode", list(SHORTEST))
def test_the_events_of_a_run(mode: str, runs: dict) -> None:
    """A run reports its stages in order, a preview for each step and one ending, with times that never go back."""
    events = runs[mode][2]
    stages = list(dict.fromkeys(event.name for event in events if isinstance(event, Stage)))
    assert stages == RUN_STAGES
    steps = [(event.section, event.step) for event in events if isinstance(event, Step)]
    assert steps == [(0, 0), (0, 1)]
    assert all(event.preview[:4] == b"RIFF" for event in events if isinstance(event, Step))
    assert [event.kind for event in events if isinstance(event, Saved)] == ["start", "picture" if mode == "single" else "film"]
    assert [type(event) for event in events if isinstance(event, (Finished, Stopped))] == [Finished]
    times = [event.at for event in events]
    assert times == sorted(times)
    assert events[-1].took > 0


@pytest.mark.parametrize("mode", list(SHORTEST))
def test_the_same_request_makes_the_same_film(mode: str, runs: dict, pool: ModelPool, tmp_path: Path) -> None:
    """The request read back from a result, or from the start picture beside it, makes the same film to the last bit."""
    made, _, events = runs[mode]
    for number, file in enumerate(events[-1].files):
        again = modes.from_json(read_placed_document(file, [Path(made.image).parent]))
        assert again == made
        if number == 0:
            repeated = carry_out(again, pool, tmp_path)
            assert (result_of(repeated) == result_of(events)).all()
            previews = [[e.preview for e in run if isinstance(e, Step)] for run in (events, repeated)]
            assert previews[0] == previews[1]


def test_a_film_in_sections_keeps_one_file(pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None) -> None:
    """Each longer film replaces the shorter one; at every event what was announced is complete on disk."""
    sizes = []
    it = request("forward", pictures[0], seconds=1, window=4.5)
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop()):
        if isinstance(event, Saved) and event.kind != "start":
            sizes.append((event.kind, event.frames, len(decoded(event.path))))
            assert not any(name.endswith(".part.mp4") for name in names_in(tmp_path))
    assert sizes == [("so_far", 21, 21), ("film", 41, 41)]
    assert names_in(tmp_path) == {"j.png", "j_11.mp4"}


def test_compression_changes_the_file(pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None) -> None:
    """CRF reaches the encoder through the driver, and nothing else of the file depends on chance."""
    files = []
    for name, crf in (("a", 16), ("b", 16), ("c", 40)):
        it = request("reverse", pictures[0], crf=crf, **SHORT)
        files.append(Path(carry_out(it, pool, tmp_path, name)[-1].files[0]).read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_long_prompt_is_cut_with_a_notice(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The model reads 256 tokens; the user is told how many there were."""
    it = request("single", pictures[0], prompt="cat " * 400)
    (notice,) = notices_of(carry_out(it, pool, tmp_path))
    assert notice.key == "prompt_cut"
    assert notice.values["read"] == 256 < notice.values["written"]


@pytest.mark.parametrize("stage", [*RUN_STAGES, "step"])
@pytest.mark.parametrize("mode", ["single", "forward"])
def test_stop_now_at_any_moment(
    stage: str, mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """Soon after, the run ends as stopped; its files exist, and nothing else is left in the folder."""
    stop, late = Stop(), 0
    it = request(mode, pictures[0], steps=5, **SHORTEST[mode])
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop):
        late += stop.level == StopLevel.NOW
        if isinstance(event, Step if stage == "step" else Stage) and (stage == "step" or event.name == stage):
            stop.request(StopLevel.NOW)
    # What is being saved is finished: it is the whole film.
    assert isinstance(event, Finished if stage == "save" else Stopped)
    assert event.files == () or all(Path(file).is_file() for file in event.files)
    assert {Path(file).name for file in event.files} == names_in(tmp_path)
    assert stage == "check" or late <= 2
    if isinstance(event, Stopped):
        assert (event.level, event.frames) == (StopLevel.NOW, 0)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_stop_after_a_section_leaves_its_film(
    mode: str, pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """A stop after the first of two sections leaves a valid film with its frames and its request."""
    stop = Stop()
    it = request(mode, pictures[0], seconds=1, window=4.5)
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop):
        if isinstance(event, Step):
            stop.request(StopLevel.SECTION)
    assert isinstance(event, Stopped)
    assert event.level == StopLevel.SECTION
    frames = 17 if mode == "reverse" else 21
    assert event.frames == len(decoded(event.files[0])) == frames
    assert modes.from_json(read_placed_document(event.files[0], [Path(it.image).parent])) == it
    assert {Path(file).name for file in event.files} == names_in(tmp_path) == {"j.png", f"j_{5 if frames == 17 else 6}.mp4"}


def test_stop_after_the_last_section_is_a_finished_film(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """A stop after the last section ends as finished, because the film is complete."""
    for level in (StopLevel.SECTION, StopLevel.JOB):
        stop = Stop()
        stop.request(level)
        it = request("reverse", pictures[0], **SHORT)
        assert isinstance(list(driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), stop))[-1], Finished)


def test_an_abandoned_run_leaves_nothing_behind(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """A generator that is dropped in the middle leaves the film so far, and no work files."""
    it = request("reverse", pictures[0], **THREE)
    events = driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop())
    for event in events:
        if isinstance(event, Saved) and event.kind == "so_far":
            break
    events.close()
    assert names_in(tmp_path) == {"j.png", "j_5.mp4"}


def test_a_request_with_problems_never_starts(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """The driver checks for itself: nobody can bring a bad request past the pages."""
    it = request("single", str(tmp_path / "gone.png"), steps=0, prompt="")
    with pytest.raises(UserError) as error:
        carry_out(it, pool, tmp_path / "out")
    assert found(error.value.problems) == {
        ("image", "picture_missing"),
        ("steps", "out_of_range"),
        ("prompt", "prompt_empty"),
    }
    assert not (tmp_path / "out").exists()


def test_pictures_of_any_shape_are_fitted_to_the_start_picture(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """Final frame, keyframes and masks of other shapes are covered and cropped (endframe B11), with extreme ones too."""
    Image.new("RGB", (2000, 20), "red").save(tmp_path / "wide.png")
    Image.new("L", (20, 900), 200).save(tmp_path / "tall.png")
    wide, tall = str(tmp_path / "wide.png"), str(tmp_path / "tall.png")
    film_events = carry_out(
        request("reverse", pictures[0], end_image=wide, keyframes={0: tall}, **SHORT), pool, tmp_path / "out"
    )
    assert isinstance(film_events[-1], Finished)
    control = Control(tall, 10, wide)
    one = carry_out(request("single", wide, image_mask=tall, controls=(control,)), pool, tmp_path / "out")
    assert isinstance(one[-1], Finished)


def test_room_is_asked_for_by_the_size_of_the_film(
    pool: ModelPool, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too small is named before any network is loaded, with what is there and what is needed."""
    usage = type("usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError) as error:
        carry_out(request("reverse", pictures[0], **SHORT), pool, tmp_path)
    assert found(error.value.problems) == {("out", "disk_space")}
    values = error.value.problems[0].values
    assert (values["free"], values["needed"] > 16) == (5, True)
    assert names_in(tmp_path) == set()


def test_a_running_job_names_only_files_that_exist(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """A page that offers a file for download while the job runs must not offer one that was replaced."""
    it, view = request("reverse", pictures[0], **THREE), View()
    for event in driver.run(it, it.plan(), pool, Outputs(tmp_path, "j"), Stop()):
        view = view.after(event)
        gone = [file for file in view.files if not Path(file).exists()]
        assert gone == []


def test_names_of_files_that_are_not_utf_8(pool: ModelPool, pictures: list[str], tmp_path: Path) -> None:
    """Pictures from old Linux systems have such names: the run works, or it is refused before the GPU's work."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        Path(name).write_bytes(Path(pictures[0]).read_bytes())
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    it = request("single", name)
    if not it.check():
        assert isinstance(carry_out(it, pool, tmp_path / "out")[-1], Finished)


def test_the_engine_speaks_before_it_imports(pictures: list[str], tmp_path: Path) -> None:
    """The first import takes seconds: the observer hears "start" before, even where there is no model folder."""
    events = Engine(Models(tmp_path / "none"), tmp_path)(request("single", pictures[0]), "j", Stop())
    first = next(events)
    assert isinstance(first, Stage)
    assert first.name == "start" == STAGES[0]
    with pytest.raises(UserError) as error:
        next(events)
    assert found(error.value.problems) == {("models", "models_missing")}


def test_pixels_become_bytes_as_they_should() -> None:
    """-1 is 0 and 1 is 255; beyond is cut, not wrapped round."""
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 1)
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_profile_that_cannot_be_used_is_a_notice(pool: ModelPool, tmp_path: Path) -> None:
    """The film is made, with the picture's colours taken for sRGB; once, however often the picture is named."""
    path = picture(tmp_path / "a.png", icc_profile=b"no profile")
    (problem,) = profile_problems(request("reverse", path, end_image=path).plan())
    assert (problem.key, problem.values["file"]) == ("picture_profile", path)
    assert profile_problems(request("reverse", picture(tmp_path / "b.png")).plan()) == []
    assert ("picture_profile", path) in [
        (event.key, event.values.get("file"))
        for event in carry_out(request("single", path), pool, tmp_path)
        if isinstance(event, Notice)
    ]
