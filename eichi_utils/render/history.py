"""What the film is so far: latents to look back at, and pixels still to be blended. The growing side is decided here."""

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
    """Latents of the film, growing at one side, with zeros where nothing is yet. float32 on the CPU.

    shown: latents that belong to the film; what an opening puts there only to be looked at does not.
    """

    def __init__(self, grows: Side, height: int, width: int):
        self.grows: Side = grows
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
        """Return the film's latents so far, (1, 16, T, h, w), in the order of playing."""
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


class OverlapBlend:
    """Blends each newly decoded stretch into the film, and says which frames no later section can change.

    Every stretch begins or ends with `overlap` frames that the film has already; only the frames within `overlap` of the
    growing edge stay open, so only those are kept, as they were decoded. finish: what becomes of a final frame at once, where
    it was decoded.
    """

    def __init__(self, grows: Side, section_latents: int, finish: Callable[[Tensor], Tensor] = rounded_on_host):
        self.grows: Side = grows
        self.finish = finish
        self.overlap = FRAMES_PER_LATENT * section_latents - 3
        self.open: Tensor | None = None

    def begin(self, count: int) -> None:
        """A stretch of `count` frames was decoded, or is about to be; its frames are added next."""
        # Where the film's open frames and the new open ones begin in the stretch.
        self._old, self._new = (count - self.overlap, 0) if self.grows == "front" else (0, count - self.overlap)
        self._at = 0
        self._final: list[Tensor] = []
        self._edge: list[Tensor] = []

    def add(self, piece: Tensor) -> None:
        """The stretch's next frames, (1, 3, n, H, W)."""
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
        """Return the finished frames of a stretch that is whole, possibly none, and those that are open now."""
        final, edge = self._final, torch.cat(self._edge, dim=2)
        self.open, self._final, self._edge = edge, [], []
        # Of the right kind even where there is none.
        return torch.cat(final, dim=2) if final else self.finish(edge[:, :, :0]), edge


def cut(piece: Tensor, begin: int, places: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
    """A piece whose first frame has the number `begin`, cut along time wherever a place lies inside of it; with the number of
    each part's first frame."""
    end = begin + piece.shape[2]
    inside = sorted({begin, end, *(place for place in places if begin < place < end)})
    for at, to in pairwise(inside):
        yield at, piece[:, :, at - begin : to - begin]
