"""Check that a film shows what it should; a check that fails raises AssertionError with its figures.

`test_faults.py` proves that the checks can fail.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from miniature.clips import MOVE, PAN, VECTORS
from miniature.evaluate import decibels
from tests.meaning.studio import LAST

# Least way along the direction and most way aside, as shares of the expected way; loose, because only the direction matters.
ENOUGH, SIDEWAYS = 0.5, 0.35
# dB that a frame may lie below what the VAE alone makes of the picture.
LOSS = 3.0
# dB by which a frame is at least nearer to its own picture than to another one.
CLEARLY = 10.0
# Most distance between neighbours in time, as a multiple of the usual one.
JUMP = 3.0


def goes(way: Tensor, direction: int, latents: int = LAST, distance: float = MOVE) -> None:
    """Check that a way (x, y) leads in a direction and hardly aside.

    latents: number of latents in which the way was made. distance: the way of a whole section in the miniature's clips.
    """
    expected = distance * latents / LAST
    vector = torch.tensor(VECTORS[direction])
    along = (way @ vector).item()
    aside = (way - along * vector).norm().item()
    figures = f"{along:.3f} along and {aside:.3f} aside, {expected:.3f} expected"
    assert along >= ENOUGH * expected and aside <= SIDEWAYS * expected, figures


def pans_over(way: Tensor, direction: int) -> None:
    """Check that the picture moved by `way`, opposite to the camera's direction."""
    goes(-way, direction, distance=PAN)


def starts_with(frame: Tensor, picture: Tensor, best: Tensor, other: Tensor) -> None:
    """Check that a frame shows a picture.

    best: what the VAE alone makes of the picture. other: a picture that the frame must not resemble.
    """
    near, possible, far = decibels(frame, picture), decibels(best, picture), decibels(frame, other)
    figures = f"{near:.1f} dB from the picture, {possible:.1f} possible, {far:.1f} from another"
    assert near >= possible - LOSS and near >= far + CLEARLY, figures


def nears(frame: Tensor, without: Tensor, picture: Tensor, gain: float) -> None:
    """Check that a frame is nearer to a picture, by `gain` dB, than the same frame of a film made without the picture."""
    near, far = decibels(frame, picture), decibels(without, picture)
    assert near >= far + gain, f"{near:.1f} dB from the picture, {far:.1f} without it"


def stays(frame: Tensor, before: Tensor, picture: Tensor) -> None:
    """Check that a frame is still nearer, by 3 dB, to what it was before than to a picture."""
    near, far = decibels(frame, before), decibels(frame, picture)
    assert near >= far + 3, f"{near:.1f} dB from what it was, {far:.1f} from the picture"


def meet(before: Tensor, after: Tensor) -> None:
    """Check that the circle's places (x, y) at two neighbouring latents are hardly farther apart than it moves in that time."""
    distance, expected = (after - before).norm().item(), MOVE / LAST
    assert distance <= JUMP * expected, f"{distance:.3f} apart, {expected:.3f} expected"


def smooth(steps: Sequence[float]) -> None:
    """Check that no step, the distance between two neighbours in time, is much larger than the median one."""
    middle = statistics.median(steps)
    assert max(steps) <= JUMP * middle, f"steps of {[round(step, 3) for step in steps]}"
