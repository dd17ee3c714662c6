"""Test that the checks of this folder can fail: each test plants a classic mistake, and a check must find it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from eichi_utils.requests.plan import Plan, Ref
from tests.meaning.checks import goes, starts_with
from tests.meaning.measure import place
from tests.meaning.studio import DOWN, LAST, LEFT, RIGHT, Studio, moves
from tests.meaning.test_sampling import stays_close
from tests.meaning.test_sections import HALVES, depending, follow_their_prompts, sections_meet, turning

pytestmark = pytest.mark.model


def without_history(plan: Plan) -> Plan:
    """Return a plan whose sections get zeros instead of the latents of their neighbours."""

    def blind(ref: Ref) -> Ref:
        return replace(ref, source="zeros", skip=0) if ref.source == "history" else ref

    sections = (
        replace(s, clean=tuple(map(blind, s.clean)), clean_2x=blind(s.clean_2x), clean_4x=blind(s.clean_4x))
        for s in plan.sections
    )
    return replace(plan, sections=tuple(sections))


@pytest.fixture
def scrambled(studio: Studio) -> Iterator[None]:
    """Shuffle the weights of the transformer's blocks during a test."""
    generator = torch.Generator().manual_seed(0)
    with studio.pool.transformer("framepack") as net:
        weights = [weight for name, weight in net.named_parameters() if "blocks." in name and weight.ndim == 2]
        before = [weight.clone() for weight in weights]
        for weight in weights:
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
        yield
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)


def test_another_caption(studio: Studio, circle: str) -> None:
    made = studio.film(studio.request("reverse", circle, moves(LEFT)))
    for direction in (RIGHT, DOWN):
        with pytest.raises(AssertionError, match="expected"):
            goes(place(studio.look(made, LAST)) - place(studio.pixels(circle)), direction)


@pytest.mark.usefixtures("scrambled")
def test_scrambled_weights(studio: Studio, circle: str) -> None:
    request = studio.request("reverse", circle, moves(LEFT))
    made = studio.shoot(request, request.plan())
    with pytest.raises(AssertionError, match=r"expected|nothing red"):
        goes(place(studio.look(made, LAST)) - place(studio.pixels(circle)), LEFT)


def test_positions_in_the_opposite_order(studio: Studio, circle: str) -> None:
    request = studio.request("reverse", circle, moves(LEFT))
    plan = request.plan()
    backwards = replace(plan.sections[0], frames=plan.sections[0].frames[::-1])
    made = studio.shoot(request, replace(plan, sections=(backwards,)))
    with pytest.raises(AssertionError, match="expected"):
        goes(place(studio.look(made, LAST)) - place(studio.pixels(circle)), LEFT)


@pytest.mark.parametrize(("mode", "change"), [("reverse", {"closing": None}), ("forward", {"opening_shown": False})])
def test_a_film_without_its_start(studio: Studio, circle: str, corner: str, mode: str, change: dict) -> None:
    request = studio.request(mode, circle, moves(LEFT))
    made = studio.shoot(request, replace(request.plan(), **change))
    with pytest.raises(AssertionError, match="from the picture"):
        starts_with(studio.look(made, 0), studio.pixels(circle), studio.reconstructed(circle), studio.pixels(corner))


@pytest.mark.parametrize("mode", HALVES)
def test_prompts_of_the_wrong_sections(studio: Studio, corner: str, mode: str) -> None:
    made = studio.film(studio.request(mode, corner, moves(LEFT), sections=2, section_prompts=turning(mode, (LEFT, DOWN))))
    with pytest.raises(AssertionError, match="expected"):
        follow_their_prompts(studio, made, (DOWN, LEFT))


@pytest.mark.parametrize("mode", HALVES)
def test_history_that_is_not_looked_at(studio: Studio, corner: str, mode: str) -> None:
    request = depending(studio, mode, corner)
    made = studio.shoot(request, without_history(request.plan()))
    with pytest.raises(AssertionError, match=r"apart|nothing red"):
        sections_meet(studio, made)


def test_a_cache_that_computes_almost_nothing(studio: Studio, landscape: str) -> None:
    with pytest.raises(AssertionError, match="another seed"):
        stays_close(studio, landscape, cache_threshold=1.0)
