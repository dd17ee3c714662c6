"""Test that sections follow their own prompts, and go on where their neighbour ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from torch import Tensor

from eichi_utils.requests.request import Request
from tests.meaning.checks import goes, meet
from tests.meaning.measure import place
from tests.meaning.studio import DOWN, LAST, LEFT, NOWHERE, Studio, moves

pytestmark = pytest.mark.model

# Numbers of the sections that are the first and the second half of a film.
HALVES = {"reverse": (1, 0), "forward": (0, 1)}
# First and last latent of the part of each half that is measured, away from the join, where the direction changes.
WITHIN = ((0, LAST // 2), (2 * LAST - LAST // 2, 2 * LAST))


def follow_their_prompts(studio: Studio, made: Tensor, directions: tuple[int, int]) -> None:
    """Check that the circle moves in the given direction in each half of the film."""
    for (first, last), direction in zip(WITHIN, directions, strict=True):
        goes(place(studio.look(made, last)) - place(studio.look(made, first)), direction, last - first)


def turning(mode: str, directions: tuple[int, int]) -> Mapping[int, str]:
    return {section: moves(direction) for section, direction in zip(HALVES[mode], directions, strict=True)}


@pytest.mark.parametrize("mode", HALVES)
def test_each_section_follows_its_own_prompt(studio: Studio, corner: str, mode: str) -> None:
    made = studio.film(studio.request(mode, corner, moves(LEFT), sections=2, section_prompts=turning(mode, (LEFT, DOWN))))
    follow_their_prompts(studio, made, (LEFT, DOWN))


def sections_meet(studio: Studio, made: Tensor) -> None:
    """Check that the circle does not jump at the join of two sections."""
    meet(place(studio.look(made, LAST)), place(studio.look(made, LAST + 1)))


def depending(studio: Studio, mode: str, corner: str) -> Request:
    """Return a request in which the section that is sampled second depends on the first.

    Only from that section's latents it knows where the circle is, or where it moves.
    """
    undecided = {1: NOWHERE} if mode == "reverse" else {}
    return studio.request(mode, corner, moves(DOWN), sections=2, section_prompts=undecided)


@pytest.mark.parametrize("mode", HALVES)
def test_a_section_meets_its_neighbour(studio: Studio, corner: str, mode: str) -> None:
    sections_meet(studio, studio.film(depending(studio, mode, corner)))
