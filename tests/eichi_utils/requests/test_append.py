"""Test a film that is joined with an earlier film's latents: checks, latents sampled in between, and no seam."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import rounded
from eichi_utils.cli.plan import plan_document, plan_lines
from eichi_utils.exchange.latent_files import interpolate, read_latents
from eichi_utils.exchange.metadata import document_of, read_placed_document
from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Event, Finished, Saved, Stage, Started, Step, StopLevel, Stopped
from eichi_utils.jobs.queue import Stop
from eichi_utils.jobs.view import View
from eichi_utils.models.disk_space import extra_bytes, extra_counts
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render import driver, encoding, section_loop
from eichi_utils.render.conditions import fit_pictures
from eichi_utils.render.section_loop import Decoded, FramesBatch, Joined, sample_film
from eichi_utils.requests import modes
from eichi_utils.requests.append import whole_frames, whole_latents, written_frames
from eichi_utils.requests.plan import film_latents
from eichi_utils.requests.request import Request, to_json
from locales import Translator
from tests.eichi_utils.helpers import SHORT, carry_out, changed, decoded, found, latent_file, names_in, request

pytestmark = pytest.mark.slow

FILMS = ("reverse", "forward")
TOO_FEW = "latents_too_few"


@pytest.fixture(scope="module")
def appended(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a file of six latents, of the size of the test pictures' films."""
    return latent_file(tmp_path_factory.mktemp("latents") / "earlier.safetensors", 6)


def joined_latents(it: Request, pool: ModelPool) -> Joined:
    """Check a request, and return its latents joined with the appended ones."""
    assert it.check() == ()
    plan = it.plan()
    *_, conditions = encoding.encode_conditions(it, plan, fit_pictures(plan, it.size), pool)
    *_, last = sample_film(it, plan, conditions, pool, Stop())
    return last


@pytest.mark.parametrize("mode", FILMS)
def test_the_film_then_the_file(mode: str, pool: ModelPool, pictures: list[str], appended: str, cheap_decode: None) -> None:
    """The film's latents come first, then those in between, then the file's, without those that the request leaves out."""
    base = request(mode, pictures[0], append_latents=appended, **SHORT)
    alone, file = joined_latents(base, pool).clip.latents[:, :, :6], read_latents(appended)[1]
    for start, end, trim, between in ((0, 0, 0, 0), (2, 1, 0, 0), (0, 0, 2, 0), (1, 0, 1, 3)):
        it = changed(base, append_trim_start=start, append_trim_end=end, film_trim_end=trim, join_latents=between)
        whole = joined_latents(it, pool).clip.latents
        kept = 6 - trim
        assert whole.shape[2] == whole_latents(it.plan()) == kept + between + 6 - start - end
        assert torch.equal(whole[:, :, :kept], alone[:, :, :kept])
        assert torch.equal(whole[:, :, kept + between :], file[:, :, start : 6 - end])


def test_what_lies_between_is_sampled_towards_what_comes(
    pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path, cheap_decode: None
) -> None:
    """The section between depends, in the standard mode, on the prompt, the film before and the file behind, and is no
    mixture of both."""
    base = request("reverse", pictures[0], append_latents=appended, join_latents=4, **SHORT)
    other = latent_file(tmp_path / "other.safetensors", 6, seed=1)

    def between(it: Request) -> torch.Tensor:
        return joined_latents(it, pool).clip.latents[:, :, 6:10]

    whole = joined_latents(base, pool).clip.latents
    line = interpolate(whole[:, :, 5:6], whole[:, :, 10:11], 4)
    assert (between(base) - line).abs().max() > 0.1
    assert torch.equal(between(base), whole[:, :, 6:10])
    for change in ({"prompt": "a dog sleeps"}, {"image": pictures[1]}, {"append_latents": other}, {"append_trim_start": 1}):
        assert (between(changed(base, **change)) - whole[:, :, 6:10]).abs().max() > 1e-5, change


