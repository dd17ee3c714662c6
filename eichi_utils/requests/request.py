"""Define the request: the one document behind form, preset, queue, command line and file metadata.

A request is a frozen dataclass. The metadata of its fields (kind, limits, choices) is the only place where limits are
written down: checks, command line and pages read it from here.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eichi_utils.problems import MOST_PROBLEMS, Problem, UserError, shown
from eichi_utils.requests.compound_kinds import Loras
from eichi_utils.requests.kinds import Choice, Folder, Integer, Number, Picture, Switch, Text, kinds_of, setting, wrong_type
from eichi_utils.requests.loras import MOST_LORAS, Lora
from eichi_utils.requests.plan import Plan

# Seeds pass through JSON and JavaScript, whose numbers are exact up to 2**53.
MAX_SEED = 2**53 - 1
# Drawn seeds stay in the range that users of related programs know.
DRAWN_SEED_LIMIT = 2**32
# Formats of the transformer's weights: chosen for the device, 16 bits, or 8 bits with a scale for every channel.
PRECISIONS = ("auto", "bfloat16", "int8", "float8")
# The published models (FramePack, and its F1 in the forward mode), and the small one that comes with the program.
MODELS = ("framepack", "miniature")
# Largest number of films that one press of Start may ask for.
MAX_BATCH = 100
SIZES = (128, 160, 192, 384, 512, 640, 768, 960, 1080, 1280, 1536, 1920, 2160)


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """Hold what every mode asks for.

    checkpoint: the transformer that the mode needs.
    vae_tile: side in pixels of the square tiles that frames are decoded in; None decodes whole frames where memory allows.
    batch: number of jobs, each with the next seed. output_folder: a name below the program's folder, or a path; "" is that
    folder.
    """

    mode: ClassVar[str]
    checkpoint: ClassVar[Literal["framepack", "framepack_f1"]] = "framepack"

    def check(self) -> tuple[Problem, ...]:
        """Return everything that keeps this request from being carried out; empty if nothing does."""
        return tuple(check_fields(self) + check_prompts(self))

    def idle(self) -> tuple[str, ...]:
        """Return the names of fields that were set but have no effect beside the others, so that the user can be told."""
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
        """Return what to sample. Call it on a checked request; implementations are decorated with `plan.once`."""

    model: str = setting("framepack", Choice(MODELS))
    image: str = setting("", Picture())
    prompt: str = setting("", Text(), content=True)
    negative_prompt: str = setting("", Text())
    seed: int = setting(-1, Integer(-1, MAX_SEED), content=True)
    steps: int = setting(25, Integer(1, 100))
    size: int = setting(640, Choice(SIZES))
    guidance_scale: float = setting(10.0, Number(1.0, 32.0))
    cfg_scale: float = setting(1.0, Number(1.0, 32.0))
    guidance_rescale: float = setting(0.0, Number(0.0, 1.0))
    shift: float | None = setting(None, Number(1.0, 20.0, optional=True))
    step_cache: str = setting("teacache", Choice(("none", "teacache", "first_block")))
    cache_threshold: float = setting(0.15, Number(0.0, 1.0))
    precision: str = setting("auto", Choice(PRECISIONS))
    loras: tuple[Lora, ...] = setting((), Loras(MOST_LORAS))
    merge_loras: bool = setting(False, Switch())
    vae_tile: int | None = setting(None, Integer(128, 2048, optional=True))
    batch: int = setting(1, Integer(1, MAX_BATCH), content=True)
    output_folder: str = setting("", Folder())


def check_fields(request: Request) -> list[Problem]:
    """Return every problem of type, range and file, field by field."""
    kinds = kinds_of(type(request))
    return [problem for name, kind in kinds.items() for problem in kind.check(name, getattr(request, name))]


def check_prompts(request: Request, sections: int | None = None) -> list[Problem]:
    """Return a problem if the prompt is empty, unless each of the `sections` has its own."""
    problems = []
    own = dict(getattr(request, "section_prompts", {}))
    covered = sections is not None and all(str(own.get(i, "")).strip() for i in range(sections))
    if isinstance(request.prompt, str) and not request.prompt.strip() and not covered:
        problems.append(Problem("prompt", "prompt_empty"))
    return problems


def check_sections(name: str, keys: Mapping[int, str], sections: int) -> list[Problem]:
    """Return a problem for each key that is not the number of a section of the film, which has `sections` of them."""
    return [
        Problem(name, "section_unknown", {"section": shown(key), "last": sections - 1})
        for key in keys
        if not (isinstance(key, int) and 0 <= key < sections)
    ][:MOST_PROBLEMS]


def with_seed(request: Request) -> Request:
    """Return the request with a drawn seed if its seed is -1 (random), so that what is stored reproduces the result."""
    if request.seed != -1:
        return request
    return dataclasses.replace(request, seed=random.SystemRandom().randrange(DRAWN_SEED_LIMIT))


def requests_of_batch(request: Request) -> tuple[Request, ...]:
    """Return one request for each film of the batch: the first with its seed, drawn if random, the others with the next."""
    first = with_seed(request)
    seeds = ((first.seed + number) % (MAX_SEED + 1) for number in range(request.batch))
    return tuple(dataclasses.replace(first, seed=seed, batch=1) for seed in seeds)


def to_json(request: Request) -> dict[str, Any]:
    """Return the request as a JSON document: `mode` and every field; section numbers become strings."""
    kinds = kinds_of(type(request))
    return {"mode": request.mode, **{name: kind.to_json(getattr(request, name)) for name, kind in kinds.items()}}


def from_json(document: Any, kinds: Mapping[str, type[Request]]) -> Request:
    """Return the request of a JSON document; `kinds` maps mode to request class.

    Raises UserError for unknown keys and values of the wrong type, together with what the request's `check()` finds. Without
    such errors ranges and files are not checked here.
    """
    if not isinstance(document, Mapping):
        raise UserError([Problem("", "not_an_object")])
    mode = document.get("mode")
    if not isinstance(mode, str) or mode not in kinds:
        raise UserError([Problem("mode", "mode_unknown", {"mode": shown(mode), "modes": ", ".join(kinds)})])
    fields = kinds_of(kinds[mode])
    unknown = [key for key in document if key != "mode" and key not in fields]
    problems = [Problem(str(shown(key)), "key_unknown", {"name": shown(key), "mode": mode}) for key in unknown[:MOST_PROBLEMS]]
    values = {}
    for key, value in document.items():
        if key not in fields:
            continue
        try:
            values[key] = fields[key].read(value)
        except UserError as error:
            problems += [dataclasses.replace(problem, field=f"{key}/{problem.field}") for problem in error.problems]
        except (TypeError, ValueError, OverflowError):
            problems.append(wrong_type(key, value))
    request = kinds[mode](**values)
    if problems:
        # The rest is checked too, so that the user sees all problems at once.
        named = {problem.field for problem in problems}
        problems += [problem for problem in request.check() if problem.field not in named]
        raise UserError(problems[:MOST_PROBLEMS])
    return request
