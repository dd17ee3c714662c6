"""What a film request says of an earlier film's latents that come after it: is it possible, and how long is the whole?

Files are looked at here, but not loaded; torch is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eichi_utils.files.latent_header import latents_problem, read_info
from eichi_utils.files.pictures import fitted_size
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.plan import Append, Plan, film_latents, frames_of

if TYPE_CHECKING:
    from eichi_utils.requests.request import FilmRequest

FIELD = "append_latents"
# What says how the file is appended, and nothing without one.
DETAILS = ("append_trim_start", "append_trim_end", "film_trim_end", "join_latents")


def idle_details(request: FilmRequest) -> tuple[str, ...]:
    """Settings of an append that were made where nothing is appended."""
    if request.append_latents:
        return ()
    return tuple(name for name in DETAILS if getattr(request, name))


def append_problems(request: FilmRequest, wrong: frozenset[str]) -> list[Problem]:
    """What keeps the file from coming after this film. wrong: fields that have problems of their own."""
    if not request.append_latents or FIELD in wrong:
        return []
    try:
        info = read_info(request.append_latents)
    except UserError as error:
        # It went away just now.
        return list(error.problems)
    problems = []
    trimmed = request.append_trim_start + request.append_trim_end if not wrong & set(DETAILS) else 0
    if trimmed >= info.latents:
        values = {"file": info.file, "latents": info.latents, "trimmed": trimmed}
        field = DETAILS[0] if request.append_trim_start else DETAILS[1]
        problems.append(Problem(field, "latents_too_few", values))
    if not wrong & {"seconds", "window", "film_trim_end"}:
        latents = film_latents(request.seconds, request.window)
        if request.film_trim_end >= latents:
            values = {"latents": latents, "trimmed": request.film_trim_end}
            problems.append(Problem("film_trim_end", "film_too_short", values))
    if not wrong & {"image", "size"}:
        height, width = fitted_size(request.image, request.size)
        if (height, width) != (info.height, info.width):
            sizes = {"width": info.width, "height": info.height, "film_width": width, "film_height": height}
            problems.append(Problem(FIELD, "latents_size", {"file": info.file, **sizes}))
    if info.model and info.model != request.model and "model" not in wrong:
        values = {"file": info.file, "model": info.model, "film_model": request.model}
        problems.append(Problem(FIELD, "latents_of_other_model", values))
    return problems


def check_latents(name: str, value: str, limits: object) -> Problem | None:
    """Of a field that names a file of latents, or nothing."""
    return latents_problem(name, value) if value else None


def append_of(request: FilmRequest) -> Append | None:
    """Without a section in between: a straight line."""
    if not request.append_latents:
        return None
    start, end, trim, between = (getattr(request, name) for name in DETAILS)
    return Append(request.append_latents, start, end, trim, between)


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
