"""A film's latents in a safetensors file, as the existing program writes and reads them, with the request that made them.

history_latents   float32 (1, 16, T, h, w), scaled, in the order of playing: 4 T - 3 frames of 8 h x 8 w pixels
metadata          int32 (3): height and width in pixels, and T
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusers_helper.latents import SPATIAL
from eichi_utils.metadata import KEY, document_of
from eichi_utils.paths import written_atomically
from eichi_utils.request import Request

LATENTS, SIZES = "history_latents", "metadata"


def write_latents(path: Path, latents: Tensor, request: Request) -> None:
    """latents: (1, 16, T, h, w), scaled, in the order of playing. The file appears whole or not at all; raises OSError."""
    latents = latents.float().cpu().contiguous()
    height, width = latents.shape[3] * SPATIAL, latents.shape[4] * SPATIAL
    sizes = torch.tensor([height, width, latents.shape[2]], dtype=torch.int32)
    with written_atomically(path) as temporary:
        save_file({LATENTS: latents, SIZES: sizes}, temporary, metadata={KEY: document_of(request)})
