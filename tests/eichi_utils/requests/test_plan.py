"""Test the plans of the three modes against the numbers of the specification."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from diffusers_helper.vae.frames import frames_of
from eichi_utils.requests.plan import Plan, Ref, Section, latents_per_section, lay, section_count
from eichi_utils.requests.reverse import anchor, paddings
from eichi_utils.requests.single import Control
from tests.eichi_utils.helpers import changed, request

# Length in seconds, sections with 1 s and with 0.5 s.
SECTIONS = [
    (1, 1, 2), (2, 2, 3), (3, 2, 5), (4, 3, 7), (6, 5, 10), (8, 7, 13), (10, 8, 17), (12, 10, 20), (16, 13, 27),
    (20, 17, 33), (30, 25, 50), (40, 33, 67), (60, 50, 100), (120, 100, 200),
]  # fmt: skip


def film(mode: str, **fields: Any) -> Plan:
    return request(mode, "start.png", **fields).plan()


def blanks(plan: Plan) -> list[int]:
    """Return for each section how many positions lie between the anchor and the sampled latents."""
    return [section.frames.start - 1 for section in plan.sections]


@pytest.mark.parametrize(("seconds", "long", "short"), SECTIONS)
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_sections_and_frames_of_every_usual_length(mode: str, seconds: int, long: int, short: int) -> None:
    """Both film modes make the same number of sections for a length, and 36 n + 1 or 20 n + 1 frames."""
    for window, count, frames in ((9.0, long, 36 * long + 1), (4.5, short, 20 * short + 1)):
        plan = film(mode, seconds=seconds, window=window)
        assert section_count(seconds, window) == len(plan.sections) == count
        assert plan.frames == frames == frames_of(plan.latents)
        assert plan.latents_after(count) == plan.latents


def test_latents_so_far_name_the_files() -> None:
    """`J_9.mp4`, `J_18.mp4`, ..., `J_28.mp4`; forward counts its start picture from the beginning."""
    reverse, forward = film("reverse", seconds=4), film("forward", seconds=4)
    assert [reverse.latents_after(n) for n in (0, 1, 2, 3)] == [0, 9, 18, 28]
    assert [forward.latents_after(n) for n in (0, 1, 2, 3)] == [1, 10, 19, 28]
    assert [frames_of(n) for n in (0, 1, 5, 9, 10, 28)] == [0, 1, 17, 33, 37, 109]
    assert (latents_per_section(9.0), latents_per_section(4.5)) == (9, 5)
    half = film("reverse", seconds=1, window=4.5)
    assert [half.latents_after(n) for n in (1, 2)] == [5, 11]


@pytest.mark.parametrize(
    ("sections", "ladder"),
    [
        (1, [0]), (2, [1, 0]), (3, [2, 1, 0]), (4, [3, 2, 1, 0]), (5, [3, 2, 2, 1, 0]),
        (6, [3, 2, 2, 2, 1, 0]), (8, [3, 2, 2, 2, 2, 2, 1, 0]),
    ],
)  # fmt: skip
def test_the_padding_ladder(sections: int, ladder: list[int]) -> None:
    """The paddings of the sections are the distances that the model was trained to bridge."""
    assert paddings(sections) == ladder


def test_blank_positions_of_the_ladder() -> None:
    """W = 9: 27, 18, 9, 0; W = 4.5: 13, 9, 4, 0."""
    assert blanks(film("reverse", seconds=8)) == [27, 18, 18, 18, 18, 9, 0]
    assert blanks(film("reverse", seconds=2, window=4.5)) == [9, 4, 0]
    assert blanks(film("reverse", seconds=3, window=4.5)) == [13, 9, 9, 4, 0]


@pytest.mark.parametrize(
    ("padding", "long", "short"),
    [(0.0, 0, 0), (0.2, 1, 0), (0.5, 4, 2), (1.0, 9, 4), (1.5, 13, 6), (2.0, 18, 9), (3.0, 27, 13), (0.96, 9, 4)],
)
def test_one_padding_for_all_sections_but_the_last(padding: float, long: int, short: int) -> None:
    """A fixed padding, rounded to a tenth, is used for all sections but the last, which always touches the start picture."""
    assert blanks(film("reverse", seconds=8, padding=padding)) == [long] * 6 + [0]
    assert blanks(film("reverse", seconds=3, window=4.5, padding=padding)) == [short] * 4 + [0]
    assert blanks(film("reverse", seconds=1, padding=padding)) == [0]


@pytest.mark.parametrize(
    ("section", "window", "frames", "after", "two", "four"),
    [
        (0, 9.0, range(28, 37), 37, range(38, 40), range(40, 56)),
        (2, 9.0, range(10, 19), 19, range(20, 22), range(22, 38)),
        (3, 9.0, range(1, 10), 10, range(11, 13), range(13, 29)),
        (0, 4.5, range(14, 19), 19, range(20, 22), range(22, 38)),
        (2, 4.5, range(5, 10), 10, range(11, 13), range(13, 29)),
        (3, 4.5, range(1, 6), 6, range(7, 9), range(9, 25)),
    ],
)
def test_time_positions_of_reverse_sections(section: int, window: float, frames, after: int, two, four) -> None:
    """[start 1 | blank | noisy | post 1 | 2x 2 | 4x 16] in literal numbers, padding 3 to 0."""
    plan = film("reverse", seconds=5 if window == 9.0 else 2.4, window=window)
    assert len(plan.sections) == 4
    it = plan.sections[section]
    assert it.frames == frames
    assert it.clean == (Ref("start", range(1)), Ref("history", range(after, after + 1)))
    assert it.clean_2x == Ref("history", two, skip=1)
    assert it.clean_4x == Ref("history", four, skip=3)
    assert (it.strength, plan.grows, plan.checkpoint, plan.output) == (1.0, "front", "framepack", "film")


def test_the_film_of_reverse_ends_with_its_start() -> None:
    """The start picture's own latent closes the film; without a final frame the history opens empty."""
    plan = film("reverse", seconds=2)
    assert plan.closing == Ref("start", range(1))
    assert plan.opening is None
    assert plan.pictures == {"start": "start.png"}
    assert plan.masks == {}


