"""Test what seeds, guidance and the step cache do to a film."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers_helper.models.step_cache import TeaCache
from eichi_utils.render import section_loop
from tests.meaning.checks import goes, pans_over
from tests.meaning.measure import place, shift
from tests.meaning.studio import LAST, LEFT, RIGHT, Studio, moves, pans

pytestmark = pytest.mark.model

# Skipped steps show most in a picture with much detail and few steps. The error of the cache may be this share of the
# difference that another seed makes. Measured: 0.04, at other numbers of steps up to 0.10; a cache that computes almost
# nothing: 0.3 to 0.5.
STEPS, SHARE_OF_A_SEED = 8, 0.15


def test_a_seed_makes_the_same_film_again(studio: Studio, circle: str) -> None:
    """The same seed gives the same film to the last bit, another seed another film of the same motion."""
    request = studio.request("forward", circle, moves(LEFT))
    once, again = studio.film(request), studio.shoot(request, request.plan())
    other = studio.film(studio.request("forward", circle, moves(LEFT), seed=8))
    assert torch.equal(again, once)
    assert not torch.allclose(other[:, :, 1:], once[:, :, 1:], atol=0.01)
    goes(place(studio.look(other, LAST)) - place(studio.pixels(circle)), LEFT)


def test_guidance_follows_the_prompt_and_not_the_negative_one(studio: Studio, circle: str) -> None:
    made = studio.film(studio.request("reverse", circle, moves(LEFT), negative_prompt=moves(RIGHT), cfg_scale=1.5))
    goes(place(studio.look(made, LAST)) - place(studio.pixels(circle)), LEFT)


def stays_close(studio: Studio, landscape: str, **cache: float) -> None:
    """Check that a film with the step cache is nearly the one without. cache: fields of the request."""

    def shot(**fields: Any) -> Tensor:
        return studio.film(studio.request("reverse", landscape, pans(LEFT), steps=STEPS, **fields))

    without, made = shot(), shot(step_cache="teacache", **cache)
    share = (F.mse_loss(made, without) / F.mse_loss(shot(seed=8), without)).item()
    assert share <= SHARE_OF_A_SEED, f"{share:.3f} of what another seed changes"
    pans_over(shift(studio.pixels(landscape), studio.look(made, LAST)), LEFT)


def test_the_step_cache_skips_steps_and_changes_little(studio: Studio, landscape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[TeaCache] = []

    class Watched(TeaCache):
        def __init__(self, *settings: float):
            super().__init__(*settings)
            caches.append(self)

    monkeypatch.setattr(section_loop, "TeaCache", Watched)
    stays_close(studio, landscape)
    # There is a cache for each guidance branch, but this film uses one branch.
    computed = max(len(cache.computed) for cache in caches)
    assert 2 <= computed < STEPS
