"""Latents to frames through diffusers' AutoencoderKLHunyuanVideo: its modules and its picture, with less memory and work.

Same time tiles and cross-fades as diffusers' default, and in a tile the same numbers up to rounding, but
- layers run over a few frames at a time, in place where they can: group norm needs only its statistics beforehand;
- a frame attends to the frames up to itself, without a mask of (frames x height x width)^2 elements;
- nearest upsampling and the convolution behind it are one convolution of the small picture, whose taps are sums of the large
  one's: 8 of 27 multiplications where time doubles, 4 of 9 where it does not;
- tiles that add no frame are not decoded, nor (with `TileCache`) those that the stretch before has decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.memory.memory import Room
from diffusers_helper.vae.causal_cache import ATTENTION_LATENTS, CausalCache
from diffusers_helper.vae.vae_layers import (
    NormSilu,
    faded,
    first_taps,
    norm_silu,
    repeat_edges,
    second_taps,
    statistics,
    two_of,
    with_taps,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo

logger = logging.getLogger(__name__)

# What is worked on at a time besides the layers' own tensors; convolutions are as fast at this size as at any other.
WORKING_BYTES = 2**27
# Working tensors that are alive together: window, its wide frame, the convolution's result and its workspace.
WORKING_TENSORS = 5
# Of tiles in space, in latent cells: twice the overlap.
SMALLEST_SIDE = 16
# Latents that are decoded at a time where what lies before is remembered: as many frames as a time tile takes memory for.
LATENTS_AT_ONCE = 4

# What one tile's work says on its way: the share of itself that is done, rising to 1. It returns the frames.
Tile = Generator[float, None, Tensor]


@dataclass
class TileCache:
    """Whole time tiles of the stretch decoded last: the next stretch of a film shares some with it. Pixels on the CPU."""

    tiles: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def find(self, z: Tensor) -> Tensor | None:
        """The frames of latents equal to z, or None."""
        return next((frames for known, frames in self.tiles if known.shape == z.shape and torch.equal(known, z)), None)


@dataclass
class Decoder:
    """How to decode. side: of the square tiles in space, in latent cells, or None for whole frames; diffusers' `enable_tiling`
    has 32. Tiles in space are normalised each on its own: a slightly different picture. overlap: of such tiles, in cells.
    fill: as `norm_silu`, or compiled. room: where memory runs out, a time tile is repeated in what others give up and with a smaller
    side, which then stays. layout: of the tensors in memory, None for what suits the device: convolutions of a card want
    channels last, and change any other layout before and after themselves."""

    vae: AutoencoderKLHunyuanVideo
    side: int | None = None
    overlap: int = 8
    norm_silu: NormSilu = norm_silu
    room: Room = Room()
    layout: torch.memory_format | None = None

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
        length, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
        if not vae.use_framewise_decoding or z.shape[2] <= length:
            yield (yield from self._tile(z, tile_cache))
            return
        fade = vae.tile_sample_min_num_frames - vae.tile_sample_stride_num_frames
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

    def tile(self, z: Tensor, cache: CausalCache | None = None) -> Tile:
        """(1, 16, T, h, w) -> (1, 3, 4 T - 3, 8 h, 8 w), all in one piece; 4 T frames where the cache has something."""
        net = self.vae.decoder
        shares = iter(layer_shares(self.vae, z.shape[2]))
        z = self.vae.post_quant_conv(z)
        x = self._empty(z, net.conv_in.conv.out_channels, *z.shape[2:])
        self._convolve(net.conv_in, z, x, cache=cache)
        middle, first, spare = net.mid_block, net.mid_block.resnets[0], None
        x, spare = self._resnet(first, x, spare, cache)
        yield next(shares)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            if attention is not None:
                attend(attention, x, cache)
            x, spare = self._resnet(resnet, x, spare, cache)
            yield next(shares)
        for block in net.up_blocks:
            for resnet in block.resnets:
                x, spare = self._resnet(resnet, x, spare, cache)
                yield next(shares)
            for upsampler in block.upsamplers or ():
                spare = None
                x = self._upsampled(upsampler, x, cache)
                yield next(shares)
        pixels = self._empty(x, net.conv_out.conv.out_channels, *x.shape[2:])
        self._convolve(net.conv_out, x, pixels, net.conv_norm_out, cache=cache)
        yield 1.0
        return pixels

    def _resnet(self, module: nn.Module, x: Tensor, spare: Tensor | None, cache: CausalCache | None) -> tuple[Tensor, Tensor]:
        """The block's result, in the memory of x where that has room, and memory of its size that is free again.

        spare: such memory from the block before, or None.
        """
        channels = module.conv1.conv.out_channels
        if module.conv_shortcut is None:
            out, inner = x, self._empty(x, *x.shape[1:]) if spare is None else spare
            self._convolve(module.conv1, x, inner, module.norm1, cache=cache)
        else:
            room = x if x.shape[1] >= 2 * channels else self._empty(x, 2 * channels, *x.shape[2:])
            out, inner = two_of(room, channels)
            self._convolve(module.conv1, x, inner, module.norm1, beside=(module.conv_shortcut, out), cache=cache)
        self._convolve(module.conv2, inner, out, module.norm2, add=True, cache=cache)
        return out, inner

    def _convolve(
        self,
        module: nn.Module,
        x: Tensor,
        out: Tensor,
        norm: nn.GroupNorm | None = None,
        *,
        add: bool = False,
        beside: tuple[nn.Module, Tensor] | None = None,
        cache: CausalCache | None = None,
    ) -> None:
        """A causal convolution of x (1, C, T, H, W), normalised and through SiLU where norm is given, into out or added to it.

        out may share memory with x: frames are written when they are read no more. beside: a convolution of size 1 of x as it
        is, and where its result goes. cache: where the frames before x are, if there are any, and where its last ones go.
        """
        before = cache.get(module, x.device) if cache is not None else None
        conv, frames = module.conv, x.shape[2]
        back, edge = conv.kernel_size[0] - 1, conv.kernel_size[2] // 2
        step = frames_at_once(x[:, :, 0])
        size = x.shape[3] + 2 * edge, x.shape[4] + 2 * edge
        window = self._empty(x, x.shape[1], step + back, *size)
        known = statistics(norm, x) if norm is not None else ()
        for begin in range(0, frames, step):
            count = min(step, frames - begin)
            if begin and back:
                window[:, :, :back] = window[:, :, step:].clone()
            for number in range(count):
                place = window[:, :, back + number, edge : size[0] - edge, edge : size[1] - edge]
                if norm is None:
                    place.copy_(x[:, :, begin + number])
                else:
                    self.norm_silu(place, x[:, :, begin + number], *known, norm.eps)
            repeat_edges(window[:, :, back : back + count], edge)
            if begin == 0:
                window[:, :, :back] = window[:, :, back : back + 1] if before is None else before
            stretch = slice(begin, begin + count)
            if beside is not None:
                # Before anything is written: the result's channels may be the input's.
                shortcut = beside[0].conv(x[:, :, stretch])
            result = conv(window[:, :, : back + count])
            if beside is not None:
                beside[1][:, :, stretch] = shortcut
            if add:
                out[:, :, stretch] += result
            else:
                out[:, :, stretch] = result
        if cache is not None:
            cache.put(module, window[:, :, count : count + back])

    def _upsampled(self, module: nn.Module, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        """(1, C, T, H, W) -> (1, C', T', 2 H, 2 W): nearest neighbours and the convolution. T' is T, or 2 T - 1: the first
        frame of a film stands alone in its latent, and every other becomes two; 2 T where the cache has something."""
        conv = module.conv.conv
        times, *space = (int(factor) for factor in module.upsample_factor)
        if space != [2, 2]:
            raise ValueError(f"upsampling by {module.upsample_factor} is not what HunyuanVideo's decoder does")
        _, _, frames, height, width = x.shape
        # Frame k becomes 2 k - 1 and 2 k, whose taps end at themselves: both see k - 1 and k, the earlier one k - 1 twice.
        in_time = (None,) if times == 1 else (second_taps, first_taps)
        in_space = list(product((first_taps, second_taps), repeat=2))
        kernels = [torch.cat([with_taps(conv.weight.float(), (time, *case)) for case in in_space]) for time in in_time]
        kernels = [kernel.to(conv.weight.dtype) for kernel in kernels]
        bias = conv.bias.repeat(len(in_space))
        back = kernels[0].shape[2] - 1
        before = cache.get(module, x.device) if cache is not None else None
        alone = 0 if before is not None else times - 1

        def at(t: int) -> Tensor:
            return x[:, :, max(0, t)] if t >= 0 or before is None else before[:, :, t]

        if cache is not None:
            cache.put(module, torch.stack([at(t) for t in range(frames - back, frames)], dim=2))
        out = self._empty(x, conv.out_channels, times * frames - alone, 2 * height, 2 * width)
        step = frames_at_once(out[:, :, 0])
        for begin in range(0, frames, step):
            count = min(step, frames - begin)
            window = self._empty(x, x.shape[1], back + count, height + 2, width + 2)
            for number, t in enumerate(range(begin - back, begin + count)):
                window[:, :, number, 1:-1, 1:-1] = at(t)
            repeat_edges(window, 1)
            for time, kernel in enumerate(kernels):
                first = times * begin - alone + time
                made = F.conv3d(window, kernel, bias)
                if first < 0:
                    made, first = made[:, :, 1:], first + times
                places = slice(first, first + times * made.shape[2], times)
                for part, (row, column) in zip(made.chunk(len(in_space), dim=1), product((0, 1), repeat=2), strict=True):
                    out[:, :, places, row::2, column::2] = part[..., row : row + height, column : column + width]
        return out

    def _empty(self, like: Tensor, *size: int) -> Tensor:
        layout = (torch.channels_last_3d if like.is_cuda else torch.contiguous_format) if self.layout is None else self.layout
        return torch.empty(1, *size, dtype=like.dtype, device=like.device, memory_format=layout)


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


def layer_shares(vae: AutoencoderKLHunyuanVideo, latents: int) -> list[float]:
    """The share of a tile's multiplications that is done after each layer that `Decoder.tile` stops at; without the last."""
    net, cells, frames = vae.decoder, 1, latents

    def resnet(module: nn.Module) -> int:
        inner, outer = module.conv1.conv, module.conv2.conv
        return (inner.weight.numel() + outer.weight.numel()) * frames * cells

    work = [resnet(module) for module in net.mid_block.resnets]
    for block in net.up_blocks:
        work += [resnet(module) for module in block.resnets]
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            # Of 27 taps 8 are left where time doubles, and 12 where it does not; the others are sums made beforehand.
            taps = 8 if times == 2 else 12
            frames, cells = times * (frames - 1) + 1, cells * up * across
            work.append(upsampler.conv.conv.weight.numel() * taps // 27 * frames * cells)
    every = sum(work) + net.conv_out.conv.weight.numel() * frames * cells
    return [done / every for done in accumulate(work)]


def frames_at_once(frame: Tensor) -> int:
    return max(1, WORKING_BYTES // (frame.numel() * frame.element_size()))


def attend(module: nn.Module, x: Tensor, cache: CausalCache | None = None) -> None:
    """Add to x (1, C, T, H, W) its self-attention with one head; a frame looks at itself and the frames before it."""
    frames, cells = x.shape[2], x.shape[3] * x.shape[4]
    tokens = normed(module.group_norm, x).flatten(2).transpose(1, 2)
    q, k, v = (linear(tokens)[:, None] for linear in (module.to_q, module.to_k, module.to_v))
    known = 0
    if cache is not None:
        before = cache.get(module, x.device)
        if before is not None:
            known = before.shape[3]
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(before, (k, v), strict=True))
        cache.put(module, torch.stack([k[:, :, -ATTENTION_LATENTS * cells :], v[:, :, -ATTENTION_LATENTS * cells :]]))
    for t in range(frames):
        begin, end = t * cells, known + (t + 1) * cells
        out = F.scaled_dot_product_attention(q[:, :, begin : begin + cells], k[:, :, :end], v[:, :, :end])[:, 0]
        x[:, :, t] += module.to_out[0](out).transpose(1, 2).unflatten(2, x.shape[3:])


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def peak_bytes(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int) -> int:
    """Estimate of what decoding a tile of so many latent frames and cells takes, without weights: the two largest tensors that
    are alive together, a block's and the upsampled one's, and what is worked on."""
    kind = vae.post_quant_conv.weight.element_size()
    frames, rows, columns, most, before = latents, height, width, 0, 0
    for block in vae.decoder.up_blocks:
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
