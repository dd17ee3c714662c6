"""How long a film is together with the earlier film's latents that come after it, from the file's header. Without torch."""

from __future__ import annotations

from diffusers_helper.vae.frames import frames_of
from eichi_utils.files.latent_header import read_info
from eichi_utils.requests.plan import Plan


def whole_latents(plan: Plan) -> int:
    """Latents of the film together with what is appended. Raises UserError where that file is gone."""
    append = plan.append
    if append is None:
        return plan.latents
    appended = read_info(append.file).latents - append.skip_start - append.skip_end
    return plan.latents - append.trim + append.between + appended


def whole_frames(plan: Plan) -> int:
    """Frames of the result."""
    return frames_of(whole_latents(plan))


def written_frames(plan: Plan) -> int:
    """Frames of all films that are on the disk together at the end."""
    return plan.frames + (whole_frames(plan) if plan.append else 0)
