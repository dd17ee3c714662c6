"""Test the program's own decoding with diffusers' VAE against diffusers' own."""

from __future__ import annotations

import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_helper.memory.memory import Room
from diffusers_helper.vae import vae_tile
from diffusers_helper.vae.causal_cache import CausalCache
from diffusers_helper.vae.vae_decode import Decoder, TileCache, peak_bytes, side_for, smaller_side
from tests.diffusers_helper.inputs import returned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    """Make a VAE with one or two resnets in a stage, every kind of upsampling, and random norms."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4}
    vae = AutoencoderKLHunyuanVideo(**sizes).eval()
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight, 1.0, 0.3)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
    return vae.requires_grad_(False)


@pytest.fixture
def own(vae) -> AutoencoderKLHunyuanVideo:
    """Return the VAE, and undo afterwards what a test has switched on."""
    yield vae
    vae.use_tiling, vae.use_framewise_decoding = False, True
    vae.tile_sample_min_height = vae.tile_sample_min_width = 256
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 192


def noise(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(seed))


def whole(decoder: Decoder, z: torch.Tensor, tile_cache: TileCache | None = None) -> torch.Tensor:
    return torch.cat(list(decoder.frames(z, tile_cache)), dim=2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["channels first", "channels last"])
@pytest.mark.parametrize("working", [2**27, 1], ids=["in one go", "frame by frame"])
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 6, 10, 19])
def test_the_picture_is_diffusers(own, monkeypatch, frames, working, layout):
    """Whatever the length, however few frames are worked on at a time, and however they lie in memory."""
    monkeypatch.setattr(vae_tile, "WORKING_BYTES", working)
    z = noise(frames, 3, 2)
    assert (whole(Decoder(own, layout=layout), z) - own.decode(z).sample).abs().max() <= 1e-4


def test_channels_stay_last_from_convolution_to_convolution(own, monkeypatch):
    """A tensor that lies otherwise is changed by the card before and after every convolution, a fifth of the time."""
    seen, convolve = [], torch.nn.functional.conv3d

    def watched(x, weight, *rest, **options):
        if weight[0, 0].numel() > 1:
            seen.append(x.is_contiguous(memory_format=torch.channels_last_3d))
        return convolve(x, weight, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "conv3d", watched)
    whole(Decoder(own, layout=torch.channels_last_3d), noise(6, 3, 2))
    assert len(seen) > 20
    assert all(seen)


def test_latents_are_left_as_they_were(own):
    z = noise(6, 2, 3)
    before = z.clone()
    whole(Decoder(own), z)
    assert torch.equal(z, before)


def test_without_time_tiles_it_is_one_piece(own):
    own.use_framewise_decoding = False
    z = noise(7, 2, 3)
    assert (whole(Decoder(own), z) - own.decode(z).sample).abs().max() <= 1e-4


@pytest.mark.parametrize(("height", "width"), [(4, 13), (9, 9)])
def test_tiles_in_space_are_diffusers_too(own, height, width):
    """Tiles in space are blended where diffusers blends them, at the edges too."""
    own.enable_tiling(64, 64, None, 48, 48)
    z = noise(6, height, width)
    assert (whole(Decoder(own, side=8, overlap=2), z) - own.decode(z).sample).abs().max() <= 1e-4


def test_frames_come_as_soon_as_they_are_final(own):
    lengths = [frames.shape[2] for frames in Decoder(own).frames(noise(19, 2, 2))]
    assert lengths == [13, 12, 12, 12, 12, 12]


def counted(monkeypatch) -> list[int]:
    """Return a list that collects the latent frames of every tile that is really decoded."""
    lengths: list[int] = []
    tile = Decoder.tile
    monkeypatch.setattr(Decoder, "tile", lambda self, z, *cache: lengths.append(z.shape[2]) or tile(self, z, *cache))
    return lengths


def test_a_tile_that_adds_no_frame_is_not_decoded(own, monkeypatch):
    lengths = counted(monkeypatch)
    whole(Decoder(own), noise(10, 2, 2))
    assert lengths == [5, 5, 4]


@pytest.mark.parametrize("grows", ["front", "back"])
def test_what_the_stretch_before_decoded_is_not_decoded_again(own, monkeypatch, grows):
    """Tiles that the stretch before decoded, a third of them in two sections of nine new latents, are not decoded again."""
    film = noise(27, 2, 2)
    first, second = (film[:, :, :18], film[:, :, 9:]) if grows == "back" else (film[:, :, 9:], film[:, :, :18])
    tile_cache, decoder = TileCache(), Decoder(own)
    whole(decoder, first, tile_cache)
    lengths = counted(monkeypatch)
    made = whole(decoder, second, tile_cache)
    assert sum(lengths) == 18 and len(lengths) == 4
    assert (made - own.decode(second).sample).abs().max() <= 1e-4


def test_other_latents_are_never_taken_for_known_ones(own):
    tile_cache, decoder = TileCache(), Decoder(own)
    whole(decoder, noise(18, 2, 2), tile_cache)
    other = noise(18, 2, 2)
    other[0, 3, 5, 1, 1] += 0.01
    assert (whole(decoder, other, tile_cache) - own.decode(other).sample).abs().max() <= 1e-4


def test_only_the_last_stretch_is_kept(own):
    tile_cache = TileCache()
    for seed in range(3):
        whole(Decoder(own), noise(18, 2, 2, seed), tile_cache)
    assert len(tile_cache.tiles) == 6


class Live(TorchDispatchMode):
    """Count the bytes of living tensors, also on the meta device, where nothing is computed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return result

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)


