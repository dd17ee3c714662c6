"""Small pictures of what is being sampled, made where it is sampled and brought to the host while that goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_helper.memory.device import Device
from diffusers_helper.vae.latents import preview_rgb, preview_weights
from diffusers_helper.vae.preview import PreviewMatrix
from eichi_utils.exchange.video import animated_webp


@dataclass(frozen=True)
class SampledStep:
    """A finished step. latents: its x0, (1, 16, T, h, w). preview: an animated WebP."""

    step: int
    latents: Tensor
    preview: bytes


def with_previews(
    steps: Iterator[tuple[int, Tensor]], matrix: PreviewMatrix, device: torch.device, card: Device | None
) -> Generator[SampledStep, None, None]:
    """Yields every (step, x0) when it is done; x0 on `device`.

    A card's work is queued: it gets the next step before the host waits for this one, so that it never waits for the host.
    Without a card (None) a step is done when it is yielded.
    """
    weights = preview_weights(matrix, device)
    queued: deque[tuple[int, Tensor, Callable[[], Tensor]]] = deque()
    for step, latents in steps:
        rgb = preview_rgb(latents, weights)[0].permute(1, 2, 3, 0)
        levels = (rgb * 255.0).round().to(torch.uint8).contiguous()
        queued.append((step, latents, card.fetch(levels) if card else lambda levels=levels: levels))
        if card is None or len(queued) > 1:
            yield _arrived(*queued.popleft())
    while queued:
        yield _arrived(*queued.popleft())


def _arrived(step: int, latents: Tensor, wait: Callable[[], Tensor]) -> SampledStep:
    return SampledStep(step, latents, animated_webp(wait().numpy()))
