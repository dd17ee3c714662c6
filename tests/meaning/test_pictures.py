"""Test that a film shows the pictures of its request: the start first, the end last, a keyframe in its section."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusers_helper.vae.latents import to_uint8
from eichi_utils.exchange.video import encode_h264
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.single import Control
from tests.eichi_utils.helpers import carry_out, decoded
from tests.meaning.checks import goes, nears, smooth, starts_with, stays
from tests.meaning.measure import place
from tests.meaning.studio import LAST, LEFT, NOWHERE, Studio, moves

pytestmark = pytest.mark.model

# Decoding is slow, so only one film of short sections is decoded as a whole; of the other mode single latents are. Joins of
# both modes are tested in `test_sections.py`.
SECTIONS, SHORT_LATENTS, SHORT_SECONDS = 2, 5, 0.6


@pytest.fixture(scope="module")
def watched(studio: Studio, circle: str, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Return the frames of a standard-mode film that the driver has written to an MP4."""
    folder = tmp_path_factory.mktemp("watched")
    length = {"seconds": SECTIONS * SHORT_SECONDS, "window": 4.5}
    carry_out(studio.request("reverse", circle, moves(LEFT), **length), studio.pool, folder)
    return read(next(folder.glob("*.mp4")))


def read(path: Path) -> Tensor:
    """Read a film's file, (frames, 3, H, W) in -1..1."""
    return torch.from_numpy(decoded(path)).float().permute(0, 3, 1, 2) / 127.5 - 1


def test_a_film_starts_with_its_picture(studio: Studio, watched: Tensor, circle: str, corner: str, tmp_path: Path) -> None:
    assert len(watched) == 4 * SHORT_LATENTS * SECTIONS + 1
    encode_h264(tmp_path / "best.mp4", to_uint8(studio.reconstructed(circle)[None, :, None]).numpy(), FilmRequest.crf)
    starts_with(watched[0], studio.pixels(circle), read(tmp_path / "best.mp4")[0], studio.pixels(corner))
    goes(place(watched[4 * SHORT_LATENTS]) - place(watched[0]), LEFT, SHORT_LATENTS)


def test_latents_of_the_other_mode_start_with_their_picture(studio: Studio, circle: str, corner: str) -> None:
    made = studio.film(studio.request("forward", circle, moves(LEFT)))
    starts_with(studio.look(made, 0), studio.pixels(circle), studio.reconstructed(circle), studio.pixels(corner))


def test_a_film_goes_on_without_a_jump(watched: Tensor) -> None:
    """No change from frame to frame around the join of two sections is much larger than the others."""
    join = watched[4 * SHORT_LATENTS - 6 : 4 * SHORT_LATENTS + 8]
    smooth([(after - before).abs().mean().item() for before, after in pairwise(join)])


def test_an_end_picture_is_approached(studio: Studio, circle: str) -> None:
    """The caption does not say where the circle goes; the end picture does."""
    end = studio.circle(0.5, 0.8)
    without = studio.film(studio.request("reverse", circle, NOWHERE))
    made = studio.film(studio.request("reverse", circle, NOWHERE, end_image=end))
    last = studio.look(made, LAST)
    nears(last, studio.look(without, LAST), studio.pixels(end), 6.0)
    assert (place(last) - torch.tensor([0.5, 0.8])).norm() < 0.1


def test_a_loop_comes_back(studio: Studio, circle: str) -> None:
    """A circle comes back to its place if the start picture is the end picture too."""
    without = studio.film(studio.request("reverse", circle, moves(LEFT)))
    made = studio.film(studio.request("reverse", circle, moves(LEFT), end_image=circle))
    nears(studio.look(made, LAST), studio.look(without, LAST), studio.pixels(circle), 2.0)


class TestKeyframes:
    """Test keyframes in films of two sections. A section uses the keyframe with the smallest number not below its own.

    The keyframe has another background, so that its influence is visible wherever it acts.
    """

    def looks(self, studio: Studio, circle: str, keyframes: dict[int, str]) -> tuple:
        """Return a frame from the middle of the film's first half (section 1), and one from that of its second (section 0)."""
        made = studio.film(studio.request("reverse", circle, moves(LEFT), sections=2, keyframes=keyframes))
        return studio.look(made, LAST // 2), studio.look(made, LAST + LAST // 2)

    def test_at_the_end_it_acts_there_alone(self, studio: Studio, circle: str, landscape: str) -> None:
        early, late = self.looks(studio, circle, {})
        early_now, late_now = self.looks(studio, circle, {0: landscape})
        nears(late_now, late, studio.pixels(landscape), 3.0)
        stays(early_now, early, studio.pixels(landscape))

    def test_at_the_start_it_acts_on_both(self, studio: Studio, circle: str, landscape: str) -> None:
        for now, before in zip(self.looks(studio, circle, {1: landscape}), self.looks(studio, circle, {}), strict=True):
            nears(now, before, studio.pixels(landscape), 3.0)


def test_a_single_picture_nears_its_reference(studio: Studio, circle: str, corner: str) -> None:
    """The caption names no direction: a control picture at the next index decides where the circle is."""
    without = studio.film(studio.request("single", circle, NOWHERE))
    made = studio.film(studio.request("single", circle, NOWHERE, target_index=9, controls=(Control(corner, index=10),)))
    nears(studio.look(made, 0), studio.look(without, 0), studio.pixels(corner), 4.0)