@pytest.fixture(scope="module")
def full() -> AutoencoderKLHunyuanVideo:
    with torch.device("meta"):
        return AutoencoderKLHunyuanVideo().half().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(80, 76), (32, 32), (60, 104), (128, 128)])
def test_the_estimate_covers_what_is_allocated(full, height, width):
    """The memory estimate covers what is allocated at the published size, measured on the meta device."""
    with Live() as live:
        z = torch.empty(1, 16, 5, height, width, dtype=torch.float16, device="meta")
        assert returned(Decoder(full).tile(z)).shape == (1, 3, 17, 8 * height, 8 * width)
    assert 0.6 * peak_bytes(full, 5, height, width) <= live.peak <= peak_bytes(full, 5, height, width)


def test_whole_frames_of_640x608_fit_in_six_gibibytes(full):
    """Whole frames of 640x608 are decoded in six gibibytes; diffusers' default takes 21.6 there."""
    assert side_for(full, 19, 80, 76, 6 * 2**30) is None


def test_tiles_get_smaller_with_memory_and_never_too_small(full):
    sides = [side_for(full, 19, 128, 128, gib * 2**30) for gib in (32, 6, 3, 1, 0)]
    assert sides[0] is None and sides[1] > sides[2] > sides[3] > sides[4] == 16
    assert side_for(full, 19, 128, 128, None) is None


def test_a_single_picture_takes_less_than_a_film(full):
    assert side_for(full, 1, 128, 128, 4 * 2**30) is None and side_for(full, 5, 128, 128, 4 * 2**30)


def out_of_memory_above(monkeypatch, cells: int) -> list[int]:
    """Let tiles of more cells run out of memory; return a list that collects the cells of every tile tried."""
    tried: list[int] = []
    tile = Decoder.tile

    def limited(self, z, *cache):
        tried.append(z.shape[3] * z.shape[4])
        if tried[-1] > cells:
            raise torch.OutOfMemoryError("injected")
        return tile(self, z, *cache)

    monkeypatch.setattr(Decoder, "tile", limited)
    return tried


def test_where_memory_runs_out_tiles_get_smaller_and_nothing_is_lost(own, monkeypatch):
    """When memory runs out, other networks leave first, then tiles get smaller and stay so; finished time tiles are not
    decoded again."""
    z = noise(6, 17, 4)
    wanted = whole(Decoder(own, side=16), z)
    tried, asked = out_of_memory_above(monkeypatch, 16 * 4), []
    decoder = Decoder(own, room=Room(make=lambda: asked.append(1) or False))
    assert torch.equal(whole(decoder, z), wanted)
    assert decoder.side == 16 and len(asked) == 1
    assert tried[0] == 17 * 4 and max(tried[1:]) == 16 * 4


def test_what_others_give_up_is_tried_before_giving_up(own, monkeypatch):
    """Memory that others release is used for another try before decoding fails, even if tiles cannot become smaller."""
    z, giving = noise(2, 4, 4), [False, True]
    wanted = whole(Decoder(own), z)
    room = Room(make=giving.pop)
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        whole(Decoder(own, room=room), z)
    assert giving == []
    monkeypatch.undo()
    failures, tile = [torch.OutOfMemoryError("injected")], Decoder.tile

    def once(self, part, *cache):
        if failures:
            raise failures.pop()
        return tile(self, part, *cache)

    monkeypatch.setattr(Decoder, "tile", once)
    assert torch.equal(whole(Decoder(own, room=Room(make=lambda: True)), z), wanted)


def test_sides_get_smaller_to_the_smallest():
    sides, side = [], None
    while side := smaller_side(side, 80, 76):
        sides.append(side)
    assert sides == [60, 44, 32, 24, 16]
    assert smaller_side(None, 16, 8) is None and smaller_side(40, 18, 8) == 16


@torch.inference_mode()
def test_the_miniature_is_decoded_the_same():
    """The trained miniature is decoded as diffusers decodes it; its statistics are not those of noise."""
    folder = Path(__file__).parents[3] / "miniature" / "checkpoint" / "vae"
    trained = AutoencoderKLHunyuanVideo.from_pretrained(folder).eval()
    z = noise(6, 6, 5)
    assert (whole(Decoder(trained), z) - trained.decode(z).sample).abs().max() <= 1e-4


@pytest.mark.parametrize("side", [None, 4])
@pytest.mark.parametrize("frames", [1, 4, 10])
def test_it_says_how_far_it_is(own, frames, side):
    """Progress is reported between two time tiles too, each of which takes seconds without a card. The frames are the same."""
    z = noise(frames, 5, 3)
    parts = list(Decoder(own, side, 1).parts(z))
    shares = [part for part in parts if isinstance(part, float)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] > 0.0
    assert max(after - before for before, after in pairwise([0.0, *shares])) < 0.35
    assert len(shares) > 10
    assert torch.equal(
        torch.cat([part for part in parts if not isinstance(part, float)], dim=2), whole(Decoder(own, side, 1), z)
    )


def test_what_is_known_is_no_share_of_the_work(own):
    """Frames that are already decoded do not count in the progress: a film's second section shares a part with the first."""
    film, tile_cache = noise(10, 2, 2), TileCache()
    whole(Decoder(own), film[:, :, :7], tile_cache)
    parts = [Decoder(own).parts(film, known) for known in (None, tile_cache)]
    every, rest = ([part for part in of_one if isinstance(part, float)] for of_one in parts)
    assert rest == sorted(rest) and rest[-1] == 1.0
    # Of three time tiles the first is known.
    assert 3 * len(rest) == 2 * len(every)


def test_decoding_in_order_says_how_far_it_is(own):
    shares = [part for part in Decoder(own).parts_after(noise(9, 2, 2), CausalCache()) if isinstance(part, float)]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 15
