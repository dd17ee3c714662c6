"""Decode latents to frames through the modules of diffusers' AutoencoderKLHunyuanVideo, with less memory and work.

Time tiles and cross-fades are diffusers' default, and the numbers in a tile are the same up to rounding (`vae_tile.py`); but
tiles that add no frame are not decoded, nor (with `TileCache`) those that the stretch before has decoded.
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

# The smallest side of a tile in space, in latent cells: twice the overlap.
SMALLEST_SIDE = 16
# Latents that are decoded at a time with a `CausalCache`: about as many as a time tile has, so they take no more memory.
LATENTS_AT_ONCE = 4


@dataclass
class TileCache:
    """Keep the whole time tiles of the stretch decoded last, because the next stretch of a film shares some of them.

    Pixels lie on the CPU.
    """

    tiles: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def find(self, z: Tensor) -> Tensor | None:
        """Return the frames that were decoded from latents equal to z, or None."""
        return next((frames for known, frames in self.tiles if known.shape == z.shape and torch.equal(known, z)), None)


@dataclass
class Decoder(TileDecoder):
    """Decode latents in tiles of time and, where memory is short, of space.

    side: of the square tiles in space, in latent cells, or None for whole frames; diffusers' `enable_tiling` has 32. Each tile
    in space is normalised on its own, which gives a slightly different picture. overlap: of such tiles, in latent cells. room:
    where memory runs out, a time tile is repeated in the room that others make and with a smaller side, which then stays.
    """

    side: int | None = None
    overlap: int = 8
    room: Room = Room()

    def frames(self, z: Tensor, tile_cache: TileCache | None = None) -> Iterator[Tensor]:
        """Decode z (1, 16, T, h, w), unscaled, to frames (1, 3, n, 8 h, 8 w) in about -1..1, 4 T - 3 in all.

        Yields them in order and as soon as they are final. Raises torch.OutOfMemoryError where not even the smallest tile finds
        room.
        """
        return only_frames(self.parts(z, tile_cache))

    def parts(self, z: Tensor, tile_cache: TileCache | None = None) -> Iterator[Tensor | float]:
        """Yield the frames that `frames` does, and after each layer the share of the whole work that is done, up to 1.

        A tile that has to be repeated because memory ran out begins again at its first share.
        """
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
        # A later tile of one latent has one frame, which is dropped below: it would add nothing.
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
        """Decode a film's next latents (1, 16, T, h, w), unscaled, to frames (1, 3, n, 8 h, 8 w), in order.

        They are 4 T - 3 in all at the film's beginning, 4 T later. Raises torch.OutOfMemoryError where there is no room; the
        cache is then as the last finished piece left it.
        """
        return only_frames(self.parts_after(z, cache))

    def parts_after(self, z: Tensor, cache: CausalCache) -> Iterator[Tensor | float]:
        """Yield the frames that `frames_after` does, and the shares of the work between them that `parts` does."""
        # A film's first latent is one frame, too little for group norm's statistics: the first piece is one latent longer.
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
            # Outside of the handler, whose exception keeps everything alive that was computed.
            made, smaller = self.room.make(), smaller_side(self.side, *z.shape[-2:])
            if cache is not None:
                cache.revert()
                made = cache.move_to_host() or made
                # The cache's tensors fit no tiles of another side.
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
    """Yield the frames among the parts, without the shares of the work between them."""
    return (part for part in parts if isinstance(part, Tensor))


def scaled(tile: Tile, begin: float, end: float) -> Tile:
    """Map the shares that a tile's work yields, 0 to 1, to the range `begin` to `end`, and return its frames."""
    while True:
        try:
            share = next(tile)
        except StopIteration as last:
            return last.value
        yield begin + (end - begin) * share


def peak_bytes(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int) -> int:
    """Estimate how many bytes decoding a tile takes, without weights.

    latents, height, width: the tile's latent frames and cells. At the peak the tensors before and after an upsampling are alive
    together, and the working tensors.
    """
    kind = vae.post_quant_conv.weight.element_size()
    frames, rows, columns, most, before = latents, height, width, 0, 0
    decoder: Layer = vae.decoder
    for block in decoder.up_blocks:
        resnets = block.resnets
        channels = max(max(resnet.conv1.conv.in_channels, 2 * resnet.conv1.conv.out_channels) for resnet in resnets)
        own = channels * frames * rows * columns * kind
        # A layer works on at least one frame at a time.
        frame = resnets[0].conv1.conv.in_channels * rows * columns * kind
        most = max(most, own + before + WORKING_TENSORS * max(WORKING_BYTES, frame))
        before = own
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            frames, rows, columns = times * (frames - 1) + 1, rows * up, columns * across
    return most


def side_for(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int, budget: int | None) -> int | None:
    """Return the side of tiles in space, in latent cells, with which decoding stays within `budget` bytes.

    None: whole frames stay within it, or no budget is set. The side is never less than SMALLEST_SIDE, whatever the budget.
    """
    length = min(latents, vae.tile_sample_min_num_frames // vae.temporal_compression_ratio + 1)
    if budget is None or peak_bytes(vae, length, height, width) <= budget:
        return None
    sides = range(SMALLEST_SIDE, max(height, width), 4)
    fitting = [side for side in sides if peak_bytes(vae, length, min(side, height), min(side, width)) <= budget]
    return max(fitting, default=SMALLEST_SIDE)


def smaller_side(side: int | None, height: int, width: int) -> int | None:
    """Return the next smaller side of tiles in space, with about half the memory; None where there is none."""
    now = max(height, width) if side is None else min(side, max(height, width))
    smaller = max(SMALLEST_SIDE, now * 3 // 4 // 4 * 4)
    return smaller if smaller < now else None
