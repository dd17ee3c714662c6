"""Run the packed transformer over training batches whose samples are sections of different kinds.

It uses the same modules as `PackedTransformer.step`, without the tables that are computed once for a job or section. All
captions of a batch have the same number of tokens, so that attention needs no mask and runs its fastest kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffusers_helper.models.attention import sdpa
from diffusers_helper.models.blocks import layer_norm, modulate
from diffusers_helper.models.compiled import EAGER, Passes
from diffusers_helper.models.rope import as_tokens, pad_to_multiple, pooled, rope_field, with_still
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from eichi_utils.requests.plan import CONTEXT, lay

SECTION = 9
HISTORY = sum(CONTEXT)
LONGEST = 4


@dataclass(frozen=True)
class Times:
    """Hold the time positions of a section's parts, in latent frames.

    clean: the start picture and the latent next to the section. two, four: history latents that are patched at 2x and 4x.
    noisy: the latents to sample.
    """

    clean: tuple[int, int]
    two: range
    four: range
    noisy: range


def reverse_times(padding: int) -> Times:
    """Return the time positions of a standard-mode section. padding: sections between it and the start picture."""
    start, _, frames, after, two, four = lay(1, padding * SECTION, SECTION, *CONTEXT)
    return Times((start[0], after[0]), two, four, frames)


def forward_times() -> Times:
    """Return the time positions of an F1-mode section."""
    start, four, two, one, frames = lay(1, CONTEXT[2], CONTEXT[1], CONTEXT[0], SECTION)
    return Times((start[0], one[0]), two, four, frames)


def single_times() -> Times:
    """Return the time positions of a one-frame request without control pictures, at its default indices."""
    return Times((0, 10), range(11, 13), range(13, 29), range(9, 10))


# Positions of each kind of film section: standard mode with padding 0 to 3, then F1 mode. Their token counts are equal.
FILM_TIMES = (*(reverse_times(padding) for padding in range(LONGEST)), forward_times())


def rope_table(times: Times, height: int, width: int, config: TransformerConfig, device: torch.device) -> Tensor:
    """Return the rotary position table (2, tokens, 1, head_dim) of a section whose latents are height x width.

    Tokens are in the order 4x history, 2x history, clean, noisy.
    """
    grid, axes, theta = (height // 2, width // 2), config.rope_axes_dim, config.rope_theta
    fields = [(times.four, 4), (times.two, 2), (times.clean, 1), (times.noisy, 1)]
    parts = []
    for positions, factor in fields:
        field = rope_field(positions, *grid, axes, theta, device)
        parts.append(as_tokens(field if factor == 1 else pooled(field, factor)))
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Inputs:
    """Hold what the transformer reads for a batch of B sections.

    noisy (B, 16, T, h, w); clean (B, 16, 2, h, w), two (.., 2, ..), four (.., 16, ..); rope (2, B or 1, tokens, 1, D);
    sigma (B,); guidance (B,), times 1000; text (B, n, 96), pooled (B, 64), image (B, 16, 64).
    """

    noisy: Tensor
    clean: Tensor
    two: Tensor
    four: Tensor
    rope: Tensor
    sigma: Tensor
    guidance: Tensor
    text: Tensor
    pooled: Tensor
    image: Tensor


def patched(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Turn latents (B, channels, T, h, w) into patch embeddings (B, tokens, dim).

    The stride of the convolution is its kernel size, so that it is one matrix product.
    """
    t, h, w = conv.kernel_size
    x = pad_to_multiple(x, conv.kernel_size) if conv.kernel_size != (1, 2, 2) else x
    x = rearrange(x, "b c (t kt) (h kh) (w kw) -> b (t h w) (c kt kh kw)", kt=t, kh=h, kw=w)
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def velocity(net: PackedTransformer, inputs: Inputs, passes: Passes = EAGER) -> Tensor:
    """Predict the flow velocity (noise minus data) of a batch, (B, 16, T, h, w) in float32.

    passes: how the blocks are run, plain or compiled.
    """
    _, _, frames, height, width = inputs.noisy.shape
    times = inputs.sigma * 1000.0
    conditioning = net.time_text_embed(times, inputs.pooled, inputs.guidance)
    text = net.context_embedder(inputs.text, times, sdpa)
    text = torch.cat([net.image_projection(inputs.image), text], dim=1)
    embed = net.clean_x_embedder
    noisy = patched(net.x_embedder.proj, inputs.noisy)
    parts = ((embed.proj_4x, inputs.four), (embed.proj_2x, inputs.two), (embed.proj, inputs.clean))
    x = torch.cat([*(patched(conv, latents) for conv, latents in parts), noisy], dim=1)
    latents = x.shape[1]
    for block in net.transformer_blocks:
        tables = block.norm1(conditioning), block.norm1_context(conditioning)
        x, text = passes.dual(block, x, text, tables, inputs.rope, sdpa)
    x, rope = torch.cat([x, text], dim=1), with_still(inputs.rope, text.shape[1])
    for block in net.single_transformer_blocks:
        x = passes.single(block, x, block.norm(conditioning), rope, sdpa)
    scale, shift = net.norm_out(conditioning).unsqueeze(1).chunk(2, dim=-1)
    x = modulate(layer_norm(x[:, latents - noisy.shape[1] : latents]), shift, scale)
    patches = F.linear(x, net.proj_out.weight, net.proj_out.bias).float()
    sizes = {"t": frames, "h": height // 2, "w": width // 2, "ph": 2, "pw": 2}
    return rearrange(patches, "b (t h w) (c ph pw) -> b c t (h ph) (w pw)", **sizes)
