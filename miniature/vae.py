"""Run diffusers' AutoencoderKLHunyuanVideo in training: the same modules and values, but fast for many small clips.

A picture is a clip of one frame. With replicated padding before the first frame, a causal convolution over one frame is a 2-D
convolution whose kernel is the sum over time. `encode` and `decode` therefore take (B, C, H, W) as well as (B, C, T, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

VAE_CONFIG = {"block_out_channels": (16, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8}
LATENTS = 16
# The class's default scaling factor. After `fold`, latents times this factor have unit variance.
SCALING = 0.476986
# Orthonormal axes of colours: brightness, red against blue, green against both.
OPPONENT = ((0.57735, 0.57735, 0.57735), (0.70711, 0.0, -0.70711), (-0.40825, 0.81650, -0.40825))
# Largest activation that `level` leaves in the decoder: a sixteenth of what float16 holds, since other pictures may have larger
# activations than those that were measured.
LOUDEST = 4096.0
# Logarithm of the posterior's variance, the same for all latents: the program takes the mode and never samples.
LOG_VARIANCE = -6.0


class EdgePad(torch.autograd.Function):
    """Pad by replicating the edges, with a backward pass that sums the borders instead of one atomic addition per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pads: tuple[int, ...]) -> Tensor:
        """Pad x by repeating its edge values. pads: sizes before and after, for the last axis first."""
        ctx.pads = pads
        return F.pad(x, pads, mode="replicate")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Add the gradients of the padding to those of the edges."""
        for axis, (before, after) in enumerate(zip(ctx.pads[::2], ctx.pads[1::2], strict=True)):
            dim = grad.ndim - 1 - axis
            size = grad.shape[dim] - before - after
            inner = grad.narrow(dim, before, size).clone()
            if before:
                inner.narrow(dim, 0, 1).add_(grad.narrow(dim, 0, before).sum(dim, keepdim=True))
            if after:
                inner.narrow(dim, size - 1, 1).add_(grad.narrow(dim, before + size, after).sum(dim, keepdim=True))
            grad = inner
        return grad, None


def conv(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a HunyuanVideoCausalConv3d, or a plain Conv3d of size 1, to a picture (B, C, h, w) or a clip (B, C, t, h, w)."""
    inner = getattr(module, "conv", module)
    weight, bias, stride = inner.weight, inner.bias, inner.stride
    edge = weight.shape[-1] // 2
    if x.ndim == 4:
        x = EdgePad.apply(x, (edge,) * 4) if edge else x
        return F.conv2d(x, weight.sum(2), bias, stride[1:])
    x = EdgePad.apply(x, (edge,) * 4 + (2 * edge, 0)) if edge else x
    return F.conv3d(x, weight, bias, stride)


def norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply group normalisation to any number of axes, in the input's precision."""
    return F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)


def resnet(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a residual block with its shortcut."""
    y = conv(module.conv1, F.silu(norm(module.norm1, x)))
    y = conv(module.conv2, F.silu(norm(module.norm2, y)))
    return y + (conv(module.conv_shortcut, x) if module.conv_shortcut is not None else x)


def attention(module: nn.Module, x: Tensor) -> Tensor:
    """Apply single-head attention: each cell attends to all cells of its frame and of the frames before it."""
    frames = x.shape[2] if x.ndim == 5 else 1
    flat = x.flatten(2)
    y = norm(module.group_norm, flat).transpose(1, 2)
    q, k, v = (linear(y)[:, None] for linear in (module.to_q, module.to_k, module.to_v))
    mask = None
    if frames > 1:
        number = torch.arange(frames, device=x.device).repeat_interleave(flat.shape[2] // frames)
        mask = number[:, None] >= number[None]
    y = module.to_out[0](F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])
    return (y.transpose(1, 2) + flat).view(x.shape)


def middle(module: nn.Module, x: Tensor) -> Tensor:
    """Apply the middle block: residual blocks with attention between them."""
    x = resnet(module.resnets[0], x)
    for attend, block in zip(module.attentions, module.resnets[1:], strict=True):
        x = resnet(block, attention(attend, x))
    return x


def upsampled(module: nn.Module, x: Tensor) -> Tensor:
    """Upsample pictures (B, C, h, w) or clips (B, C, t, h, w) by the module's factors, nearest neighbour, then convolve."""
    factors = tuple(int(factor) for factor in module.upsample_factor)
    if x.ndim == 4:
        return conv(module.conv, F.interpolate(x, scale_factor=factors[1:], mode="nearest"))
    # The first latent stands for one frame only, so it is not repeated in time.
    times = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(factors[0], 2)], dim=2)
    wide = times.repeat_interleave(factors[1], 3).repeat_interleave(factors[2], 4)
    return conv(module.conv, wide)


def encode(vae: AutoencoderKLHunyuanVideo, x: Tensor) -> Tensor:
    """Encode pixels to the means of the posterior, not scaled: (B, 16, h, w) of pictures, (B, 16, t, h, w) of clips."""
    net = vae.encoder
    x = conv(net.conv_in, x)
    for block in net.down_blocks:
        for module in block.resnets:
            x = resnet(module, x)
        for module in block.downsamplers or ():
            x = conv(module.conv, x)
    x = conv(net.conv_out, F.silu(norm(net.conv_norm_out, middle(net.mid_block, x))))
    return conv(vae.quant_conv, x)[:, :LATENTS]


