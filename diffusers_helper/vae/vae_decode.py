"""Latents to frames through diffusers' AutoencoderKLHunyuanVideo: its modules and its picture, with less memory and work.

Same time tiles and cross-fades as diffusers' default, and in a tile the same numbers up to rounding (`vae_tile.py`), but tiles
that add no frame are not decoded, nor (with `TileCache`) those that the stretch before has decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusers_helper.memory.memory import Room
from diffusers_helper.vae.causal_cache import CausalCache
from diffusers_helper.vae.vae_layers import (
    Layer,
    faded,
)
from diffusers_helper.vae.vae_tile import WORKING_BYTES, WORKING_TENSORS, Tile, TileDecoder

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

logger = logging.getLogger(__name__)

# Of tiles in space, in latent cells: twice the overlap.
SMALLEST_SIDE = 16
# Latents that are decoded at a time where what lies before is remembered: as many frames as a time tile takes memory for.
LATENTS_AT_ONCE = 4


@dataclass
class TileCache:
    """Whole time tiles of the stretch decoded last: the next stretch of a film shares some with it. Pixels on the CPU."""

    tiles: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def find(self, z: Tensor) -> Tensor | None:
        """The frames of latents equal to z, or None."""
        return next((frames for known, frames in self.tiles if known.shape == z.shape and torch.equal(known, z)), None)


@dataclass
class Decoder(TileDecoder):
    """How to decode. side: of the square tiles in space, in latent cells, or None for whole frames; diffusers' `enable_tiling`
    has 32. Tiles in space are normalised each on its own: a slightly different picture. overlap: of such tiles, in cells.
    room: where memory runs out, a time tile is repeated in what others give up and with a smaller side, which then stays."""

    side: int | None = None
    overlap: int = 8
    room: Room = Room()

    def frames(self, z: Tensor, tile_cache: TileCache | None = None) -> Iterator[Tensor]:
        """z (1, 16, T, h, w), unscaled -> (1, 3, n, 8 h, 8 w) in about -1..1, in order and as soon as final, 4 T - 3 in all.

        Raises torch.OutOfMemoryError where not even the smallest tile finds room.
        """
        return only_frames(self.parts(z, tile_cache))

    def parts(self, z: Tensor, tile_cache: TileCache | None = None) -> Iterator[Tensor | float]:
        """The same frames, and whenever a layer is done the share of the whole work that is, up to 1; what has to be
        repeated because memory ran out begins again where it began."""
        vae = self.vae
        ratio = vae.temporal_compression_ratio
        most, new = int(vae.tile_sample_min_num_frames), int(vae.tile_sample_stride_num_frames)
        length, stride = most // ratio, new // ratio
        if not vae.use_framewise_decoding or z.shape[2] <= length:
            yield (yield from self._tile(z, tile_cache))
            return
        fade = most - new
        before, used = None, []
        tiles = [(begin, z[:, :, begin : begin + length + 1]) for begin in range(0, z.shape[2], stride)]
        # The one frame of such a tile is dropped below, so it would add none.
        tiles = [(begin, part) for begin, part in tiles if begin == 0 or part.shape[2] > 1]
        work = [0 if tile_cache is not None and tile_cache.find(part) is not None else part.shape[2] for _, part in tiles]
        for number, (begin, part) in enumerate(tiles):
            done, after = (sum(work[:end]) / max(1, sum(work)) for end in (number, number + 1))
            frames = yield from scaled(self._tile(part, tile_cache, used), done, after)
            if before is not None:
                frames = faded(before, frames[:, :, 1:], fade, 2)
            yield frames[:, :, : stride * ratio + (begin == 0)]
            before = frames
        if tile_cache is not None:
            tile_cache.tiles = used

    def frames_after(self, z: Tensor, cache: CausalCache) -> Iterator[Tensor]:
        """The film's next latents (1, 16, T, h, w), unscaled -> (1, 3, n, 8 h, 8 w), in order: 4 T - 3 in all at its beginning,
        4 T later. Raises torch.OutOfMemoryError where there is no room; the cache is then that of the last piece."""
        return only_frames(self.parts_after(z, cache))

    def parts_after(self, z: Tensor, cache: CausalCache) -> Iterator[Tensor | float]:
        """The same frames, with shares between them as `parts` has."""
        # The first latent is one frame: too little for statistics of its own.
        begin, end = 0, LATENTS_AT_ONCE + cache.empty
        while begin < z.shape[2]:
            shares = begin / z.shape[2], min(end, z.shape[2]) / z.shape[2]
            yield (yield from scaled(self._in_room(z[:, :, begin:end], cache), *shares))
            begin, end = end, end + LATENTS_AT_ONCE

    def _tile(self, z: Tensor, tile_cache: TileCache | None, used: list[tuple[Tensor, Tensor]] | None = None) -> Tile:
        found = tile_cache.find(z) if tile_cache is not None else None
        frames = (yield from self._in_room(z)) if found is None else found.to(z.device)
        if tile_cache is not None and used is not None:
            used.append((z.clone(), frames.cpu() if found is None else found))
        return frames

    def _in_room(self, z: Tensor, cache: CausalCache | None = None) -> Tile:
        while True:
            try:
                frames = yield from self._in_space(z, cache)
            except torch.OutOfMemoryError as error:
                short = error.with_traceback(None)
            else:
                if cache is not None:
                    cache.commit()
                return frames
            # Outside of the handler, which holds everything that was computed.
            made, smaller = self.room.make(), smaller_side(self.side, *z.shape[-2:])
            if cache is not None:
                cache.revert()
                made = cache.move_to_host() or made
                # What is remembered fits no other tiles.
                smaller = smaller if cache.empty else None
                cache.side = smaller or cache.side
            if smaller is None and not made:
                raise short
            self.side = smaller or self.side
            logger.warning("memory ran out on the card: decoding goes on in tiles of %s latent cells", self.side or "all")

    def _in_space(self, z: Tensor, cache: CausalCache | None = None) -> Tile:
        height, width = z.shape[-2:]
        if self.side is None or max(height, width) <= self.side:
            return (yield from self.tile(z, cache))
        ratio = self.vae.spatial_compression_ratio
        stride, fade = self.side - self.overlap, self.overlap * ratio
        rows: list[Tensor] = []
        above: list[Tensor] = []
        count, done = len(range(0, height, stride)) * len(range(0, width, stride)), 0
        for y in range(0, height, stride):
            row: list[Tensor] = []
            for x in range(0, width, stride):
                if cache is not None:
                    cache.place = y, x
                part = self.tile(z[..., y : y + self.side, x : x + self.side], cache)
                tile = yield from scaled(part, done / count, (done + 1) / count)
                done += 1
                if above:
                    tile = faded(above[len(row)], tile, fade, 3)
                if row:
                    tile = faded(row[-1], tile, fade, 4)
                row.append(tile)
            rows.append(torch.cat([tile[..., : stride * ratio, : stride * ratio] for tile in row], dim=-1))
            above = row
        return torch.cat(rows, dim=-2)


def only_frames(parts: Iterable[Tensor | float]) -> Iterator[Tensor]:
    """Without the shares between them."""
    return (part for part in parts if isinstance(part, Tensor))


def scaled(tile: Tile, begin: float, end: float) -> Tile:
    """A tile's work as the part of a larger one from the share `begin` to `end`."""
    while True:
        try:
            share = next(tile)
        except StopIteration as last:
            return last.value
        yield begin + (end - begin) * share


