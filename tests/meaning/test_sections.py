"""Sections follow their own prompts, and go on where their neighbour ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from torch import Tensor

from eichi_utils.requests.request import Request
from tests.meaning.checks import goes, meet
from tests.meaning.measure import place
from tests.meaning.studio import DOWN, LAST, LEFT, NOWHERE, Studio, moves

pytestmark = pytest.mark.model

# The number of the section that is the film's first half and of the one that is its second.
HALVES = {"reverse": (1, 0), "forward": (0, 1)}
# Latents well within each half: at the join the two directions meet.
WITHIN = ((0, LAST // 2), (2 * LAST - LAST // 2, 2 * LAST))


def follow_their_prompts(studio: Studio, made: Tensor, directions: tuple[int, int]) -> None:
    """Raises AssertionError unless both halves go their own way."""
    for (first, last), direction in zip(WITHIN, directions, strict=True):
        goes(place(studio.look(made, last)) - place(studio.look(made, first)), direction, last - first)


def turning(mode: str, directions: tuple[int, int]) -> Mapping[int, str]:
    return {section: moves(direction) for section, direction in zip(HALVES[mode], directions, strict=True)}


@pytest.mark.parametrize("mode", HALVES)
def test_each_section_follows_its_own_prompt(studio: Studio, corner: str, mode: str) -> None:
    made = studio.film(studio.request(mode, corner, moves(LEFT), sections=2, section_prompts=turning(mode, (LEFT, DOWN))))
    follow_their_prompts(studio, made, (LEFT, DOWN))


def sections_meet(studio: Studio, made: Tensor) -> None:
    """Raises AssertionError if the circle jumps at the join of two sections."""
    meet(place(studio.look(made, LAST)), place(studio.look(made, LAST + 1)))


def depending(studio: Studio, mode: str, corner: str) -> Request:
    """The second section sampled has to look at the first one: only there it sees where the circle is, or goes."""
    undecided = {1: NOWHERE} if mode == "reverse" else {}
    return studio.request(mode, corner, moves(DOWN), sections=2, section_prompts=undecided)


@pytest.mark.parametrize("mode", HALVES)
def test_a_section_meets_its_neighbour(studio: Studio, corner: str, mode: str) -> None:
    sections_meet(studio, studio.film(depending(studio, mode, corner)))
