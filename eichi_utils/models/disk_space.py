"""Room on disk: for what a request makes, how many files of which kind it leaves, and for models that are not there yet.

Without torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from diffusers_helper.vae.frames import frames_of
from eichi_utils.models.hub import ModelFiles, Place
from eichi_utils.problems import Problem
from eichi_utils.requests.append import whole_latents, written_frames
from eichi_utils.requests.film_request import FilmRequest
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

# Segments and film stand side by side, each with about a tenth of a byte for a pixel at a usual CRF and up to 1.5 at the
# lowest; with some room the promise holds for noise too.
BYTES_PER_PIXEL, LOSSLESS_BYTES_PER_PIXEL, LOSSLESS_CRF = 1.0, 4.0, 10
SPARE_BYTES = 16 * 2**20
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


def made_bytes(request: Request, plan: Plan, height: int, width: int) -> int:
    """Return the disk space to ask for before a request of these pixels is begun."""
    films = output_bytes(written_frames(plan), height, width, getattr(request, "crf", 0))
    return films + extra_bytes(request, plan, height, width)


def extra_bytes(request: Request, plan: Plan, height: int, width: int) -> int:
    """Disk space to ask for besides that of the film."""
    counts = extra_counts(request, plan)
    total = PNG_BYTES_PER_PIXEL * (counts.get("frames", 0) + counts.get("section_stills", 0))
    if "latents" in counts:
        total += LATENT_BYTES_PER_PIXEL * (plan.latents + (whole_latents(plan) if plan.append else 0))
    if isinstance(request, FilmRequest) and "section_videos" in counts:
        shorter = sum(frames_of(plan.latents_after(number)) for number in range(1, len(plan.sections)))
        total += film_bytes_per_pixel(request.crf) * shorter
    return int(total * height * width)


def output_bytes(frames: int, height: int, width: int, crf: int) -> int:
    """Disk space to ask for before films of so many frames and pixels are begun."""
    return SPARE_BYTES + int(frames * height * width * film_bytes_per_pixel(crf))


def film_bytes_per_pixel(crf: int) -> float:
    """Return the most bytes that a pixel of one frame takes in a film of this quality, as measured."""
    return BYTES_PER_PIXEL if crf >= LOSSLESS_CRF else LOSSLESS_BYTES_PER_PIXEL


def download_bytes(files: ModelFiles, missing: Sequence[Place]) -> int:
    """Return about how many bytes are still to be downloaded for these components.

    What is there of them already is left out: their own files, and what interrupted downloads of their repositories left.
    Repositories hold other models too, whose files help nobody here.
    """
    needed = sum(max(0, int(place.gigabytes * 1e9) - files.present_bytes(place)) for place in missing)
    return max(0, needed - sum(files.interrupted_bytes(repository) for repository in {place.repository for place in missing}))


def download_problems(files: ModelFiles, missing: Sequence[Place]) -> tuple[Problem, ...]:
    """Whether the disk has room for what is missing."""
    needed, free = download_bytes(files, missing), disk_free(files.cache)
    if needed <= free:
        return ()
    values = {"folder": str(files.cache), "needed": gib(needed), "free": gib(free)}
    return (Problem("models", "too_little_disk", values),)


def disk_free(folder: Path) -> int:
    """Bytes; a folder that does not exist yet is judged by the nearest one above it that does."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def gib(size: int) -> str:
    """Return bytes as GiB for reading. A small amount is shown as 0.1, so that only nothing, or less, reads as 0.0."""
    return f"{max(size / 2**30, 0.1 if size > 0 else 0.0):.1f}"
