"""The request: the one document behind form, preset, queue, command line and file metadata.

A request is a frozen dataclass. The metadata of its fields (kind, limits, choices) is the only place where limits are
written down: checks, command line and pages read it from here.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eichi_utils.files.folders import check_folder
from eichi_utils.files.latent_header import latents_problem
from eichi_utils.files.pictures import is_unicode, picture_problem
from eichi_utils.problems import MOST_PROBLEMS, Problem, UserError, shown
from eichi_utils.requests.loras import MOST_LORAS, Lora, check_loras
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request_values import SECTION_KINDS, read_value, wrong_type

# Seeds travel through JSON and JavaScript, whose numbers are exact up to 2**53.
MAX_SEED = 2**53 - 1
# Drawn seeds stay in the range users of the family know.
DRAWN_SEED_LIMIT = 2**32
# The text encoder reads 256 tokens, about 1,000 to 1,300 characters of English; four times that can only be a mistake.
MAX_PROMPT_CHARACTERS = 5000
# Fields of any mode that hold one picture each; `keyframes` and `controls` hold several.
PICTURE_FIELDS = ("image", "end_image", "image_mask")
# How the transformer's weights are kept: as the device likes them, in 16 bits, or in 8 bits with a scale for every channel.
PRECISIONS = ("auto", "bfloat16", "int8", "float8")
# The published models (FramePack, and its F1 in the forward mode), or the small one that comes with the program.
MODELS = ("framepack", "miniature")
# Films that one Start may ask for.
MAX_BATCH = 100
SIZES = (128, 160, 192, 384, 512, 640, 768, 960, 1080, 1280, 1536, 1920, 2160)


def setting(default: Any, kind: str, **limits: Any) -> Any:
    """A request field. kind: picture, text, folder, integer, number, choice, switch, section_pictures, section_texts,
    section_numbers, controls, loras, latents.

    limits: `min` and `max` for numbers, `choices` for a choice, `max` for how many LoRA, `optional=True` where None is a value.
    """
    metadata = {"kind": kind, **limits}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """What every mode asks for. checkpoint: the transformer that the mode needs.

    vae_tile: pixels of the side of the squares that frames are decoded in; None takes whole frames where memory allows.
    batch: how many jobs, each with the next seed. output_folder: below the program's, or a path; "" is the program's own.
    """

    mode: ClassVar[str]
    checkpoint: ClassVar[Literal["framepack", "framepack_f1"]] = "framepack"

    def check(self) -> tuple[Problem, ...]:
        """Everything that keeps this request from being carried out; empty if nothing does."""
        return tuple(check_fields(self) + check_prompts(self))

    def idle(self) -> tuple[str, ...]:
        """Fields that were set but can have no effect beside the others; the user is told."""
        idle = []
        if self.cfg_scale == 1.0:
            idle += [name for name in ("negative_prompt", "guidance_rescale") if getattr(self, name)]
        if self.step_cache == "none" and self.cache_threshold != Request.cache_threshold:
            idle.append("cache_threshold")
        if self.merge_loras and not self.loras:
            idle.append("merge_loras")
        return tuple(idle)

    @abstractmethod
    def plan(self) -> Plan:
        """What to sample; call it on a checked request. Implementations are marked `plan.once`."""

    model: str = setting("framepack", "choice", choices=MODELS)
    image: str = setting("", "picture")
    prompt: str = setting("", "text")
    negative_prompt: str = setting("", "text")
    seed: int = setting(-1, "integer", min=-1, max=MAX_SEED)
    steps: int = setting(25, "integer", min=1, max=100)
    size: int = setting(640, "choice", choices=SIZES)
    guidance_scale: float = setting(10.0, "number", min=1.0, max=32.0)
    cfg_scale: float = setting(1.0, "number", min=1.0, max=32.0)
    guidance_rescale: float = setting(0.0, "number", min=0.0, max=1.0)
    shift: float | None = setting(None, "number", min=1.0, max=20.0, optional=True)
    step_cache: str = setting("teacache", "choice", choices=("none", "teacache", "first_block"))
    cache_threshold: float = setting(0.15, "number", min=0.0, max=1.0)
    precision: str = setting("auto", "choice", choices=PRECISIONS)
    loras: tuple[Lora, ...] = setting((), "loras", max=MOST_LORAS)
    merge_loras: bool = setting(False, "switch")
    vae_tile: int | None = setting(None, "integer", min=128, max=2048, optional=True)
    batch: int = setting(1, "integer", min=1, max=MAX_BATCH)
    output_folder: str = setting("", "folder")


def check_fields(request: Request) -> list[Problem]:
    """Every problem of type, range and picture, field by field."""
    problems = []
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        limits = field.metadata
        if value is None and limits.get("optional"):
            continue
        problem = _CHECKS[limits["kind"]](field.name, value, limits)
        problems += problem if isinstance(problem, list) else [problem] if problem else []
    return problems


def check_prompts(request: Request, sections: int | None = None) -> list[Problem]:
    """An empty prompt is a problem unless every section brings its own; section numbers must exist in the film."""
    problems = []
    own = dict(getattr(request, "section_prompts", {}))
    covered = sections is not None and all(str(own.get(i, "")).strip() for i in range(sections))
    if isinstance(request.prompt, str) and not request.prompt.strip() and not covered:
        problems.append(Problem("prompt", "prompt_empty"))
    return problems


def check_sections(name: str, keys: Mapping[int, str], sections: int) -> list[Problem]:
    """Each key must be the number of a section that the film has."""
    return [
        Problem(name, "section_unknown", {"section": shown(key), "last": sections - 1})
        for key in keys
        if not (isinstance(key, int) and 0 <= key < sections)
    ][:MOST_PROBLEMS]


def with_seed(request: Request) -> Request:
    """The request with a drawn seed where it asks for a random one (-1), so that what is stored reproduces the result."""
    if request.seed != -1:
        return request
    return dataclasses.replace(request, seed=random.SystemRandom().randrange(DRAWN_SEED_LIMIT))


def spread(request: Request) -> tuple[Request, ...]:
    """One request for each film of the batch, with a drawn seed and those that follow it."""
    first = with_seed(request)
    seeds = ((first.seed + number) % (MAX_SEED + 1) for number in range(request.batch))
    return tuple(dataclasses.replace(first, seed=seed, batch=1) for seed in seeds)


def to_json(request: Request) -> dict[str, Any]:
    """The request as a JSON document: `mode` and every field; section numbers become strings."""
    document: dict[str, Any] = {"mode": request.mode}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.metadata["kind"] in SECTION_KINDS:
            value = {str(key): text for key, text in sorted(value.items())}
        elif field.metadata["kind"] in ("controls", "loras"):
            value = [dataclasses.asdict(item) for item in value]
        document[field.name] = value
    return document


def from_json(document: Any, kinds: Mapping[str, type[Request]]) -> Request:
    """A request from its JSON document; `kinds` maps mode to request class.

    Unknown keys and values of the wrong type raise UserError, together with what the request's `check()` finds; otherwise
    ranges and pictures are left to that.
    """
    if not isinstance(document, Mapping):
        raise UserError([Problem("", "not_an_object")])
    mode = document.get("mode")
    if not isinstance(mode, str) or mode not in kinds:
        raise UserError([Problem("mode", "mode_unknown", {"mode": shown(mode), "modes": ", ".join(kinds)})])
    fields = {field.name: field for field in dataclasses.fields(kinds[mode])}
    unknown = [key for key in document if key != "mode" and key not in fields]
    problems = [Problem(str(shown(key)), "key_unknown", {"name": shown(key), "mode": mode}) for key in unknown[:MOST_PROBLEMS]]
    values = {}
    for key, value in document.items():
        if key not in fields:
            continue
        try:
            values[key] = read_value(value, fields[key].metadata)
        except UserError as error:
            problems += [dataclasses.replace(problem, field=f"{key}/{problem.field}") for problem in error.problems]
        except (TypeError, ValueError, OverflowError):
            problems.append(wrong_type(key, value))
    request = kinds[mode](**values)
    if problems:
        # What could be read is checked too, so that nobody mends a request one sentence at a time.
        named = {problem.field for problem in problems}
        problems += [problem for problem in request.check() if problem.field not in named]
        raise UserError(problems[:MOST_PROBLEMS])
    return request


def _tidy(number: float) -> float | int:
    """7.0 as 7, for reading; one beyond the integers that floats know stays 1e+308 and not 309 digits."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number


