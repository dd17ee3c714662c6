"""Convert numbers of latents to numbers of frames. Needs no torch."""

from __future__ import annotations

FPS = 30
# One latent holds 4 frames, the first of a decoded stretch only 1 (the VAE is causal in time).
FRAMES_PER_LATENT = 4


def frames_of(latents: int) -> int:
    """Return how many frames this many latents decode to."""
    return FRAMES_PER_LATENT * latents - 3 if latents else 0
