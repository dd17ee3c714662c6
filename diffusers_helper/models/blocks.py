"""Define the blocks of the packed transformer, module for module under the names of the hub's checkpoint.

Modulation is not computed in the forward passes: the transformer makes tables of it for all steps before the loop, from the
blocks' `Modulation` layers, and a forward pass takes one step's row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusers_helper.models.attention import Kernel
from diffusers_helper.models.fused import Fused, fuse, project
from diffusers_helper.models.linear import Linear
from diffusers_helper.models.module_list import ModuleList
from diffusers_helper.models.narrow import Product
from diffusers_helper.models.rope import rotate

EPS = 1e-6
FREQUENCIES = 256


def layer_norm(x: Tensor) -> Tensor:
    """Apply layer norm without parameters to x (..., dim)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale x (..., dim) by 1 + scale, and add shift."""
    return x * (1 + scale) + shift


def gelu(x: Tensor) -> Tensor:
    """Apply GELU in its tanh form.

    Compiled it is written with a sigmoid, 1 + tanh(u) = 2 sigmoid(2 u): tanh is some thirty instructions of a card, and a
    kernel that also looks for the largest number of a row computes it twice.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    wide = x.float()
    return (wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide))).to(x.dtype)


def gelu_bound(x: Tensor) -> Tensor:
    """Return, for x (..., n), numbers (..., 1) that the absolute values of `gelu(x)` do not exceed.

    They are close to the largest where that is large: GELU is never above a positive number, and never below -0.17004. With
    them a kernel that needs a row's largest number before its first need not compute GELU twice.
    """
    return x.amax(dim=-1, keepdim=True).clamp_min(0.171)


class RMSNorm(nn.Module):
    """Normalise by the root mean square over the head dimension, in float32; the result has the weight's dtype."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., dim) to a mean square of 1, times the weight."""
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + EPS)).to(self.weight.dtype) * self.weight


class MLPEmbedder(nn.Module):
    """Embed vectors by a linear layer, SiLU and a linear layer."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1 = Linear(in_dim, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed x (..., in_dim) as (..., dim)."""
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoid(t: Tensor) -> Tensor:
    """Embed t (n,) as (n, 256), float32: cosines, then sines, at 128 frequencies from 1 to 1/10000."""
    half = FREQUENCIES // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * exponent.exp()[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Conditioning(nn.Module):
    """Embed time, pooled text and, where the checkpoint has it, distilled guidance into one vector a step."""

    def __init__(self, text_dim: int, dim: int, guidance: bool):
        super().__init__()
        self.timestep_embedder = MLPEmbedder(FREQUENCIES, dim)
        if guidance:
            self.guidance_embedder = MLPEmbedder(FREQUENCIES, dim)
        self.text_embedder = MLPEmbedder(text_dim, dim)

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Return the conditioning (n, dim) of timestep (n,), pooled (1, text_dim) and guidance (1,)."""
        embedding = self.timestep_embedder(sinusoid(timestep).to(pooled.dtype))
        if guidance is not None:
            embedding = embedding + self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        return embedding + self.text_embedder(pooled)


class GatedProjection(nn.Module):
    """Hold the input projection of a feed-forward under the name `proj`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.proj = Linear(dim, hidden)


class FeedForward(nn.Module):
    """Apply two linear layers with a non-linearity between them.

    `net.1` stands in the place of a dropout, which has no parameters.
    """

    def __init__(self, dim: int, ratio: float, gelu: bool = True):
        super().__init__()
        hidden = int(dim * ratio)
        self.gelu = gelu
        self.net: ModuleList[Any] = ModuleList([GatedProjection(dim, hidden), nn.Identity(), Linear(hidden, dim)])

    def forward(self, x: Tensor, product: Product | None = None) -> Tensor:
        """Return (..., dim) for x (..., dim). product: as in `Linear.forward`."""
        x = self.net[0].proj(x, product)
        if not self.gelu:
            return self.net[2](F.silu(x), product)
        return self.net[2](gelu(x), product, gelu_bound(x) if self.net[2].narrows(product) else None)


