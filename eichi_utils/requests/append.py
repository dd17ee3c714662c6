"""Compute the length of a film that an earlier film's latents are appended to. Reads that file's header only, without torch."""

from __future__ import annotations

from diffusers_helper.vae.frames import frames_of
from eichi_utils.files.latent_header import read_info
from eichi_utils.requests.plan import Plan


def whole_latents(plan: Plan) -> int:
    """Return the number of latents of a film together with the appended ones. Raises UserError if their file is gone."""
    append = plan.append
    if append is None:
        return plan.latents
    appended = read_info(append.file).latents - append.skip_start - append.skip_end
    return plan.latents - append.trim + append.between + appended


def whole_frames(plan: Plan) -> int:
    """Return the number of frames of a film together with the appended latents."""
    return frames_of(whole_latents(plan))


def written_frames(plan: Plan) -> int:
    """Return the frames of all films that lie on the disk at the end: the film alone, and the joined film if there is one."""
    return plan.frames + (whole_frames(plan) if plan.append else 0)
