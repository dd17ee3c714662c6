"""What the film is so far: latents to look back at, and pixels still to be blended. The growing side is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from diffusers_helper.latents import crossfade
from diffusers_helper.preview import CHANNELS
from eichi_utils.plan import CONTEXT, FRAMES_PER_LATENT, Ref

Side = Literal["front", "back"]


class History:
    """Latents of the film, growing at one side, with zeros where nothing is yet. float32 on the CPU.

    shown: latents that belong to the film; what an opening puts there only to be looked at does not.
    """

    def __init__(self, grows: Side, height: int, width: int):
        self.grows = grows
        self.shown = 0
        self._latents = torch.zeros(1, CHANNELS, sum(CONTEXT), height, width)

    def grow(self, latents: Tensor, *, shown: bool = True) -> None:
        """Join (1, 16, T, h, w) at the growing edge."""
        self._latents = joined(latents, self._latents, self.grows)
        self.shown += latents.shape[2] if shown else 0

    def edge(self, count: int, skip: int = 0) -> Tensor:
        """`count` latents in the order of time, `skip` away from the growing edge."""
        total = self._latents.shape[2]
        begin = skip if self.grows == "front" else total - skip - count
        return self._latents[:, :, begin : begin + count]

    @property
    def film(self) -> Tensor:
        return self.edge(self.shown)

    def read(self, ref: Ref, pictures: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """The latents a reference stands for, (1, 16, len(ref.at), h, w). masks: (1, 1, 1, h, w), 1 keeps, 0 hides."""
        count = len(ref.at)
        if ref.source == "history":
            latents = self.edge(count, ref.skip)
        elif ref.source == "zeros":
            latents = torch.zeros_like(self._latents[:, :, :1]).expand(-1, -1, count, -1, -1)
        else:
            latents = pictures[ref.source]
        if ref.scale != 1.0:
            latents = latents * ref.scale
        return latents * masks[ref.mask] if ref.mask else latents


def joined(new: Tensor, old: Tensor, grows: Side) -> Tensor:
    """new beside old along time, on the growing side."""
    return torch.cat([new, old] if grows == "front" else [old, new], dim=2)


class Stitch:
    """Blends each newly decoded stretch into the film, and says which frames no later section can change.

    Every stretch begins or ends with `overlap` frames that the film has already; only the frames within `overlap` of the
    growing edge stay open, so only those are kept.
    """

    def __init__(self, grows: Side, section_latents: int):
        self.grows = grows
        self.overlap = FRAMES_PER_LATENT * section_latents - 3
        self.open: Tensor | None = None

    def add(self, pixels: Tensor) -> Tensor:
        """(1, 3, frames, H, W) of a decoded stretch -> the frames that became final, possibly none."""
        if self.open is not None and self.grows == "front":
            pixels = crossfade(pixels, self.open, self.overlap)
        elif self.open is not None:
            pixels = crossfade(self.open, pixels, self.overlap)
        count = pixels.shape[2]
        if self.grows == "front":
            # Copies, so that the large tensor is not kept alive by a slice.
            self.open, final = pixels[:, :, : self.overlap].clone(), pixels[:, :, self.overlap :]
        else:
            final, self.open = (
                pixels[:, :, : count - self.overlap],
                pixels[:, :, count - self.overlap :].clone(),
            )
        return final
