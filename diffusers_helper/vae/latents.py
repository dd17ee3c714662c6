"""Convert pixels to latents and back, draw previews, and blend two stretches of film."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusers_helper.memory.memory import Room, free_bytes
from diffusers_helper.vae.causal_cache import SAMPLING_BYTES, CausalCache, causal_cache_bytes
from diffusers_helper.vae.preview import PreviewMatrix
from diffusers_helper.vae.vae_decode import LATENTS_AT_ONCE, Decoder, TileCache, only_frames, peak_bytes, side_for

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

# Pixels that a latent cell covers in height and in width.
SPATIAL = 8


@torch.inference_mode()
def encode_picture(vae: AutoencoderKLHunyuanVideo, pixels: Tensor) -> Tensor:
    """Encode a picture: (1, 3, 1, H, W) in -1..1 -> latents (1, 16, 1, H/8, W/8), float32 on the CPU.

    The result is the posterior's mode, not a sample, so the same picture and seed give the same film.
    """
    # `encode` returns one of two types, by a flag; no type checker can tell which.
    encoded: Any = vae.encode(pixels.to(vae.device, vae.dtype))
    return (encoded.latent_dist.mode() * vae.config["scaling_factor"]).float().cpu()


@torch.inference_mode()
def decode_frames(
    vae: AutoencoderKLHunyuanVideo,
    latents: Tensor,
    tile_cache: TileCache | None = None,
    room: Room | None = None,
    side: int | None = None,
) -> Generator[Tensor | float, None, None]:
    """Decode latents (1, 16, T, h, w) to frames (1, 3, n, 8 h, 8 w) in about -1..1, 4 T - 3 in all.

    Yields frames in order and as soon as they are final, on the VAE's device and in its dtype, and between them, as floats, the
    share of the work that is done. Tiles in time are diffusers' default.

    tile_cache: the time tiles of the film's stretch before, to be used again. room: by default the card's free memory. side:
    the largest side of a tile in space, in latent cells; without it whole frames are decoded where the room allows. Raises
    torch.OutOfMemoryError where not even the smallest tiles find room.
    """
    latents = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
    room = room or Room(lambda: free_bytes(vae.device))
    _, _, length, height, width = latents.shape
    side = narrower(side, side_for(vae, length, height, width, room.free()))
    yield from Decoder(vae, side, room=room).parts(latents, tile_cache)


@torch.inference_mode()
def decode_after(
    vae: AutoencoderKLHunyuanVideo, latents: Tensor, cache: CausalCache, room: Room | None = None, side: int | None = None
) -> Generator[Tensor | float, None, None]:
    """Decode a film's next latents (1, 16, T, h, w), each once; yield frames and shares as `decode_frames` does.

    The number of frames is that of `Decoder.frames_after`. side: as in `decode_frames`; it counts at the film's beginning, and
    stays. cache: what the film's earlier latents left. It stays on the card where decoding and sampling have room beside it,
    and moves to the computer's memory otherwise.
    """
    latents = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
    room = room or Room(lambda: free_bytes(vae.device))
    if cache.empty:
        cache.side = side
    if cache.empty and (free := room.free()) is not None:
        _, _, length, height, width = latents.shape
        # Until a stretch is committed, the cache holds its tensors and those of the stretch before.
        kept = 2 * causal_cache_bytes(vae, height, width)
        if free < kept + max(SAMPLING_BYTES, peak_bytes(vae, LATENTS_AT_ONCE + 1, height, width)):
            cache.move_to_host()
        cache.side = narrower(side, side_for(vae, length, height, width, free))
    yield from Decoder(vae, cache.side, room=room).parts_after(latents, cache)


def narrower(side: int | None, other: int | None) -> int | None:
    """Return the smaller of two tile sides; None stands for whole frames."""
    return min((one for one in (side, other) if one is not None), default=None)


def decode(vae: AutoencoderKLHunyuanVideo, latents: Tensor) -> Tensor:
    """Decode latents (1, 16, T, h, w) at once: (1, 3, 4 T - 3, 8 h, 8 w) in about -1..1, float32 on the CPU."""
    return torch.cat([on_host(frames) for frames in only_frames(decode_frames(vae, latents))], dim=2)


def preview_weights(matrix: PreviewMatrix, device: torch.device) -> tuple[Tensor, Tensor]:
    """Convert the matrix to float32 tensors: the rows (16, 3), and the bias (1, 3, 1, 1, 1)."""
    rows, bias = (torch.tensor(values, dtype=torch.float32, device=device) for values in (matrix.rows, matrix.bias))
    return rows, bias.view(1, 3, 1, 1, 1)


def preview_rgb(latents: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Draw a preview of latents without a network: (1, 16, T, h, w) -> RGB (1, 3, T, h, w) in 0..1.

    Each latent cell becomes one pixel. weights: as `preview_weights` returns them.
    """
    rows, bias = weights
    return (torch.einsum("bcthw,cr->brthw", latents, rows) + bias).clamp(0.0, 1.0)


def blend(first: Tensor, second: Tensor, at: int, overlap: int) -> Tensor:
    """Return frames `at` and following of a linear fade from one clip to another over `overlap` frames, float32.

    first, second: these frames of each clip, (1, 3, n, H, W).
    """
    weights = torch.linspace(1, 0, overlap)[at : at + first.shape[2]].to(first.device).view(1, 1, -1, 1, 1)
    return weights * first.float() + (1 - weights) * second.float()


def on_host(pixels: Tensor) -> Tensor:
    """Return pixels as float32 on the CPU."""
    return pixels.float().cpu()


def rounded(pixels: Tensor) -> Tensor:
    """Convert colours in -1..1 to levels 0..255, uint8, on the same device."""
    return (pixels.float().clamp(-1.0, 1.0) * 127.5 + 127.5).round().to(torch.uint8)


def rounded_on_host(pixels: Tensor) -> Tensor:
    """Convert colours in -1..1 to uint8 levels on the CPU.

    They are rounded before they are moved: a quarter of the bytes of float32.
    """
    return rounded(pixels).cpu()


def images(levels: Tensor) -> Tensor:
    """Rearrange levels (1, 3, frames, H, W) as pictures (frames, H, W, 3)."""
    return levels[0].permute(1, 2, 3, 0).contiguous()


def to_uint8(pixels: Tensor) -> Tensor:
    """Convert pixels (1, 3, frames, H, W) in -1..1 to pictures (frames, H, W, 3), uint8."""
    return images(rounded(pixels))
