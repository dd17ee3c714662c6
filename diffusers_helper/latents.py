"""Pixels to latents and back, previews, and the blend of two stretches of film."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusers_helper.memory import free_bytes
from diffusers_helper.preview import PreviewMatrix
from diffusers_helper.vae_decode import Decoder, KeptTiles, side_for

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanVideo

# Pixels a latent cell covers in height and width.
SPATIAL = 8


@torch.inference_mode()
def encode_picture(vae: AutoencoderKLHunyuanVideo, pixels: Tensor) -> Tensor:
    """(1, 3, 1, H, W) in -1..1 -> (1, 16, 1, H/8, W/8) float32 on the CPU.

    The posterior's mode, not a sample: the same picture and seed give the same film.
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return (posterior.mode() * vae.config.scaling_factor).float().cpu()


@torch.inference_mode()
def decode(vae: AutoencoderKLHunyuanVideo, latents: Tensor, kept: KeptTiles | None = None) -> Tensor:
    """(1, 16, T, h, w) -> (1, 3, 4 T - 3, 8 h, 8 w) in about -1..1, float32 on the CPU; diffusers' default tiles in time.

    kept: what the film's stretch before left to be used again. Whole frames where the card's free memory allows.
    """
    latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    side = side_for(vae, *latents.shape[2:], free_bytes(vae.device))
    return torch.cat([frames.float().cpu() for frames in Decoder(vae, side).frames(latents, kept)], dim=2)


def preview_weights(matrix: PreviewMatrix, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix as tensors: (16, 3), and the bias (1, 3, 1, 1, 1); float32."""
    rows, bias = (torch.tensor(values, dtype=torch.float32, device=device) for values in (matrix.rows, matrix.bias))
    return rows, bias.view(1, 3, 1, 1, 1)


def preview_rgb(latents: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """(1, 16, T, h, w) -> (1, 3, T, h, w) in 0..1: one pixel for each latent cell, no network."""
    rows, bias = weights
    return (torch.einsum("bcthw,cr->brthw", latents, rows) + bias).clamp(0.0, 1.0)


def crossfade(first: Tensor, second: Tensor, overlap: int) -> Tensor:
    """Join two clips, (1, 3, frames, H, W): the last `overlap` frames of one fade linearly into the first of the other."""
    if overlap <= 0:
        return torch.cat([first, second], dim=2)
    if overlap > min(first.shape[2], second.shape[2]):
        raise ValueError(f"overlap of {overlap} frames, but the clips have {first.shape[2]} and {second.shape[2]}")
    weights = torch.linspace(1, 0, overlap, dtype=first.dtype, device=first.device).view(1, 1, -1, 1, 1)
    blend = weights * first[:, :, -overlap:] + (1 - weights) * second[:, :, :overlap]
    return torch.cat([first[:, :, :-overlap], blend, second[:, :, overlap:]], dim=2)


def to_uint8(pixels: Tensor) -> Tensor:
    """(1, 3, frames, H, W) in -1..1 -> (frames, H, W, 3) uint8."""
    return (pixels[0].clamp(-1.0, 1.0) * 127.5 + 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
