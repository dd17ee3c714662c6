"""Test films that are joined: no seam where they meet, and latents in between that lead from one to the other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import decode
from eichi_utils.exchange.latent_files import LatentClip, join, read_latents, trim, write_clip
from tests.meaning.checks import meet
from tests.meaning.measure import place
from tests.meaning.studio import LEFT, RIGHT, Studio, moves

pytestmark = pytest.mark.model

# Largest change between two frames at a join, as a multiple of the largest one in the NEAR frames before and after it.
SEAM = 1.5
NEAR = 6


def written(latents: Tensor, path: Path) -> Path:
    write_clip(path, LatentClip(latents, ({"file": "", "latents": latents.shape[2]},)))
    return path


def no_seam(frames: Tensor, last: int) -> None:
    """Check that no more changes after frame `last` of (3, T, H, W) than after the frames around it."""
    steps = (frames[:, 1:] - frames[:, :-1]).abs().mean((0, 2, 3))
    near = torch.cat([steps[last - NEAR : last], steps[last + 1 : last + 1 + NEAR]])
    assert steps[last] <= SEAM * near.max(), f"{steps[last]:.4f} at the join, at most {near.max():.4f} beside it"


def test_a_film_that_was_cut_shows_no_seam(studio: Studio, circle: str, tmp_path: Path) -> None:
    """Two halves of a film, each a file, are joined and decoded together, and show no jump. Decoded apart, as in the existing
    program, they jump and lose three frames."""
    # Only the middle of the picture changes, and it decodes in a quarter of the time.
    film = studio.film(studio.request("reverse", circle, moves(LEFT)))[..., 4:12, 4:12]
    cut = 5
    files = [written(part, tmp_path / f"{part.shape[2]}.safetensors") for part in (film[:, :, :cut], film[:, :, cut + 1 :])]
    pieces = [trim(*read_latents(file)) for file in files]
    # The missing latent is interpolated from its neighbours.
    whole = join(pieces, 1).latents
    with studio.pool.vae() as vae:
        made = decode(vae, whole)[0]
        apart = torch.cat([decode(vae, piece.latents)[0] for piece in pieces], dim=1)
    assert made.shape[1] == frames_of(10) == 37 and apart.shape[1] == frames_of(5) + frames_of(4)
    # The joins are after the frames of five latents, and after those of the sixth, which was interpolated.
    no_seam(made, frames_of(cut) - 1)
    no_seam(made, frames_of(cut + 1) - 1)
    with pytest.raises(AssertionError, match="at the join"):
        no_seam(apart, frames_of(cut) - 1)


def test_what_lies_between_leads_from_one_film_to_the_other(studio: Studio, tmp_path: Path) -> None:
    """The circle comes to the place where it is when the second film begins; without latents in between it jumps there."""
    later = studio.film(studio.request("reverse", studio.circle(0.75, 0.5), moves(LEFT)))
    fields = {"append_latents": str(written(later, tmp_path / "later.safetensors"))}
    begun = studio.circle(0.25, 0.5)
    whole = studio.joined(studio.request("reverse", begun, moves(RIGHT), join_latents=6, **fields))
    # From the last latent of the first film to the first one of the second.
    places = [place(studio.look(whole, number)) for number in range(9, 17)]
    for before, after in itertools.pairwise(places):
        meet(before, after)
    with pytest.raises(AssertionError, match="apart"):
        meet(places[0], places[-1])
