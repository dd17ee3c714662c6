"""Estimate the disk space for what a request makes and for models to be downloaded, and count a request's files by kind.

torch is not imported.
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

# Most bytes for a pixel of a film, at a usual CRF and below LOSSLESS_CRF. While a film is written its segments and the film
# itself are on the disk, each with about 0.1 bytes for a pixel at a usual CRF and up to 1.5 at the lowest; the rest is a margin
# for noise.
BYTES_PER_PIXEL, LOSSLESS_BYTES_PER_PIXEL, LOSSLESS_CRF = 1.0, 4.0, 10
SPARE_BYTES = 16 * 2**20
# A PNG of a noisy frame takes as many bytes as its pixels.
PNG_BYTES_PER_PIXEL = 3.0
# Latents are float32 with 16 channels; a cell is 8 x 8 pixels.
LATENT_BYTES_PER_PIXEL = 4 * 16 / 64


def extra_counts(request: Request, plan: Plan) -> dict[str, int]:
    """Count the files that a request makes beside its film or picture.

    Returns kind -> number for the kinds with any: "section_videos", "section_stills", "frames", "latents", and "joined" (the
    film with the appended one).
    """
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
    """Return the bytes of disk that must be free before a request is begun. height, width: of the film, in pixels."""
    films = output_bytes(written_frames(plan), height, width, getattr(request, "crf", 0))
    return films + extra_bytes(request, plan, height, width)


def extra_bytes(request: Request, plan: Plan, height: int, width: int) -> int:
    """Return the bytes of disk for the files that a request makes beside its films. height, width: in pixels."""
    counts = extra_counts(request, plan)
    total = PNG_BYTES_PER_PIXEL * (counts.get("frames", 0) + counts.get("section_stills", 0))
    if "latents" in counts:
        total += LATENT_BYTES_PER_PIXEL * (plan.latents + (whole_latents(plan) if plan.append else 0))
    if isinstance(request, FilmRequest) and "section_videos" in counts:
        shorter = sum(frames_of(plan.latents_after(number)) for number in range(1, len(plan.sections)))
        total += film_bytes_per_pixel(request.crf) * shorter
    return int(total * height * width)


def output_bytes(frames: int, height: int, width: int, crf: int) -> int:
    """Return the bytes of disk that must be free before films of so many frames in all are begun. height, width: in pixels."""
    return SPARE_BYTES + int(frames * height * width * film_bytes_per_pixel(crf))


def film_bytes_per_pixel(crf: int) -> float:
    """Return the most bytes that a pixel of one frame takes while a film of this quality (CRF) is written, as measured."""
    return BYTES_PER_PIXEL if crf >= LOSSLESS_CRF else LOSSLESS_BYTES_PER_PIXEL


def download_bytes(files: ModelFiles, missing: Sequence[Place]) -> int:
    """Return about how many bytes are still to be downloaded for these components.

    Their own files that exist, and interrupted downloads from their repositories, are taken off. Other files of the
    repositories are not, since they belong to other models.
    """
    needed = sum(max(0, int(place.gigabytes * 1e9) - files.present_bytes(place)) for place in missing)
    return max(0, needed - sum(files.interrupted_bytes(repository) for repository in {place.repository for place in missing}))


def download_problems(files: ModelFiles, missing: Sequence[Place]) -> tuple[Problem, ...]:
    """Return a problem if the disk has too little room for downloading these components."""
    needed, free = download_bytes(files, missing), disk_free(files.cache)
    if needed <= free:
        return ()
    values = {"folder": str(files.cache), "needed": gib(needed), "free": gib(free)}
    return (Problem("models", "too_little_disk", values),)


def disk_free(folder: Path) -> int:
    """Return the free bytes of a folder's disk; if the folder does not exist yet, the nearest existing one above it counts."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def gib(size: int) -> str:
    """Format a number of bytes as GiB with one digit after the point.

    Every positive number below 0.1 GiB becomes "0.1", so that "0.0" means that there is nothing.
    """
    return f"{max(size / 2**30, 0.1 if size > 0 else 0.0):.1f}"