def test_the_final_frame_opens_the_history_scaled() -> None:
    """The final frame opens the history, multiplied by its strength, and does not become part of the film."""
    plan = film("reverse", seconds=2, end_image="end.png", end_strength=0.4)
    assert plan.opening == Ref("end", range(1), scale=0.4)
    assert not plan.opening_shown
    assert plan.frames == film("reverse", seconds=2).frames
    assert plan.pictures == {"start": "start.png", "end": "end.png"}


def test_a_section_is_tied_to_the_next_keyframe_at_or_beyond_it() -> None:
    """A section is tied to the smallest keyframe not below its number, or else to the start picture."""
    keys = {1: "one.png", 4: "four.png"}
    assert [anchor(i, keys) for i in range(6)] == [
        "section/1", "section/1", "section/4", "section/4", "section/4", "start",
    ]  # fmt: skip
    plan = film("reverse", seconds=7, keyframes=keys)
    assert [section.clean[0].source for section in plan.sections] == [
        "section/1", "section/1", "section/4", "section/4", "section/4", "start",
    ]  # fmt: skip
    assert plan.pictures == {"start": "start.png", "section/1": "one.png", "section/4": "four.png"}
    # The film's first latent stays the start picture even when the last section is tied to a keyframe.
    last = film("reverse", seconds=1, keyframes={0: "k.png"})
    assert (last.sections[0].clean[0].source, last.closing) == ("section/0", Ref("start", range(1)))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_prompt_belongs_to_exactly_its_section(mode: str) -> None:
    """A section's prompt is not inherited by others, as keyframes are, and a blank one counts as none."""
    plan = film(mode, seconds=4, prompt="common", section_prompts={0: "zero", 1: "   "})
    assert [section.prompt for section in plan.sections] == ["zero", "common", "common"]
    assert plan.prompts == ("zero", "common")


@pytest.mark.parametrize(("window", "frames"), [(9.0, range(20, 29)), (4.5, range(20, 25))])
def test_time_positions_of_forward_sections(window: float, frames: range) -> None:
    """[start 1 | 4x 16 | 2x 2 | 1x 1 | noisy], the same in every section."""
    plan = film("forward", seconds=4, window=window)
    for section in plan.sections:
        assert section.frames == frames
        assert section.clean == (Ref("start", range(1)), Ref("history", range(19, 20)))
        assert section.clean_2x == Ref("history", range(17, 19), skip=1)
        assert section.clean_4x == Ref("history", range(1, 17), skip=3)
    assert (plan.opening, plan.opening_shown, plan.closing) == (Ref("start", range(1)), True, None)
    assert (plan.grows, plan.checkpoint, plan.output) == ("back", "framepack_f1", "film")
    assert plan.pictures == {"start": "start.png"}


def test_influence_is_the_inverse_of_the_strength() -> None:
    """An influence of 100 % is a whole schedule, and 102 % is 0.980392 of it, on the first section unless all are asked for."""

    def strengths(**fields: Any) -> list[float]:
        plan = film("forward", seconds=4, **fields)
        assert all(section.initial == "start" for section in plan.sections)
        return [round(section.strength, 6) for section in plan.sections]

    assert strengths() == [1.0, 1.0, 1.0]
    assert strengths(influence=102.0) == [0.980392, 1.0, 1.0]
    assert strengths(influence=100.5, influence_sections="all") == [0.995025] * 3
    assert strengths(influence=101.0, influence_sections="all") == [0.990099] * 3


