"""Decode one tile of latents through the decoder of diffusers' AutoencoderKLHunyuanVideo, with less memory and work:

- layers run over a few frames at a time, in place where they can: group norm needs only its statistics beforehand;
- a frame attends to the frames up to itself, without a mask of (frames x height x width)^2 elements;
- nearest upsampling and the convolution behind it are one convolution of the small picture, whose taps are sums of the large
  one's: 8 of 27 multiplications where time doubles, 4 of 9 where it does not.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.vae.causal_cache import ATTENTION_LATENTS, CausalCache
from diffusers_helper.vae.vae_layers import (
    Layer,
    NormSilu,
    first_taps,
    norm_silu,
    repeat_edges,
    second_taps,
    statistics,
    two_of,
    with_taps,
)

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

# Bytes worked on at a time, besides the layers' own tensors; convolutions are as fast at this size as at any other.
WORKING_BYTES = 2**27
# Working tensors that are alive together: window, its wide frame, the convolution's result and its workspace.
WORKING_TENSORS = 5

# The work on one tile: yields the share of it that is done, rising to 1, and returns the frames.
Tile = Generator[float, None, Tensor]


@dataclass
class TileDecoder:
    """Decode one tile of latents to frames.

    norm_silu: the function as written, or compiled. layout: memory format of the tensors, None for what suits the device:
    convolutions on a card want channels last, and convert any other layout before and after themselves.
    """

    vae: AutoencoderKLHunyuanVideo
    norm_silu: NormSilu = field(default=norm_silu, kw_only=True)
    layout: torch.memory_format | None = field(default=None, kw_only=True)

    def tile(self, z: Tensor, cache: CausalCache | None = None) -> Tile:
        """Decode (1, 16, T, h, w) to (1, 3, 4 T - 3, 8 h, 8 w), all in one piece; there are 4 T frames if the cache has earlier
        ones.

        Yields the share of the work that is done after each layer, and returns the frames.
        """
        net: Layer = self.vae.decoder
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

    def _resnet(self, module: Layer, x: Tensor, spare: Tensor | None, cache: CausalCache | None) -> tuple[Tensor, Tensor]:
        """Run a residual block; return its result, and memory of the result's size that is free again.

        The result lies in the memory of x where that has room. spare: such free memory from the block before, or None.
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
        module: Layer,
        x: Tensor,
        out: Tensor,
        norm: nn.GroupNorm | None = None,
        *,
        add: bool = False,
        beside: tuple[Layer, Tensor] | None = None,
        cache: CausalCache | None = None,
    ) -> None:
        """Write a causal convolution of x (1, C, T, H, W) to `out`, or add it to `out`.

        norm: group norm that x goes through first, with SiLU, or None. out may share memory with x: frames are written when
        they are read no more. beside: a convolution of kernel size 1 that runs over x itself, and where its result goes. cache:
        gives the frames before x, if there are any, and takes the last ones of x.
        """
        before = cache.get(module, x.device) if cache is not None else None
        conv, frames = module.conv, x.shape[2]
        back, edge = conv.kernel_size[0] - 1, conv.kernel_size[2] // 2
        step = frames_at_once(x[:, :, 0])
        size = x.shape[3] + 2 * edge, x.shape[4] + 2 * edge
        window = self._empty(x, x.shape[1], step + back, *size)
        statistic = None if norm is None else statistics(norm, x)
        last = 0
        for begin in range(0, frames, step):
            last = count = min(step, frames - begin)
            if begin and back:
                window[:, :, :back] = window[:, :, step:].clone()
            for number in range(count):
                place = window[:, :, back + number, edge : size[0] - edge, edge : size[1] - edge]
                if norm is None or statistic is None:
                    place.copy_(x[:, :, begin + number])
                else:
                    self.norm_silu(place, x[:, :, begin + number], *statistic, norm.eps)
            repeat_edges(window[:, :, back : back + count], edge)
            if begin == 0:
                window[:, :, :back] = window[:, :, back : back + 1] if before is None else before
            stretch = slice(begin, begin + count)
            # Computed before anything is written: the result may lie in the memory of x.
            shortcut = None if beside is None else beside[0].conv(x[:, :, stretch])
            result = conv(window[:, :, : back + count])
            if beside is not None and shortcut is not None:
                beside[1][:, :, stretch] = shortcut
            if add:
                out[:, :, stretch] += result
            else:
                out[:, :, stretch] = result
        if cache is not None:
            # The last `back` frames that the window held in the last round.
            cache.put(module, window[:, :, last : last + back])

    def _upsampled(self, module: Layer, x: Tensor, cache: CausalCache | None = None) -> Tensor:
        """Upsample x (1, C, T, H, W) by nearest neighbours and convolve it: (1, C', T', 2 H, 2 W).

        T' is T, or where time doubles 2 T - 1, because the first frame of a film stands alone in its latent; it is 2 T where
        the cache holds what came before. Raises ValueError where space does not double.
        """
        conv = module.conv.conv
        times, *space = (int(factor) for factor in module.upsample_factor)
        if space != [2, 2]:
            raise ValueError(f"upsampling by {module.upsample_factor} is not what HunyuanVideo's decoder does")
        _, _, frames, height, width = x.shape
        # Frame k becomes 2 k - 1 and 2 k. Taps end at the frame itself, so both see k - 1 and k, the earlier one k - 1 twice.
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


def layer_shares(vae: AutoencoderKLHunyuanVideo, latents: int) -> list[float]:
    """Return the share of a tile's multiplications done after each layer at which `tile` yields, without the last."""
    cells, frames = 1, latents
    net: Layer = vae.decoder

    def resnet(module: Layer) -> int:
        inner, outer = module.conv1.conv, module.conv2.conv
        return (inner.weight.numel() + outer.weight.numel()) * frames * cells

    work = [resnet(module) for module in net.mid_block.resnets]
    for block in net.up_blocks:
        work += [resnet(module) for module in block.resnets]
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            # 8 of 27 taps are left where time doubles, and 12 where it does not; the others are summed beforehand.
            taps = 8 if times == 2 else 12
            frames, cells = times * (frames - 1) + 1, cells * up * across
            work.append(upsampler.conv.conv.weight.numel() * taps // 27 * frames * cells)
    every = sum(work) + net.conv_out.conv.weight.numel() * frames * cells
    return [done / every for done in accumulate(work)]


def frames_at_once(frame: Tensor) -> int:
    """Return how many frames of this size fit into `WORKING_BYTES`; at least one."""
    return max(1, WORKING_BYTES // (frame.numel() * frame.element_size()))


def attend(module: Layer, x: Tensor, cache: CausalCache | None = None) -> None:
    """Add to x (1, C, T, H, W) its self-attention with one head; a frame attends to itself and the frames before it."""
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
    """Apply group norm to x (1, C, T, H, W)."""
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