def peak_bytes(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int) -> int:
    """Estimate of what decoding a tile of so many latent frames and cells takes, without weights: the two largest tensors that
    are alive together, a block's and the upsampled one's, and what is worked on."""
    kind = vae.post_quant_conv.weight.element_size()
    frames, rows, columns, most, before = latents, height, width, 0, 0
    decoder: Layer = vae.decoder
    for block in decoder.up_blocks:
        resnets = block.resnets
        channels = max(max(resnet.conv1.conv.in_channels, 2 * resnet.conv1.conv.out_channels) for resnet in resnets)
        own = channels * frames * rows * columns * kind
        # At least a frame is worked on at a time.
        frame = resnets[0].conv1.conv.in_channels * rows * columns * kind
        most = max(most, own + before + WORKING_TENSORS * max(WORKING_BYTES, frame))
        before = own
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            frames, rows, columns = times * (frames - 1) + 1, rows * up, columns * across
    return most


def side_for(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int, budget: int | None) -> int | None:
    """The side of tiles in space, in latent cells, with which decoding stays in `budget` bytes: None where whole frames do or
    no budget is set; never less than the smallest, whatever the budget."""
    length = min(latents, vae.tile_sample_min_num_frames // vae.temporal_compression_ratio + 1)
    if budget is None or peak_bytes(vae, length, height, width) <= budget:
        return None
    sides = range(SMALLEST_SIDE, max(height, width), 4)
    fitting = [side for side in sides if peak_bytes(vae, length, min(side, height), min(side, width)) <= budget]
    return max(fitting, default=SMALLEST_SIDE)


def smaller_side(side: int | None, height: int, width: int) -> int | None:
    """The next smaller side of tiles, with about half the memory; None where there is none."""
    now = max(height, width) if side is None else min(side, max(height, width))
    smaller = max(SMALLEST_SIDE, now * 3 // 4 // 4 * 4)
    return smaller if smaller < now else None