def decode(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode unscaled latents, as `encode` returns them, to pixels."""
    net = vae.decoder
    x = middle(net.mid_block, conv(net.conv_in, conv(vae.post_quant_conv, z)))
    for block in net.up_blocks:
        for module in block.resnets:
            x = resnet(module, x)
        for module in block.upsamplers or ():
            x = upsampled(module, x)
    return conv(net.conv_out, F.silu(norm(net.conv_norm_out, x)))


def noisy(z: Tensor, most: float) -> Tensor:
    """Add noise to latents, so that the decoder tolerates the errors that sampling leaves.

    About half of the samples get none, the others up to `most` times the root mean square of each channel.
    """
    dims = (0, *range(2, z.ndim))
    size = z.detach().square().mean(dims, keepdim=True).sqrt()
    level = (torch.rand(len(z), *(1,) * (z.ndim - 1), device=z.device) * 2 - 1).clamp_min(0) * most
    return z + (level * size).to(z.dtype) * torch.randn_like(z)


def worn(z: Tensor) -> Tensor:
    """Damage latents of clips (B, C, T, h, w) in the way sampling does.

    They become softer by up to a 3x3 mean and up to 15 percent too small or too large; values beyond two standard deviations
    move up to twice as far out. In a sampled film the latents of a dark and vivid corner were 40 percent too large, more than
    the decoder had ever seen. Through the group norms they changed the whole clip, even its first frame, whose latent was
    exact.
    """
    limit = 2 / SCALING
    soft = F.avg_pool3d(F.pad(z, (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1)
    blur, gain, loud = torch.rand(3, len(z), 1, 1, 1, 1, device=z.device).to(z.dtype)
    beyond = z - z.clamp(-limit, limit)
    return torch.lerp(z, soft, blur) * (0.85 + 0.3 * gain) + loud * beyond


def opponents(difference: Tensor) -> Tensor:
    """Project colour differences (B, 3, ...) on the three opponent axes.

    It uses no constant tensor, because copying one to the card cannot be captured in a CUDA graph.
    """
    return torch.stack([sum(c * difference[:, k] for k, c in enumerate(row)) for row in OPPONENT], dim=1)


def loss(made: Tensor, true: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of decoded pixels, and the mean square error along each opponent axis, (3,), for the log.

    made, true: pixels of pictures or clips in -1..1. z: their latents, which a small term keeps from growing.
    """
    difference = made.float() - true.float()
    axes = opponents(difference)
    total = (axes[:, :1].abs().mean() + 3 * axes[:, 1:].abs().mean()) / 3
    total = total + 4 * difference.square().mean() + 1e-4 * z.float().square().mean()
    total = total + 0.3 * sum(difference.diff(dim=dim).abs().mean() for dim in (-1, -2))
    if difference.ndim == 5:
        total = total + 0.5 * difference.diff(dim=2).abs().mean()
    return total, axes.detach().square().transpose(0, 1).flatten(1).mean(1)


@torch.no_grad()
def level(vae: AutoencoderKLHunyuanVideo, exponents: Sequence[int]) -> None:
    """Divide the activations of each of the decoder's up blocks by 2**exponent, by changing the weights in place.

    The decoded pictures stay the same, because every path from there to the pixels begins with a group norm. The first block's
    exponent is 0: its input is not scaled. Training does not limit activations: they reached 3e6, and float16 ends at 65504.
    """
    blocks = vae.decoder.up_blocks
    for number, (block, exponent) in enumerate(zip(blocks, exponents, strict=True)):
        for module in block.resnets:
            module.conv2.conv.weight.mul_(2.0**-exponent)
            module.conv2.conv.bias.mul_(2.0**-exponent)
            if module.conv_shortcut is not None:
                module.conv_shortcut.conv.bias.mul_(2.0**-exponent)
        for module in block.upsamplers or ():
            following = exponents[number + 1]
            module.conv.conv.weight.mul_(2.0 ** (exponent - following))
            module.conv.conv.bias.mul_(2.0**-following)


@torch.no_grad()
def exponents_for(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> list[int]:
    """Return the exponents for `level` with which latents z (B, 16, h, w) stay below LOUDEST in every up block."""
    found, handles = [], []
    for block in vae.decoder.up_blocks:
        largest = []
        found.append(largest)

        def note(_: nn.Module, x: tuple[Tensor, ...], y: Tensor, seen: list[Tensor] = largest) -> None:
            seen.extend(t.abs().max() for t in (*x, y))

        # Inputs are measured too: that of a block's first module is what the block before has upsampled.
        handles += [module.register_forward_hook(note) for module in block.resnets]
    try:
        vae.decode(z[:, :, None])
    finally:
        for handle in handles:
            handle.remove()
    return [0, *(max(0, math.ceil(math.log2(max(values).item() / LOUDEST))) for values in found[1:])]


@torch.no_grad()
def fold(vae: AutoencoderKLHunyuanVideo, mean: Tensor, std: Tensor) -> None:
    """Change the weights, in place and exactly, so that latents times `scaling_factor` have mean 0 and standard deviation 1.

    mean, std: (16,), of each channel of the unscaled latents so far.
    """
    size = (std * vae.config.scaling_factor).double()
    first, second = vae.quant_conv, vae.post_quant_conv
    weight, bias = first.weight[:LATENTS].double(), first.bias[:LATENTS].double()
    first.weight[:LATENTS] = (weight / size.view(-1, 1, 1, 1, 1)).to(first.weight)
    first.bias[:LATENTS] = ((bias - mean) / size).to(first.bias)
    first.weight[LATENTS:] = 0
    first.bias[LATENTS:] = LOG_VARIANCE
    weight = second.weight.double()
    second.bias += (weight.flatten(1) @ mean.double()).to(second.bias)
    second.weight.copy_(weight * size.view(1, -1, 1, 1, 1))
