"""Test that clips are a pure function of their seeds, and move as their captions say."""

from __future__ import annotations

import pytest
import torch

from miniature.captions import DIRECTIONS, KINDS, every_caption
from miniature.clips import HELD_OUT, MOVE, SECTION, VECTORS, render, scenes
from miniature.noise import uniform
from miniature.pictures import bank

SIDE = 48


@pytest.fixture(scope="module")
def pictures():
    return bank(torch.arange(8), 64)


def test_numbers_depend_on_the_seed_alone():
    alone = uniform(torch.tensor([5]), 3, 4)
    among = uniform(torch.tensor([9, 5, 2]), 3, 4)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(uniform(torch.tensor([5]), 4, 4), alone)


def test_numbers_are_uniform():
    values = uniform(torch.arange(64), 1, 256)
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - 12**-0.5) < 0.01


def test_the_same_seeds_make_the_same_clips(pictures):
    seeds = torch.arange(HELD_OUT, HELD_OUT + 4)
    frames = torch.arange(0, 37, 12)
    once, again = (render(scenes(seeds, 8, dict.fromkeys(KINDS, 1.0)), pictures, frames, SIDE, SIDE) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == (4, 3, 4, SIDE, SIDE) and once.abs().max() <= 1


@pytest.mark.parametrize("direction", range(4), ids=DIRECTIONS)
def test_a_shape_moves_as_captioned(pictures, direction):
    scene = scenes(torch.arange(6), 8, {"move": 1.0}, speeds=0.0, simple=1.0).turned_to(direction)
    clip = render(scene, pictures, torch.tensor([0, SECTION // 2]), SIDE, SIDE)
    assert all(DIRECTIONS[direction] in caption for caption in scene.captions())
    vector = torch.tensor(VECTORS[direction])
    moved = (clip[:, :, 1] - clip[:, :, 0]).abs().sum(1)
    line = (torch.arange(SIDE) + 0.5) / SIDE
    # What changed lies between the old place and the new one, half of the way along.
    x = (moved.sum(1) * line).sum(1) / moved.sum((1, 2))
    y = (moved.sum(2) * line).sum(1) / moved.sum((1, 2))
    middle = torch.stack([x, y], dim=1) - scene.place
    assert torch.allclose(middle @ vector, torch.full((6,), MOVE / 4), atol=0.05)


def test_directions_share_the_start_picture(pictures):
    for kind, count in KINDS.items():
        scene = scenes(torch.arange(3), 8, {kind: 1.0})
        starts = [render(scene.turned_to(d), pictures, torch.zeros(1), SIDE, SIDE) for d in range(count)]
        assert all(torch.allclose(start, starts[0], atol=1e-5) for start in starts)


def test_captions_are_distinct():
    sentences = every_caption()
    assert len(sentences) == len(set(sentences)) > 100
