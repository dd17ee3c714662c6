"""Test conversions of pixels and latents, and the blend of two clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from diffusers_helper.memory.memory import Room
from diffusers_helper.vae.causal_cache import CausalCache
from diffusers_helper.vae.latents import (
    blend,
    decode,
    decode_after,
    decode_frames,
    encode_picture,
    preview_rgb,
    preview_weights,
    to_uint8,
)
from diffusers_helper.vae.preview import HUNYUAN_PREVIEW
from diffusers_helper.vae.vae_decode import only_frames

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo.from_pretrained(checkpoint / "vae").eval()


def picture(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(1, 3, 1, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_same_picture_is_the_same_latent(vae):
    """The original drew the posterior's noise from the global generator: no seed reproduced a film."""
    torch.manual_seed(1)
    first = encode_picture(vae, picture())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(encode_picture(vae, picture()), first)
    assert torch.equal(torch.get_rng_state(), state)


@torch.inference_mode()
def test_the_latent_is_the_scaled_mode_of_the_posterior(vae):
    latents = encode_picture(vae, picture())
    assert latents.shape == (1, 16, 1, 4, 6) and latents.dtype == torch.float32 and latents.device.type == "cpu"
    mean = vae.encode(picture()).latent_dist.mean
    assert vae.config.scaling_factor == pytest.approx(0.476986)
    assert torch.equal(latents, mean * 0.476986)


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 10])
def test_latents_become_four_frames_each_but_the_first(vae, frames):
    """Latents become 4 T - 3 frames, on which seconds, overlaps and cuts rest, in the sizes that diffusers decodes in pieces
    too."""
    latents = torch.randn(1, 16, frames, 2, 4, generator=torch.Generator().manual_seed(0))
    pixels = decode(vae, latents)
    assert pixels.shape == (1, 3, 4 * frames - 3, 16, 32)
    assert pixels.dtype == torch.float32 and pixels.isfinite().all()


@torch.inference_mode()
def test_decoding_undoes_the_scale(vae):
    latents = encode_picture(vae, picture())
    assert (decode(vae, latents) - vae.decode(latents / 0.476986).sample).abs().max() <= 1e-4
    assert decode(vae, latents).shape == picture().shape


def test_preview_is_the_linear_map_of_each_cell():
    """Spec/core 2; out-of-range colours are clamped, not wrapped."""
    latents = torch.randn(1, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 4
    rgb = preview_rgb(latents, preview_weights(HUNYUAN_PREVIEW, latents.device))
    assert rgb.shape == (1, 3, 3, 4, 5) and rgb.min() == 0.0 and rgb.max() == 1.0
    for r in range(3):
        value = sum(latents[0, c, 2, 3, 1] * HUNYUAN_PREVIEW.rows[c][r] for c in range(16)) + HUNYUAN_PREVIEW.bias[r]
        assert rgb[0, r, 2, 3, 1].item() == pytest.approx(min(1.0, max(0.0, value.item())), abs=1e-5)


def clip(frames: int, value: float) -> torch.Tensor:
    return torch.full((1, 3, frames, 2, 2), value)


def test_a_blend_goes_evenly_from_one_clip_to_the_other():
    """A blend's weights go evenly from 1 to 0, both included, because it is there to hide a jump at a section's border."""
    assert blend(clip(5, 1.0), clip(5, 0.0), 0, 5)[0, 0, :, 0, 0].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert blend(clip(2, 1.0), clip(2, 0.0), 2, 5)[0, 0, :, 0, 0].tolist() == [0.5, 0.25]


def test_a_blend_of_equal_frames_changes_nothing():
    first = torch.randn(1, 3, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    assert (blend(first, first, 0, 6) - first).abs().max() <= 1e-6


def test_a_blend_of_half_precision_is_computed_in_full():
    first, second = clip(9, 0.3).half(), clip(9, 0.7).half()
    assert torch.equal(blend(first, second, 0, 9), blend(first.float(), second.float(), 0, 9))


def test_decoding_stays_in_what_is_free(vae, monkeypatch):
    """Frames of a size for which nothing is free come in tiles: another picture than whole frames, but of the same size."""
    latents = torch.randn(1, 16, 2, 20, 24, generator=torch.Generator().manual_seed(0))
    whole = decode(vae, latents)
    (tiled,) = only_frames(decode_frames(vae, latents, room=Room(lambda: 0)))
    assert tiled.shape == whole.shape and (tiled - whole).abs().max() > 1e-3
    (unlimited,) = only_frames(decode_frames(vae, latents, room=Room()))
    assert torch.equal(unlimited, whole)


def test_tiles_of_a_side_that_was_asked_for(vae):
    """The largest that a tile may have: another picture than whole frames, unless it holds them; less room, smaller tiles. It
    counts in the decoding that remembers too."""
    latents = torch.randn(1, 16, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    whole = decode(vae, latents)
    (tiled,) = only_frames(decode_frames(vae, latents, room=Room(), side=20))
    assert tiled.shape == whole.shape and (tiled - whole).abs().max() > 1e-3
    assert torch.equal(next(only_frames(decode_frames(vae, latents, room=Room(), side=24))), whole)
    (smallest,) = only_frames(decode_frames(vae, latents, room=Room(lambda: 0)))
    assert torch.equal(next(only_frames(decode_frames(vae, latents, room=Room(lambda: 0), side=20))), smallest)
    once = [next(only_frames(decode_after(vae, latents, CausalCache(), Room(), side=side))) for side in (None, 20)]
    assert once[0].shape == once[1].shape and (once[0] - once[1]).abs().max() > 1e-3


def test_pixels_are_rounded_and_clamped():
    """Truncation darkened every film by half a level, and a value over 1 must not come out black."""
    values = [-9.0, -1.0, -127 / 127.5, -125.8 / 127.5, 0.0, 126.2 / 127.5, 1.0, 1.01, 9.0]
    pixels = torch.tensor(values).view(1, 1, -1, 1, 1).expand(1, 3, -1, 2, 4)
    out = to_uint8(pixels)
    assert out.shape == (9, 2, 4, 3) and out.dtype == torch.uint8 and out.is_contiguous()
    # 0.5 and 127.5 lie between two levels; either is right.
    assert out[:, 0, 0, 0].tolist()[0:2] == [0, 0] and out[2, 0, 0, 0] in (0, 1) and out[4, 0, 0, 0] in (127, 128)
    assert out[3, 1, 3, 2] == 2 and out[5:, 0, 0, 0].tolist() == [254, 255, 255, 255]


def test_every_level_survives_the_way_there_and_back():
    """x / 127.5 - 1 of a picture's 256 levels."""
    levels = torch.arange(256)
    out = to_uint8((levels / 127.5 - 1).view(1, 1, 1, 16, 16).expand(1, 3, -1, -1, -1))
    assert torch.equal(out[0, ..., 1].flatten().long(), levels)


def test_frames_rows_columns_and_colours_keep_their_places():
    pixels = torch.zeros(1, 3, 2, 4, 5)
    pixels[0, 2, 1, 3, 0] = 1.0
    out = to_uint8(pixels)
    assert out.argmax() == ((1 * 4 + 3) * 5 + 0) * 3 + 2