def test_the_forward_mode_goes_in_a_straight_line(
    pool: ModelPool, pictures: list[str], appended: str, cheap_decode: None
) -> None:
    """Joining in the forward mode interpolates in a straight line, without sampling, because its model cannot look ahead."""
    it = request("forward", pictures[0], append_latents=appended, join_latents=3, **SHORT)
    whole = joined_latents(it, pool).clip.latents
    assert it.plan().samplings == it.plan().sections
    assert torch.equal(whole[:, :, 6:9], interpolate(whole[:, :, 5:6], whole[:, :, 9:10], 3))
    steps = (whole[:, :, 6:10] - whole[:, :, 5:9]).flatten(3).norm(dim=3)[0, 0]
    torch.testing.assert_close(steps, steps[:1].expand(4), atol=1e-4, rtol=1e-4)


def test_the_bridge_has_the_prompt_that_there_is(pictures: list[str], appended: str) -> None:
    """The joining section has the common prompt or, if all sections have their own, the prompt of the film's end."""
    fields = {"append_latents": appended, "join_latents": 9, **SHORT}
    own = request("reverse", pictures[0], section_prompts={0: "she bows"}, **fields)
    assert own.plan().append.bridge.prompt == "a cat runs"
    without = changed(own, prompt="")
    assert without.plan().append.bridge.prompt == "she bows" and without.check() == ()
    assert own.plan().prompts == ("she bows", "a cat runs")
    plan = own.plan()
    assert len(plan.append.bridge.frames) == 9 and plan.samplings == (*plan.sections, plan.append.bridge)


@pytest.mark.parametrize("mode", FILMS)
@pytest.mark.parametrize(("seconds", "window"), [(0.5, 4.5), (1, 9), (3, 9), (5, 4.5), (120, 9)])
def test_how_long_the_whole_is(mode: str, seconds: float, window: float, pictures: list[str], appended: str) -> None:
    """A joined film has 4 T - 3 frames of all its latents, and the check counts a film's latents as the plan does."""
    it = request(mode, pictures[0], seconds=seconds, window=window)
    assert film_latents(seconds, window) == it.plan().latents == whole_latents(it.plan())
    it = changed(it, append_latents=appended, join_latents=5, append_trim_end=1, film_trim_end=2)
    assert whole_latents(it.plan()) == film_latents(seconds, window) - 2 + 5 + 5
    assert whole_frames(it.plan()) == 4 * whole_latents(it.plan()) - 3 == frames_of(whole_latents(it.plan()))


