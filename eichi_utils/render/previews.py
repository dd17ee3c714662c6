"""Make previews of latents on the device where they are sampled, and fetch them while sampling goes on."""

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
    """Hold a finished step. latents: its x0, (1, 16, T, h, w). preview: x0 as an animated WebP."""

    step: int
    latents: Tensor
    preview: bytes


def with_previews(
    steps: Iterator[tuple[int, Tensor]], matrix: PreviewMatrix, device: torch.device, card: Device | None
) -> Generator[SampledStep, None, None]:
    """Yield each step of (step, x0) with its preview, as soon as it is done.

    matrix: from latents to colours. device: where x0 is. card: the same device if it is a card, else None.
    A card's work is queued: the next step is queued before the host waits for this one, so that the card never waits for the
    host. Without a card a step is done when `steps` yields it.
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