def test_one_frame_without_references() -> None:
    """Target at the RoPE value, all empty context on."""
    plan = film("single")
    (section,) = plan.sections
    assert section.frames == range(9, 10)
    assert section.clean == (Ref("start", range(1)), Ref("zeros", range(10, 11)))
    assert section.clean_2x == Ref("zeros", range(11, 13))
    assert section.clean_4x == Ref("zeros", range(13, 29))
    assert (plan.output, plan.checkpoint, plan.pictures, plan.masks) == ("picture", "framepack", {"start": "start.png"}, {})
    assert (plan.opening, plan.closing) == (None, None)


def test_one_frame_with_a_reference() -> None:
    """Target 5, reference at 10, and the empty frame beside it off."""
    plan = film("single", controls=(Control("ref.png"),))
    (section,) = plan.sections
    assert section.frames == range(5, 6)
    assert section.clean == (Ref("start", range(1)), Ref("control/0", range(10, 11)))
    assert section.clean_2x == Ref("zeros", range(11, 13))
    assert section.clean_4x == Ref("zeros", range(13, 29))
    assert plan.pictures == {"start": "start.png", "control/0": "ref.png"}


def test_one_frame_with_everything_set() -> None:
    """Each switch and index moves exactly its own part; the 4x context never lands on the target."""
    plan = film(
        "single",
        image_index=1,
        image_mask="m.png",
        controls=(Control("a.png", 13, "am.png"), Control("b.png", 0)),
        target_index=0,
        rope_value=20,
        context_1x=True,
    )
    (section,) = plan.sections
    assert section.frames == range(0, 1)
    assert section.clean == (
        Ref("start", range(1, 2), mask="start"),
        Ref("control/0", range(13, 14), mask="control/0"),
        Ref("control/1", range(0, 1)),
        Ref("zeros", range(21, 22)),
    )
    assert section.clean_2x == Ref("zeros", range(22, 24))
    assert section.clean_4x == Ref("zeros", range(24, 40))
    assert plan.masks == {"start": "m.png", "control/0": "am.png"}


@pytest.mark.parametrize("controls", [(), (Control("ref.png"),)])
def test_every_switch_of_the_one_frame_mode_changes_the_plan(controls: tuple) -> None:
    """Each switch of the one-frame mode changes the plan; in the existing program several of them did nothing."""
    base = request("single", "start.png", controls=controls)
    for name, one, other in (
        ("context_1x", True, False),
        ("context_2x", True, False),
        ("context_4x", True, False),
        ("rope_value", 9, 10),
        ("target_index", 3, 4),
        ("image_index", 0, 1),
        ("image_mask", "", "m.png"),
    ):
        first, second = (changed(base, **{name: value}).plan() for value in (one, other))
        assert first != second, name
    off = changed(base, context_1x=False, context_2x=False, context_4x=False).plan().sections[0]
    assert (len(off.clean), off.clean_2x, off.clean_4x) == (1 + len(controls), None, None)
    # None means "choose", so it must equal one of the two.
    assert base.plan() == changed(base, context_1x=not controls).plan()


def test_consecutive_ranges() -> None:
    """`lay` gives consecutive index ranges, on which all three layouts are built."""
    assert lay(1, 16, 2) == (range(0, 1), range(1, 17), range(17, 19))
    assert lay(1, 0, 2) == (range(0, 1), range(1, 1), range(1, 3))
    assert lay() == ()


@pytest.mark.parametrize("mode", ["reverse", "forward", "single"])
def test_a_plan_is_plain_data_that_prints(mode: str) -> None:
    """`print(plan)` shows all of it, and what it prints is the plan again."""
    fields = {
        "reverse": {"seconds": 4, "end_image": "e.png", "keyframes": {1: "k.png"}},
        "forward": {"seconds": 4, "influence": 101.5},
        "single": {"controls": (Control("c.png", mask="m.png"),)},
    }[mode]
    plan = film(mode, **fields)
    assert eval(str(plan), {"Plan": Plan, "Section": Section, "Ref": Ref, "range": range}) == plan

    def plain(value: Any) -> bool:
        if dataclasses.is_dataclass(value):
            return all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
        if isinstance(value, tuple):
            return all(map(plain, value))
        if isinstance(value, dict):
            return all(plain(part) for pair in value.items() for part in pair)
        return type(value) in (str, int, float, bool, range, type(None))

    assert plain(plan)