def _check_picture(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    if not value:
        return None if limits.get("optional") else Problem(name, "picture_needed")
    return picture_problem(name, value)


def _check_text(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    if not isinstance(value, str):
        return wrong_type(name, value)
    if len(value) > MAX_PROMPT_CHARACTERS:
        return Problem(name, "text_too_long", {"characters": len(value), "limit": MAX_PROMPT_CHARACTERS})
    return None if is_unicode(value) else Problem(name, "text_not_unicode")


def _check_folder(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    return _check_text(name, value, limits) or check_folder(name, value)


def _check_number(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    whole = limits["kind"] == "integer"
    wanted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        return wrong_type(name, value)
    # A number that is none is in no range.
    if not limits["min"] <= value <= limits["max"]:
        numbers = {"value": shown(value), "min": limits["min"], "max": limits["max"]}
        return Problem(name, "out_of_range", {name: _tidy(number) for name, number in numbers.items()})
    return None


def _check_choice(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    if value in limits["choices"]:
        return None
    choices = ", ".join(f"{choice:g}" if isinstance(choice, float) else str(choice) for choice in limits["choices"])
    return Problem(name, "not_a_choice", {"value": shown(value), "choices": choices})


def _check_switch(name: str, value: Any, limits: Mapping[str, Any]) -> Problem | None:
    return None if isinstance(value, bool) else wrong_type(name, value)


def _check_latents(name: str, value: str, limits: object) -> Problem | None:
    """Of a field that names a file of latents, or nothing."""
    return latents_problem(name, value) if value else None


def _each_section(check: Callable[..., Problem | None]) -> Callable[..., list[Problem]]:
    def checked(name: str, value: Mapping[int, Any], limits: Mapping[str, Any]) -> list[Problem]:
        problems = (check(f"{name}/{key}", part, limits) for key, part in value.items())
        return [problem for problem in problems if problem]

    return checked


def _check_controls(name: str, value: tuple, limits: Mapping[str, Any]) -> list[Problem]:
    return [problem for number, control in enumerate(value) for problem in control.check(f"{name}/{number}")]


_CHECKS = {
    "picture": _check_picture,
    "text": _check_text,
    "folder": _check_folder,
    "integer": _check_number,
    "number": _check_number,
    "choice": _check_choice,
    "switch": _check_switch,
    "section_pictures": _each_section(lambda name, path, limits: picture_problem(name, path)),
    "section_texts": _each_section(_check_text),
    "section_numbers": _each_section(_check_number),
    "controls": _check_controls,
    "loras": check_loras,
    "latents": _check_latents,
}
