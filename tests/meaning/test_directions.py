"""Test that the caption decides in which direction things move from the same picture."""

from __future__ import annotations

import pytest

from miniature.captions import DIRECTIONS
from tests.meaning.checks import goes, pans_over
from tests.meaning.measure import magnification, place, shift
from tests.meaning.studio import LAST, LEFT, RIGHT, UP, Studio, moves, pans

pytestmark = pytest.mark.model

# The other directions are tested by `test_sections.py`: the first sections of both modes to the left and down.
WAYS = [("reverse", LEFT), ("reverse", RIGHT), ("reverse", UP), ("forward", RIGHT), ("forward", UP)]


@pytest.mark.parametrize(("mode", "direction"), WAYS, ids=[f"{mode}-{DIRECTIONS[direction]}" for mode, direction in WAYS])
def test_a_circle_goes_where_the_caption_says(studio: Studio, circle: str, mode: str, direction: int) -> None:
    made = studio.film(studio.request(mode, circle, moves(direction)))
    goes(place(studio.look(made, LAST)) - place(studio.pixels(circle)), direction)


@pytest.mark.parametrize("direction", range(4), ids=DIRECTIONS)
def test_a_single_picture_shows_it_later(studio: Studio, circle: str, direction: int) -> None:
    made = studio.film(studio.request("single", circle, moves(direction)))
    goes(place(studio.look(made, 0)) - place(studio.pixels(circle)), direction)


@pytest.mark.parametrize(("mode", "direction"), [("reverse", LEFT), ("forward", RIGHT), ("single", UP)])
def test_the_camera_pans_as_captioned(studio: Studio, landscape: str, mode: str, direction: int) -> None:
    made = studio.film(studio.request(mode, landscape, pans(direction)))
    pans_over(shift(studio.pixels(landscape), studio.look(made, made.shape[2] - 1)), direction)


@pytest.mark.parametrize("mode", ["reverse", "single"])
def test_the_camera_zooms_as_captioned(studio: Studio, landscape: str, mode: str) -> None:
    """The miniature's clips zoom by a factor of 1.35 in a section."""
    start, factors = studio.pixels(landscape), {}
    for way in ("in", "out"):
        made = studio.film(studio.request(mode, landscape, f"The camera zooms {way}."))
        factors[way] = magnification(start, studio.look(made, made.shape[2] - 1))
    assert factors["in"] > 1.15 and factors["out"] < 1 / 1.15
