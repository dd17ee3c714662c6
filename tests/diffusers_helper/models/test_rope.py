"""Test the rotary position embedding."""

from __future__ import annotations

import math

import pytest
import torch

from diffusers_helper.models.rope import as_tokens, pad_to_multiple, pooled, rope_field, rotate, with_still

CPU = torch.device("cpu")
AXES, THETA = (4, 6, 6), 256.0


def angle(position: int, axis: int, pair: int) -> float:
    """Return the rotation angle of one pair of dimensions, from the formula."""
    return position / THETA ** (2 * pair / AXES[axis])


def test_every_cell_has_the_angles_of_its_three_positions():
    """Each cell has the angles of its three positions: time is the caller's number, not a count from 0; height and width
    count cells."""
    times = (0, 7, 3, 1000)
    field = rope_field(times, 3, 5, AXES, THETA, CPU)
    assert field.shape == (2, sum(AXES), 4, 3, 5) and field.dtype == torch.float32
    for t, time in enumerate(times):
        for h in range(3):
            for w in range(5):
                angles = []
                for axis, position in enumerate((time, h, w)):
                    for pair in range(AXES[axis] // 2):
                        angles += [angle(position, axis, pair)] * 2
                # Float32 angles of up to 1000 are good to 6e-5.
                tolerance = 1e-6 * max(1.0, float(time) / 10)
                for table, function in zip(field, (math.cos, math.sin), strict=True):
                    expected = torch.tensor([function(a) for a in angles])
                    assert (table[:, t, h, w] - expected).abs().max() <= tolerance


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size", [(16, 8, 8), (2, 5, 3), (1, 1, 7), (3, 10, 11)])
def test_pooled_tables_are_the_mean_of_cosines_and_of_sines(factor, size):
    """Pooled tables average cosines and sines, not positions, so that 2x and 4x tokens turn and shrink. Edges repeat the
    last cell."""
    frames, height, width = size
    field = rope_field(range(5, 5 + frames), height, width, AXES, THETA, CPU)
    table = pooled(field, factor)
    assert table.shape == (2, sum(AXES), *(-(-side // factor) for side in size))
    for t in range(table.shape[2]):
        for h in range(table.shape[3]):
            for w in range(table.shape[4]):
                cells = [
                    field[
                        :, :, min(t * factor + i, frames - 1), min(h * factor + j, height - 1), min(w * factor + k, width - 1)
                    ]
                    for i in range(factor)
                    for j in range(factor)
                    for k in range(factor)
                ]
                assert (table[:, :, t, h, w] - torch.stack(cells).mean(0)).abs().max() <= 1e-6
    assert table.pow(2).sum(0).max() <= 1 + 1e-6


def test_padding_repeats_the_end_of_the_last_three_dimensions():
    """Padding repeats the end of the last three dimensions, never the beginning, and adds nothing to sizes that are
    multiples."""
    x = torch.arange(2.0 * 3 * 4).view(1, 1, 2, 3, 4)
    padded = pad_to_multiple(x, (2, 4, 8))
    assert padded.shape == (1, 1, 2, 4, 8)
    assert torch.equal(padded[..., :3, :4], x)
    assert torch.equal(padded[..., 3, :4], x[..., 2, :]) and torch.equal(padded[..., 7], padded[..., 3])
    assert torch.equal(pad_to_multiple(x, (1, 3, 4)), x)


def test_tokens_go_row_by_row_frame_by_frame():
    """Table rows follow the order of the patches, and each sine has the sign of the pair's other dimension."""
    field = torch.arange(24.0).view(1, 1, 2, 3, 4).expand(2, 2, -1, -1, -1)
    tokens = as_tokens(field)
    assert tokens.shape == (2, 24, 1, 2)
    assert torch.equal(tokens[0, :, 0], torch.arange(24.0)[:, None].expand(-1, 2))
    assert torch.equal(tokens[1, :, 0, 0], -torch.arange(24.0)) and torch.equal(tokens[1, :, 0, 1], torch.arange(24.0))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_rotation_is_a_complex_product_of_interleaved_pairs(factor):
    """Rotation is a complex product of pairs that are neighbours (0, 1), (2, 3), not halves."""
    field = rope_field((2, 9, 4, 31), 4, 6, AXES, THETA, CPU)
    table = as_tokens(field if factor == 1 else pooled(field, factor))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, table.shape[1], 3, sum(AXES), generator=generator)
    factors = torch.complex(table[0, :, :, ::2], table[1, :, :, 1::2])
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * factors).flatten(-2)
    assert (rotate(x, table) - expected).abs().max() <= 1e-6


def test_rotation_keeps_lengths_and_relative_angles():
    """Rotation keeps lengths, and products depend on differences of positions only, which is what makes it a position code."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, sum(AXES), generator=generator).expand(1, 6, 1, -1) for _ in range(2))

    def turned(x, start):
        return rotate(x, as_tokens(rope_field(range(start, start + 6), 1, 1, AXES, THETA, CPU)))

    assert (turned(q, 3).norm(dim=-1) - q.norm(dim=-1)).abs().max() <= 1e-5
    one, other = ((turned(q, start + 4) * turned(k, start)).sum(-1) for start in (0, 20))
    assert (one - other).abs().max() <= 1e-4


def test_rotation_keeps_sixteen_bits():
    """Rotation is computed in float32 and returned in the network's precision."""
    table = as_tokens(rope_field((500,), 2, 2, AXES, THETA, CPU))
    x = torch.randn(1, 4, 2, sum(AXES), generator=torch.Generator().manual_seed(0))
    narrow = rotate(x.bfloat16(), table)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, rotate(x.bfloat16().float(), table).bfloat16())


def test_tokens_that_do_not_turn_are_exactly_as_before():
    """Tokens behind the table's latents, which are text, are not rotated and keep every bit."""
    table = as_tokens(rope_field((2, 9), 2, 3, AXES, THETA, CPU))
    x = torch.randn(1, 12 + 5, 2, sum(AXES), generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = rotate(x, with_still(table, 5))
    assert torch.equal(turned[:, :12], rotate(x[:, :12], table)) and torch.equal(turned[:, 12:], x[:, 12:])
    # Tables of a batch, one for each clip.
    batch = with_still(table[:, None].expand(-1, 2, -1, -1, -1), 5)
    assert torch.equal(batch[:, 1], with_still(table, 5))
