"""What a request leaves besides its film or picture: how many files of which kind, and their room on disk. Without torch."""

from __future__ import annotations

from diffusers_helper.vae.frames import frames_of
from eichi_utils.models.requirements import film_bytes_per_pixel
from eichi_utils.requests.append import whole_latents
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

# A PNG of a noisy frame takes as much as its pixels.
PNG_BYTES_PER_PIXEL = 3.0
# float32, 16 channels; a latent cell is 8 x 8 pixels.
LATENT_BYTES_PER_PIXEL = 4 * 16 / 64


def extra_counts(request: Request, plan: Plan) -> dict[str, int]:
    """Files by kind: "section_videos" beside the film, "section_stills", "frames", "latents", and "joined" (the film with what
    is appended to it); only kinds that there will be."""
    if not isinstance(request, FilmRequest):
        return {}
    sections = len(plan.sections)
    frames = {"none": 0, "all": plan.frames, "last": len(plan.section_frames(sections - 1))}
    counts = {
        "section_videos": (sections - 1) * request.keep_section_videos,
        "section_stills": sections * request.section_stills,
        "frames": frames[request.save_frames],
        "latents": request.save_latents * (2 if plan.append else 1),
        "joined": int(plan.append is not None),
    }
    return {kind: count for kind, count in counts.items() if count}


def extra_bytes(request: Request, plan: Plan, height: int, width: int) -> int:
    """Disk space to ask for besides that of the film."""
    counts = extra_counts(request, plan)
    total = PNG_BYTES_PER_PIXEL * (counts.get("frames", 0) + counts.get("section_stills", 0))
    if "latents" in counts:
        total += LATENT_BYTES_PER_PIXEL * (plan.latents + (whole_latents(plan) if plan.append else 0))
    if "section_videos" in counts:
        shorter = sum(frames_of(plan.latents_after(number)) for number in range(1, len(plan.sections)))
        total += film_bytes_per_pixel(request.crf) * shorter
    return int(total * height * width)