class Attention(nn.Module):
    """Hold the projections and norms of an attention; which of them exist depends on the block."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = True, out: bool = True, text: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (Linear(dim, dim) for _ in range(3))
        if out:
            self.to_out: ModuleList[Linear] = ModuleList([Linear(dim, dim)])
        if qk_norm:
            self.norm_q, self.norm_k = RMSNorm(dim // heads), RMSNorm(dim // heads)
        if text:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(dim, dim) for _ in range(3))
            self.to_add_out = Linear(dim, dim)
            self.norm_added_q, self.norm_added_k = RMSNorm(dim // heads), RMSNorm(dim // heads)

    def split(self, x: Tensor) -> Tensor:
        """Split x (batch, tokens, dim) into heads: (batch, tokens, heads, head_dim)."""
        return x.unflatten(-1, (self.heads, -1))

    def latent_layers(self) -> tuple[Linear, ...]:
        """Return the layers that make queries, keys and values of latent tokens."""
        return self.to_q, self.to_k, self.to_v

    def text_layers(self) -> tuple[Linear, ...]:
        """Return the layers that make queries, keys and values of text tokens."""
        return self.add_q_proj, self.add_k_proj, self.add_v_proj

    def latent_qkv(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split projections of latent tokens into heads, and normalise queries and keys."""
        return self.norm_q(self.split(q)), self.norm_k(self.split(k)), self.split(v)

    def text_qkv(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split projections of text tokens into heads, and normalise queries and keys."""
        return self.norm_added_q(self.split(q)), self.norm_added_k(self.split(k)), self.split(v)


class Modulation(nn.Module):
    """Turn the conditioning into shifts, scales and gates by one linear layer."""

    def __init__(self, dim: int, parts: int):
        super().__init__()
        self.linear = Linear(dim, parts * dim)

    def forward(self, conditioning: Tensor) -> Tensor:
        """Return shifts, scales and gates, (n, parts * dim), of the conditioning (n, dim)."""
        return self.linear(F.silu(conditioning))


class RefinerBlock(nn.Module):
    """Refine text tokens by self-attention and a feed-forward, with gates from the conditioning.

    Norms are affine here, and nothing is masked: text arrives cropped to its valid tokens.
    """

    def __init__(self, dim: int, heads: int, ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, qk_norm=False)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.ff = FeedForward(dim, ratio, gelu=False)
        self.norm_out = Modulation(dim, 2)

    def forward(self, x: Tensor, conditioning: Tensor, attend: Kernel) -> Tensor:
        """Return the refined tokens of x (n, tokens, dim). conditioning: (n, dim)."""
        attn = self.attn
        gate_msa, gate_mlp = self.norm_out(conditioning).unsqueeze(1).chunk(2, dim=-1)
        y = self.norm1(x)
        out = attend(*(attn.split(linear(y)) for linear in attn.latent_layers()))
        x = x + attn.to_out[0](out.flatten(2)) * gate_msa
        return x + self.ff(self.norm2(x)) * gate_mlp


class TokenRefiner(nn.Module):
    """Hold the refiner's blocks under the name of the hub's checkpoint."""

    def __init__(self, dim: int, heads: int, ratio: float, layers: int):
        super().__init__()
        self.refiner_blocks: ModuleList[RefinerBlock] = ModuleList(RefinerBlock(dim, heads, ratio) for _ in range(layers))


class TextRefiner(nn.Module):
    """Project and refine the language model's tokens, once for every step because the refiner looks at the time."""

    def __init__(self, text_dim: int, dim: int, heads: int, ratio: float, layers: int):
        super().__init__()
        self.time_text_embed = Conditioning(text_dim, dim, guidance=False)
        self.proj_in = Linear(text_dim, dim)
        self.token_refiner = TokenRefiner(dim, heads, ratio, layers)

    def forward(self, text: Tensor, timesteps: Tensor, attend: Kernel) -> Tensor:
        """Return refined tokens (n, tokens, dim) of text (1, tokens, text_dim) at timesteps (n,)."""
        mean = (text.float().sum(dim=1) / text.shape[1]).to(text.dtype)
        conditioning = self.time_text_embed(timesteps, mean)
        x = self.proj_in(text).expand(len(timesteps), -1, -1)
        for block in self.token_refiner.refiner_blocks:
            x = block(x, conditioning, attend)
        return x


class DualBlock(nn.Module):
    """Process latent and text tokens with weights of their own and one joint attention."""

    def __init__(self, dim: int, heads: int, ratio: float):
        super().__init__()
        self.norm1, self.norm1_context = Modulation(dim, 6), Modulation(dim, 6)
        self.attn = Attention(dim, heads, text=True)
        self.ff, self.ff_context = FeedForward(dim, ratio), FeedForward(dim, ratio)

    def together(self) -> tuple[tuple[Linear, ...], ...]:
        """Return groups of layers that see the same input, in the order of `fused`."""
        return self.attn.latent_layers(), self.attn.text_layers()

    def fused(self) -> tuple[Fused | None, ...]:
        """Return a view over the weights of each group of `together`, where they lie now, or None."""
        return tuple(fuse(layers) for layers in self.together())

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        tables: tuple[Tensor, Tensor],
        rope: Tensor,
        attend: Kernel,
        fused: tuple[Fused | None, ...] = (None, None),
        product: Product | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return x (1, latent tokens, dim) and text (1, text tokens, dim) as the block changes them.

        tables: this step's rows, each (1, 6 dim). rope: of the latent tokens. fused: as `fused` gives it. product: as in
        `Linear.forward`.
        """
        attn, count = self.attn, x.shape[1]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = tables[0].unsqueeze(1).chunk(6, dim=-1)
        t_shift, t_scale, t_gate, t_shift_mlp, t_scale_mlp, t_gate_mlp = tables[1].unsqueeze(1).chunk(6, dim=-1)

        q, k, v = attn.latent_qkv(*project(modulate(layer_norm(x), shift, scale), attn.latent_layers(), fused[0], product))
        latent_qkv = rotate(q, rope), rotate(k, rope), v
        text_in = modulate(layer_norm(text), t_shift, t_scale)
        text_qkv = attn.text_qkv(*project(text_in, attn.text_layers(), fused[1], product))
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(latent_qkv, text_qkv, strict=True))
        # Freed, so that the parts do not take memory during the attention beside what they were joined to.
        del latent_qkv, text_in, text_qkv
        out = attend(q, k, v).flatten(2)

        x = x + attn.to_out[0](out[:, :count], product) * gate
        text = text + attn.to_add_out(out[:, count:], product) * t_gate
        x = x + self.ff(modulate(layer_norm(x), shift_mlp, scale_mlp), product) * gate_mlp
        text = text + self.ff_context(modulate(layer_norm(text), t_shift_mlp, t_scale_mlp), product) * t_gate_mlp
        return x, text


class SingleBlock(nn.Module):
    """Process all tokens in one stream, with attention and feed-forward in parallel."""

    def __init__(self, dim: int, heads: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.norm = Modulation(dim, 3)
        self.attn = Attention(dim, heads, out=False)
        self.proj_mlp = Linear(dim, hidden)
        self.proj_out = Linear(dim + hidden, dim)

    def together(self) -> tuple[tuple[Linear, ...], ...]:
        """Return groups of layers that see the same input, in the order of `fused`."""
        return ((*self.attn.latent_layers(), self.proj_mlp),)

    def fused(self) -> tuple[Fused | None, ...]:
        """Return a view over the weights of each group of `together`, where they lie now, or None."""
        return tuple(fuse(layers) for layers in self.together())

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        rope: Tensor,
        attend: Kernel,
        fused: tuple[Fused | None, ...] = (None,),
        product: Product | None = None,
    ) -> Tensor:
        """Return x (1, tokens, dim) as the block changes it.

        rope: of all tokens. table: this step's row, (1, 3 dim). fused, product: as in `DualBlock`.
        """
        shift, scale, gate = table.unsqueeze(1).chunk(3, dim=-1)
        *qkv, mlp = project(modulate(layer_norm(x), shift, scale), self.together()[0], fused[0], product)
        mlp = gelu(mlp)
        q, k, v = self.attn.latent_qkv(*qkv)
        q, k = rotate(q, rope), rotate(k, rope)
        # Copied: a slice would keep the whole product in memory during the attention, seven times its size.
        v = v.contiguous()
        del qkv
        out = attend(q, k, v).flatten(2)
        return x + self.proj_out(torch.cat([out, mlp], dim=-1), product) * gate
