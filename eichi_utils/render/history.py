"""Hold what exists of a film: its latents, which sections look back at, and the frames that are still to be blended.

Only this module distinguishes the sides at which a film grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusers_helper.vae.frames import FRAMES_PER_LATENT
from diffusers_helper.vae.latents import blend, rounded_on_host
from diffusers_helper.vae.preview import CHANNELS
from eichi_utils.requests.plan import CONTEXT, Ref

Side = Literal["front", "back"]


class History:
    """Hold the latents of a film that grows at one side, with zeros where nothing is yet; float32 on the CPU.

    shown: number of latents that belong to the film. Latents of an opening that is only looked at are not counted.
    """

    def __init__(self, grows: Side, height: int, width: int):
        self.grows: Side = grows
        self.shown = 0
        self._latents = torch.zeros(1, CHANNELS, sum(CONTEXT), height, width)

    def grow(self, latents: Tensor, *, shown: bool = True) -> None:
        """Join latents (1, 16, T, h, w) to the growing edge. shown: whether they belong to the film."""
        self._latents = joined(latents, self._latents, self.grows)
        self.shown += latents.shape[2] if shown else 0

    def edge(self, count: int, skip: int = 0) -> Tensor:
        """Return `count` latents in the order of time, after passing over `skip` at the growing edge."""
        total = self._latents.shape[2]
        begin = skip if self.grows == "front" else total - skip - count
        return self._latents[:, :, begin : begin + count]

    @property
    def film(self) -> Tensor:
        """Return the film's latents so far, (1, 16, T, h, w), in the order of playing."""
        return self.edge(self.shown)

    def read(self, ref: Ref, pictures: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Return the latents that a reference stands for, (1, 16, len(ref.at), h, w).

        pictures: latents (1, 16, 1, h, w) by name. masks: (1, 1, 1, h, w) by name; 1 keeps a cell, 0 hides it.
        """
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
    """Concatenate latents along time, with `new` on the growing side of `old`."""
    return torch.cat([new, old] if grows == "front" else [old, new], dim=2)


class OverlapBlend:
    """Blend each newly decoded stretch of frames into the film, and tell which frames no later section can change.

    Every stretch begins or ends with `overlap` frames that the film has already. Only the frames within `overlap` of the
    growing edge stay open, so only those are kept, as they were decoded. finish: applied to final frames at once, on the device
    where they were decoded.
    """

    def __init__(self, grows: Side, section_latents: int, finish: Callable[[Tensor], Tensor] = rounded_on_host):
        self.grows: Side = grows
        self.finish = finish
        self.overlap = FRAMES_PER_LATENT * section_latents - 3
        self.open: Tensor | None = None

    def begin(self, count: int) -> None:
        """Begin a stretch of `count` frames, which `add` is given next."""
        # Where the film's open frames and the new open ones begin in the stretch.
        self._old, self._new = (count - self.overlap, 0) if self.grows == "front" else (0, count - self.overlap)
        self._at = 0
        self._final: list[Tensor] = []
        self._edge: list[Tensor] = []

    def add(self, piece: Tensor) -> None:
        """Take the stretch's next frames, (1, 3, n, H, W), and blend those that the film has already."""
        old, new = self._old, self._new
        for at, frames in cut(piece, self._at, (old, old + self.overlap, new, new + self.overlap)):
            if self.open is not None and old <= at < old + self.overlap:
                known = self.open[:, :, at - old : at - old + frames.shape[2]].to(frames.device)
                first, second = (frames, known) if self.grows == "front" else (known, frames)
                frames = blend(first, second, at - old, self.overlap)
            if new <= at < new + self.overlap:
                self._edge.append(frames.cpu())
            else:
                self._final.append(self.finish(frames))
        self._at += piece.shape[2]

    def end(self) -> tuple[Tensor, Tensor]:
        """Return the stretch's final frames, possibly none, and the frames that are open now; call it after the last `add`."""
        final, edge = self._final, torch.cat(self._edge, dim=2)
        self.open, self._final, self._edge = edge, [], []
        # Without final frames, finishing an empty tensor gives the right dtype and device.
        return torch.cat(final, dim=2) if final else self.finish(edge[:, :, :0]), edge


def cut(piece: Tensor, begin: int, places: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
    """Cut frames (1, 3, n, H, W) along time at the given frame numbers.

    begin: the number of the piece's first frame. places: frame numbers; those outside of the piece cut nothing. Yields the
    number of each part's first frame, and the part.
    """
    end = begin + piece.shape[2]
    inside = sorted({begin, end, *(place for place in places if begin < place < end)})
    for at, to in pairwise(inside):
        yield at, piece[:, :, at - begin : to - begin]
