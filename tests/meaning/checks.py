"""What a right film looks like. Each check raises AssertionError with its figures; `test_faults.py` proves that it can."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from miniature.clips import MOVE, PAN, VECTORS
from miniature.evaluate import decibels
from tests.meaning.studio import LAST

# Loose on purpose: a direction is a question of yes or no.
ENOUGH, SIDEWAYS = 0.5, 0.35
# A picture of the film may be this much farther from the original than what the VAE alone makes of it.
LOSS = 3.0
# The same picture is at least this much nearer than another one.
CLEARLY = 10.0
JUMP = 3.0


def goes(way: Tensor, direction: int, latents: int = LAST, distance: float = MOVE) -> None:
    """way (x, y) leads in a direction, and hardly aside. distance: what a section's latents cover in the miniature's clips."""
    expected = distance * latents / LAST
    vector = torch.tensor(VECTORS[direction])
    along = (way @ vector).item()
    aside = (way - along * vector).norm().item()
    figures = f"{along:.3f} along and {aside:.3f} aside, {expected:.3f} expected"
    assert along >= ENOUGH * expected and aside <= SIDEWAYS * expected, figures


def pans_over(way: Tensor, direction: int) -> None:
    """The picture goes the other way than the camera."""
    goes(-way, direction, distance=PAN)


def starts_with(frame: Tensor, picture: Tensor, best: Tensor, other: Tensor) -> None:
    """best: what the VAE alone makes of the picture. other: a picture that the frame must not be like."""
    near, possible, far = decibels(frame, picture), decibels(best, picture), decibels(frame, other)
    figures = f"{near:.1f} dB from the picture, {possible:.1f} possible, {far:.1f} from another"
    assert near >= possible - LOSS and near >= far + CLEARLY, figures


def nears(frame: Tensor, without: Tensor, picture: Tensor, gain: float) -> None:
    """frame is nearer to the picture than the frame of a film that was not shown the picture, by so many dB."""
    near, far = decibels(frame, picture), decibels(without, picture)
    assert near >= far + gain, f"{near:.1f} dB from the picture, {far:.1f} without it"


def stays(frame: Tensor, before: Tensor, picture: Tensor) -> None:
    """frame is still nearer to what it was before than to the picture."""
    near, far = decibels(frame, before), decibels(frame, picture)
    assert near >= far + 3, f"{near:.1f} dB from what it was, {far:.1f} from the picture"


def meet(before: Tensor, after: Tensor) -> None:
    """The circle (x, y) at two neighbouring latents: hardly farther apart than it goes in that time."""
    distance, expected = (after - before).norm().item(), MOVE / LAST
    assert distance <= JUMP * expected, f"{distance:.3f} apart, {expected:.3f} expected"


def smooth(steps: Sequence[float]) -> None:
    """steps: how far neighbours in time are from each other. None is much larger than the middle one."""
    middle = statistics.median(steps)
    assert max(steps) <= JUMP * middle, f"steps of {[round(step, 3) for step in steps]}"