@pytest.fixture(scope="module")
def run(pool: ModelPool, pictures: list[str], appended: str, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Run the standard mode with two latents in between; return request, folder and events."""
    folder = tmp_path_factory.mktemp("joined")
    fields = {"append_latents": appended, "append_trim_end": 3, "film_trim_end": 1, "join_latents": 2}
    it = request("reverse", pictures[0], crf=0, **fields, **SHORT)
    return it, folder, carry_out(it, pool, folder, "j")


def test_both_films_are_kept(run: tuple) -> None:
    """The joined film is listed first, then the new film alone, which the existing program deletes, then its start picture."""
    _it, folder, events = run
    assert [Path(file).name for file in events[-1].files] == ["j_combined.mp4", "j_6.mp4", "j.png"]
    assert names_in(folder) == {"j_combined.mp4", "j_6.mp4", "j.png"}
    whole, alone = (decoded(file) for file in events[-1].files[:2])
    assert len(whole) == events[-1].frames == 4 * (6 - 1 + 2 + 3) - 3 and len(alone) == 21
    # Up to the place of the join both show the same; the new film's last latent was left out.
    assert numpy.abs(whole[:16].astype(int) - alone[:16]).mean() < 3


def test_a_joined_film_says_what_it_was_made_of(run: tuple) -> None:
    """A joined film's request names the appended file and all that was done with it, and makes the same film again."""
    it, _, events = run
    folders = [Path(it.image).parent, Path(it.append_latents).parent]
    assert all(modes.from_json(read_placed_document(file, folders)) == it for file in events[-1].files)


def test_the_events_of_a_join(run: tuple) -> None:
    """A join counts as one more section with steps of its own; the bar never goes back and ends full."""
    _it, _, events = run
    (started,) = [event for event in events if isinstance(event, Started)]
    assert (started.sections, started.frames) == (2, events[-1].frames)
    assert [(event.section, event.step) for event in events if isinstance(event, Step)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    stages = [(event.name, event.section) for event in events if isinstance(event, Stage) and event.section is not None]
    assert stages == [(name, section) for section in (0, 1) for name in ("sample", "decode", "save")]
    assert [event.kind for event in events if isinstance(event, Saved)] == ["start", "film", "joined"]
    view, fractions = View(), []
    for event in events:
        view = view.after(event)
        fractions.append(view.fraction)
    assert fractions == sorted(fractions) and view.fraction == 1.0
    assert view.film.endswith("j_combined.mp4") and view.files == events[-1].files and view.frames == events[-1].frames


def test_no_seam_shows(pool: ModelPool, pictures: list[str], appended: str) -> None:
    """The joined film's frames are those that diffusers' own decoder makes of all its latents at once; the existing program
    decoded five latents at a time, each alone, which lost three frames of twenty and jumped."""
    it = request("reverse", pictures[0], append_latents=appended, append_trim_end=3, join_latents=1, **SHORT)
    plan = it.plan()
    *_, conditions = encoding.encode_conditions(it, plan, fit_pictures(plan, it.size), pool)
    events = list(sample_film(it, plan, conditions, pool, Stop()))
    whole = events[-1].clip.latents
    frames = torch.cat([event.final for event in events if isinstance(event, FramesBatch)], dim=2)
    with pool.vae() as vae, torch.inference_mode():
        expected = rounded(vae.decode(whole / vae.config.scaling_factor).sample)
    assert frames.shape == expected.shape and frames.shape[2] == 4 * whole.shape[2] - 3
    assert (frames.int() - expected.int()).abs().max() <= 1


def test_a_joined_film_keeps_its_latents_where_that_is_wanted(
    pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path, cheap_decode: None
) -> None:
    """A joined film saves each latent once, with its origin, if that is asked for; the existing program wrote the file's
    twice."""
    it = request(
        "forward", pictures[0], append_latents=appended, join_latents=2, append_trim_start=1, save_latents=True, **SHORT
    )
    events = carry_out(it, pool, tmp_path, "j")
    assert {"j_combined_tensors.safetensors", "j.safetensors"} <= names_in(tmp_path)
    info, latents = read_latents(tmp_path / "j_combined_tensors.safetensors")
    assert info.latents == 6 + 2 + 5 and info.frames == events[-1].frames
    assert info.request == json.loads(document_of(it))
    own, file = info.parts
    assert (own["file"], own["latents"], own["trim_end"]) == ("j.safetensors", 6, 0)
    assert (file["file"], file["latents"], file["between"]) == ("earlier.safetensors", 5, 2)
    assert torch.equal(latents[:, :, :6], read_latents(tmp_path / "j.safetensors")[1])
    assert torch.equal(latents[:, :, 8:], read_latents(appended)[1][:, :, 1:])


def stopped_at(it: Request, pool: ModelPool, folder: Path, level: StopLevel, when: Any) -> list[Event]:
    stop, events = Stop(), []
    for event in driver.run(it, it.plan(), pool, Outputs(folder, "j"), stop):
        events.append(event)
        if when(event):
            stop.request(level)
    return events


@pytest.mark.parametrize(
    "when",
    [
        lambda event: isinstance(event, Step) and event.section == 1,
        lambda event: isinstance(event, Stage) and (event.name, event.section) == ("decode", 1),
        lambda event: isinstance(event, Saved) and event.kind == "film",
    ],
    ids=("sampling", "decoding", "before"),
)
def test_stopped_while_joining_the_new_film_is_there(
    when: Any, pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path, cheap_decode: None
) -> None:
    """A stop during the join leaves the new film and nothing unfinished, and the end says that something is missing."""
    it = request("reverse", pictures[0], append_latents=appended, join_latents=2, **SHORT)
    events = stopped_at(it, pool, tmp_path, StopLevel.NOW, when)
    assert isinstance(events[-1], Stopped) and events[-1].frames == 21
    assert names_in(tmp_path) == {Path(file).name for file in events[-1].files} == {"j_6.mp4", "j.png"}


def test_stopped_after_the_section_nothing_is_appended(
    pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path, cheap_decode: None
) -> None:
    """With a stop after the section nothing is appended, unless the join itself is being sampled, which is then finished."""
    it = request("reverse", pictures[0], append_latents=appended, join_latents=2, **SHORT)
    events = stopped_at(it, pool, tmp_path / "a", StopLevel.SECTION, lambda event: isinstance(event, Step))
    assert isinstance(events[-1], Stopped) and names_in(tmp_path / "a") == {"j_6.mp4", "j.png"}
    late = stopped_at(it, pool, tmp_path / "b", StopLevel.SECTION, lambda event: isinstance(event, Step) and event.section == 1)
    assert isinstance(late[-1], Finished) and names_in(tmp_path / "b") == {"j_combined.mp4", "j_6.mp4", "j.png"}


@pytest.mark.parametrize("mode", FILMS)
def test_what_does_not_fit_is_said_before_anything_starts(
    mode: str, pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path
) -> None:
    """All that does not fit is told at once, each at its field, before the start; the existing program told it after the
    whole film."""
    wide = latent_file(tmp_path / "wide.safetensors", 6, 112, 160)
    other = latent_file(tmp_path / "other.safetensors", 6, eichi=json.dumps({"model": "miniature"}))
    base = request(mode, pictures[0], **SHORT)
    cases: list[tuple[dict[str, Any], set[tuple[str, str]]]] = [
        ({"append_latents": wide}, {("append_latents", "latents_size")}),
        ({"append_latents": other}, {("append_latents", "latents_of_other_model")}),
        ({"append_latents": appended, "append_trim_start": 6}, {("append_trim_start", TOO_FEW)}),
        ({"append_latents": appended, "append_trim_end": 6}, {("append_trim_end", TOO_FEW)}),
        (
            {"append_latents": appended, "append_trim_start": 4, "append_trim_end": 2},
            {("append_trim_start", TOO_FEW)},
        ),
        ({"append_latents": appended, "film_trim_end": 6}, {("film_trim_end", "film_too_short")}),
        ({"append_latents": appended, "join_latents": 13}, {("join_latents", "out_of_range")}),
        (
            {"append_latents": wide, "film_trim_end": 9, "append_trim_end": 7},
            {
                ("append_latents", "latents_size"),
                ("film_trim_end", "film_too_short"),
                ("append_trim_end", TOO_FEW),
            },
        ),
        ({"append_latents": wide, "seconds": 0}, {("append_latents", "latents_size"), ("seconds", "out_of_range")}),
        ({"append_latents": wide, "image": "gone.png"}, {("image", "picture_missing")}),
        ({"append_latents": str(tmp_path / "gone.safetensors")}, {("append_latents", "latents_missing")}),
    ]
    for fields, expected in cases:
        it = changed(base, **fields)
        assert found(it.check()) == expected, fields
        with pytest.raises(UserError):
            carry_out(it, pool, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fits = changed(base, append_latents=appended, append_trim_start=3, append_trim_end=2, film_trim_end=5, join_latents=12)
    assert fits.check() == () and whole_latents(fits.plan()) == 1 + 12 + 1


def test_settings_of_a_join_without_a_file_are_said_to_have_no_effect(pictures: list[str], appended: str) -> None:
    fields = {"append_trim_start": 1, "append_trim_end": 1, "film_trim_end": 1, "join_latents": 1}
    assert request("reverse", pictures[0], **SHORT, **fields).idle() == tuple(fields)
    assert request("forward", pictures[0], **SHORT, **fields, append_latents=appended).idle() == ()


def test_a_path_in_a_request_file_is_relative_to_it(pictures: list[str], appended: str, tmp_path: Path) -> None:
    """Paths of latents are relative to the request file, as those of pictures are."""
    document = to_json(request("reverse", pictures[0], append_latents="earlier.safetensors"))
    (tmp_path / "r.json").write_text(json.dumps(document))
    assert read_placed_document(tmp_path / "r.json")["append_latents"] == str(tmp_path / "earlier.safetensors")


@pytest.mark.parametrize("mode", FILMS)
def test_the_plan_prints_what_comes_after(mode: str, pictures: list[str], appended: str) -> None:
    """The plan prints the appended file, the section in between if one is sampled, and the length of both films."""
    it = request(mode, pictures[0], append_latents=appended, join_latents=3, append_trim_end=1, **SHORT)
    needs = {"memory": "1", "memory_free": "1", "card": "", "card_free": "", "disk": "1", "disk_free": "1", "precision": "int8"}
    document = plan_document(it, needs)
    assert json.loads(json.dumps(document)) == document
    assert (document["append"]["file"], document["append"]["skip_end"], document["append"]["between"]) == (appended, 1, 3)
    assert document["append"]["frames"] == 4 * (6 + 3 + 5) - 3 and document["frames"] == 21
    assert (document["append"]["bridge"] or {}).get("frames") == ([1, 2, 3] if mode == "reverse" else None)
    assert f"{4 * 14 - 3} frames" in plan_lines(it, needs, Translator("en"))[-1]
    assert plan_document(request(mode, pictures[0], **SHORT), needs)["append"] is None


def test_room_for_both_films_is_asked_for(pictures: list[str], appended: str) -> None:
    """The disk must have room for both films, and for both files of latents where they are saved."""
    alone = request("reverse", pictures[0], **SHORT)
    both = changed(alone, append_latents=appended)
    assert (written_frames(alone.plan()), written_frames(both.plan())) == (21, 21 + 45)
    sizes = [extra_bytes(changed(it, save_latents=True), it.plan(), 112, 144) for it in (alone, both)]
    assert sizes == [6 * 112 * 144, (6 + 12) * 112 * 144]
    assert extra_counts(both, both.plan()) == {"joined": 1}


def test_a_join_that_fails_leaves_the_new_film(
    pool: ModelPool, pictures: list[str], appended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a joined film is not left, whatever went wrong while it was decoded."""

    def decode_frames(vae: Any, latents: torch.Tensor, *_: Any) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 3, 4 * min(latents.shape[2], 6) - 3, 16, 16)
        if latents.shape[2] > 6:
            raise RuntimeError("as if broken")

    monkeypatch.setattr(section_loop, "decode_frames", decode_frames)
    with pytest.raises(RuntimeError, match="as if broken"):
        carry_out(request("reverse", pictures[0], append_latents=appended, **SHORT), pool, tmp_path, "j")
    assert names_in(tmp_path) == {"j_6.mp4", "j.png"}


def test_cached_decoding_goes_on_into_what_is_appended(pool: ModelPool, pictures: list[str], appended: str) -> None:
    """Cached decoding reads each latent once, from the film's beginning to the file's end: as many frames, the film's own
    unchanged."""
    it = request("forward", pictures[0], append_latents=appended, append_trim_end=4, vae_cache=True, **SHORT)
    plan = it.plan()
    *_, conditions = encoding.encode_conditions(it, plan, fit_pictures(plan, it.size), pool)
    events = list(sample_film(it, plan, conditions, pool, Stop()))
    whole = torch.cat([event.final for event in events if isinstance(event, FramesBatch)], dim=2)
    (alone,) = (event.final for event in events if isinstance(event, Decoded))
    assert whole.shape[2] == 4 * 8 - 3
    # The first five latents are a stretch in both.
    assert torch.equal(whole[:, :, :17], alone[:, :, :17])
