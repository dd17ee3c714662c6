"""Test that decoding a film in order, each latent once, gives the same as decoding all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image

from diffusers_helper.memory.memory import Room
from diffusers_helper.vae import causal_cache as module
from diffusers_helper.vae import vae_tile
from diffusers_helper.vae.causal_cache import CausalCache, causal_cache_bytes
from diffusers_helper.vae.latents import decode_after, decode_frames
from diffusers_helper.vae.vae_decode import LATENTS_AT_ONCE, Decoder, only_frames
from eichi_utils.render.conditions import pixels_of
from tests.diffusers_helper.inputs import returned

pytestmark = pytest.mark.slow

MINIATURE = Path(__file__).parents[3] / "miniature" / "checkpoint" / "vae"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4}
    return AutoencoderKLHunyuanVideo(**sizes).eval().requires_grad_(False)


@pytest.fixture
def exact(vae, monkeypatch) -> Decoder:
    """Make a decoder in float64 whose norms are over the channels of each place and time, so that they are causal too."""

    def norm_silu(place, frame, mean, variance, weight, bias, eps):
        place.copy_(F.silu((frame - frame.mean(1, keepdim=True)) / (frame.var(1, keepdim=True) + eps).sqrt()))

    def normed(norm, x):
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + norm.eps).sqrt()

    monkeypatch.setattr(vae_tile, "normed", normed)
    yield Decoder(vae.double(), norm_silu=norm_silu)
    vae.float()


def noise(frames: int, height: int = 3, width: int = 2) -> torch.Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_order(decoder: Decoder, z: torch.Tensor, lengths: list[int], cache: CausalCache | None = None) -> torch.Tensor:
    cache = cache or CausalCache()
    cache.side = decoder.side
    parts = z.split(lengths, dim=2)
    return torch.cat([frames for part in parts for frames in decoder.frames_after(part, cache)], dim=2)


@pytest.mark.parametrize("working", [2**27, 1], ids=["in one go", "frame by frame"])
@pytest.mark.parametrize("lengths", [[10], [10, 9], [6, 5, 5], [1, 1, 1, 2], [2, 7, 1]], ids=str)
def test_in_order_it_is_the_whole_film(exact, monkeypatch, lengths, working):
    """Decoding in order gives 4 T - 3 frames for any sections; only norms that look at several frames make a difference."""
    monkeypatch.setattr(vae_tile, "WORKING_BYTES", working)
    z = noise(sum(lengths))
    whole = returned(exact.tile(z))
    made = in_order(exact, z, lengths)
    assert made.shape == whole.shape and made.shape[2] == 4 * sum(lengths) - 3
    assert (made - whole).abs().max() <= 1e-10


def test_with_the_real_norms_it_is_another_picture(vae):
    z = noise(10).float()
    assert (in_order(Decoder(vae), z, [10]) - returned(Decoder(vae).tile(z))).abs().max() > 1e-3


def test_tiles_in_space_remember_each_their_own(exact):
    exact.side, exact.overlap = 8, 2
    z = noise(5, 11, 9)
    assert (in_order(exact, z, [3, 2]) - returned(exact._in_space(z))).abs().max() <= 1e-10


def test_each_latent_is_decoded_once_and_a_few_at_a_time(vae, monkeypatch):
    lengths, tile = [], Decoder.tile
    monkeypatch.setattr(Decoder, "tile", lambda self, z, cache: lengths.append(z.shape[2]) or tile(self, z, cache))
    in_order(Decoder(vae), noise(28).float(), [10, 9, 9])
    assert sum(lengths) == 28 and max(lengths) == LATENTS_AT_ONCE + 1 and lengths[0] > 1


@pytest.mark.parametrize(("height", "width"), [(3, 2), (5, 8)])
def test_what_is_remembered_is_counted(vae, monkeypatch, height, width):
    """The count of remembered bytes is exact, and attention keeps no more than agreed, however long the film."""
    monkeypatch.setattr(module, "ATTENTION_LATENTS", 6)
    monkeypatch.setattr(vae_tile, "ATTENTION_LATENTS", 6)
    cache = CausalCache()
    assert cache.empty and cache.bytes == 0
    for part in noise(17, height, width).float().split([7, 5, 5], dim=2):
        list(Decoder(vae).frames_after(part, cache))
        assert cache.bytes == causal_cache_bytes(vae, height, width)
    held = sum(tensor.untyped_storage().nbytes() for tensor in cache._known.values())
    assert held == cache.bytes and cache.move_to_host() and not cache.move_to_host()


def test_at_the_published_size_it_is_three_gibibytes():
    """The causal cache takes three gibibytes for films of 640 x 608."""
    with torch.device("meta"):
        full = AutoencoderKLHunyuanVideo().half()
    assert 2.5 * 2**30 < causal_cache_bytes(full, 80, 76) < 3.6 * 2**30


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_stretch_that_fails_is_repeated_from_the_same_past(vae, monkeypatch, at):
    """A stretch that fails is repeated from the same past, although half of its layers had changed the cache, and the cache
    leaves the card first."""
    z, calls, convolve = noise(14).float(), [], Decoder._convolve
    wanted = in_order(Decoder(vae), z, [5, 4, 5])

    def failing(self, conv, *given, **named):
        calls.append(conv)
        if calls.count(conv) == at and conv is vae.decoder.conv_out and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("injected")
        return convolve(self, conv, *given, **named)

    failed: list[int] = []
    monkeypatch.setattr(Decoder, "_convolve", failing)
    cache = CausalCache()
    if at > 4:
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "_convolve", lambda *_, **__: exec("raise torch.OutOfMemoryError('full')"))
            with pytest.raises(torch.OutOfMemoryError, match="full"):
                in_order(Decoder(vae), z, [5, 4, 5], cache)
        assert cache.empty and cache.bytes == 0
        return
    assert torch.equal(in_order(Decoder(vae), z, [5, 4, 5], cache), wanted)
    assert failed and cache.home == torch.device("cpu")


def test_where_nothing_is_free_tiles_are_small_and_the_past_lies_in_the_computers_memory(vae):
    """On a full card tiles are small and the cache of earlier frames lies in the computer's memory, for the whole film."""
    z, cache = noise(4, 17, 4).float(), CausalCache()
    first = list(only_frames(decode_after(vae, z[:, :, :2], cache, Room(lambda: 0))))
    assert cache.side == 16 and cache.home == torch.device("cpu")
    second = list(only_frames(decode_after(vae, z[:, :, 2:], cache, Room(lambda: 2**40))))
    assert cache.side == 16 and sum(frames.shape[2] for frames in first + second) == 13
    roomy = CausalCache()
    list(decode_after(vae, z[:, :, :2], roomy, Room(lambda: 2**40)))
    assert roomy.side is None and roomy.home is None


@torch.inference_mode()
def test_the_miniature_is_decoded_much_the_same(photo):
    """A trained network and a photo that moves by: 29 dB beside the usual decoding at 128 pixels, where random weights differ
    by a fifth."""
    trained = AutoencoderKLHunyuanVideo.from_pretrained(MINIATURE).eval()
    with Image.open(photo) as picture:
        pixels = pixels_of(picture.convert("RGB").resize((96, 96)))
    clip = torch.cat([pixels[..., 8:72, at : at + 64] for at in range(21)], dim=2)
    z = trained.encode(clip).latent_dist.mode() * trained.config.scaling_factor
    usual = torch.cat(list(only_frames(decode_frames(trained, z))), dim=2)
    cache = CausalCache()
    parts = [part for piece in (z[:, :, :3], z[:, :, 3:]) for part in only_frames(decode_after(trained, piece, cache))]
    made = torch.cat(parts, dim=2)
    assert made.shape == clip.shape
    decibels = 10 * torch.log10(4 / (made - usual).pow(2).mean()).item()
    assert 20 < decibels < 60
