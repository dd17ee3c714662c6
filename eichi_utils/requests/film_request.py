"""Define the fields that both film modes share, and check whether an earlier film's latents can be appended.

Files are looked at here, but not loaded; torch is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from eichi_utils.files.latent_header import read_info
from eichi_utils.files.pictures import fitted_size
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.compound_kinds import PerSection
from eichi_utils.requests.kinds import Choice, Integer, Latents, Number, Switch, Text, kinds_of, setting
from eichi_utils.requests.loras import STRONGEST, check_scales
from eichi_utils.requests.plan import MOST_BETWEEN, Append, film_latents, section_count
from eichi_utils.requests.request import Request, check_fields, check_prompts, check_sections

# Largest number of latents that may be trimmed at one end of a film; the longest film has 1001.
MOST_TRIMMED = 1000
# A section's prompt follows one of these characters without a comma.
SENTENCE_ENDS = ".,;:!?\u3001\u3002\uff0c\uff0e\uff01\uff1f"
FIELD = "append_latents"
# Fields that say how the file is appended; they have no effect without one.
DETAILS = ("append_trim_start", "append_trim_end", "film_trim_end", "join_latents")


@dataclass(frozen=True, kw_only=True)
class FilmRequest(Request):
    """Hold what both film modes ask for.

    window: latents that a section counts for, 9 (1 s) or 4.5 (0.5 s).
    section_prompt_mode: whether a section's own prompt replaces the common one or extends it.
    section_lora_scales: section number -> factor on the strength of every LoRA in that section; 1 if not given.
    keep_section_videos: keep the shorter films made on the way. section_stills: save each section's last frame as a PNG.
    save_frames: save as PNGs the frames of all sections, or of the section sampled last. save_latents: save the film's latents.
    append_latents: a file of latents that follow the film. append_trim_start, append_trim_end: latents cut off at its ends.
    film_trim_end: latents cut off at the film's end. join_latents: latents put between the two, leading from one to the other.
    """

    seconds: float = setting(1.0, Number(0.1, 120.0))
    window: float = setting(9.0, Choice((9.0, 4.5), {9.0: "long", 4.5: "short"}))
    section_prompts: dict[int, str] = setting({}, PerSection(Text()))
    section_prompt_mode: str = setting("replace", Choice(("replace", "extend")))
    section_lora_scales: dict[int, float] = setting({}, PerSection(Number(0.0, STRONGEST)))
    crf: int = setting(16, Integer(0, 51))
    keep_section_videos: bool = setting(False, Switch())
    section_stills: bool = setting(False, Switch())
    save_frames: str = setting("none", Choice(("none", "all", "last")))
    save_latents: bool = setting(False, Switch())
    append_latents: str = setting("", Latents(optional=True))
    append_trim_start: int = setting(0, Integer(0, MOST_TRIMMED), content=True)
    append_trim_end: int = setting(0, Integer(0, MOST_TRIMMED), content=True)
    film_trim_end: int = setting(0, Integer(0, MOST_TRIMMED), content=True)
    join_latents: int = setting(0, Integer(0, MOST_BETWEEN), content=True)

    def idle(self) -> tuple[str, ...]:
        """Name the fields that have no effect, those of sections and of an appended film among them."""
        own = any(text.strip() for text in self.section_prompts.values())
        idle = ("section_prompt_mode",) if self.section_prompt_mode == "extend" and not own else ()
        if not self.loras and any(scale != 1.0 for scale in self.section_lora_scales.values()):
            idle += ("section_lora_scales",)
        return super().idle() + idle + idle_details(self)

    @property
    def append(self) -> Append | None:
        """Return what is appended to the film, or None."""
        return append_of(self)

    def section_prompt(self, number: int) -> str:
        """Return the prompt of a section: its own, the common one, or both in one text."""
        own, common = self.section_prompts.get(number, "").strip(), self.prompt.strip()
        if not own or not common:
            return own or self.prompt
        if self.section_prompt_mode == "replace":
            return own
        return f"{common}{' ' if common[-1] in SENTENCE_ENDS else ', '}{own}"

    def check(self) -> tuple[Problem, ...]:
        """Return everything that keeps the film from being made, sections and the appended film included."""
        problems = check_fields(self)
        wrong = frozenset(problem.field.split("/")[0] for problem in problems)
        problems += append_problems(self, wrong)
        if wrong & {"seconds", "window"}:
            return tuple(problems + check_prompts(self))
        sections = section_count(self.seconds, self.window)
        problems += check_prompts(self, sections)
        for name, kind in kinds_of(type(self)).items():
            if kind.per_section:
                problems += check_sections(name, getattr(self, name), sections)
        problems += check_scales(self.loras, self.section_lora_scales)
        return tuple(problems)


def idle_details(request: FilmRequest) -> tuple[str, ...]:
    """Return the names of append settings that were changed although nothing is appended."""
    if request.append_latents:
        return ()
    return tuple(name for name in DETAILS if getattr(request, name))


def append_problems(request: FilmRequest, wrong: frozenset[str]) -> list[Problem]:
    """Return what keeps the file from being appended to this film. wrong: fields that have problems of their own."""
    if not request.append_latents or FIELD in wrong:
        return []
    try:
        info = read_info(request.append_latents)
    except UserError as error:
        # The file was there when its field was checked.
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


def append_of(request: FilmRequest) -> Append | None:
    """Return what is appended, with latents in between as a straight line (no bridge); None if no file is named."""
    if not request.append_latents:
        return None
    start, end, trim, between = (getattr(request, name) for name in DETAILS)
    return Append(request.append_latents, start, end, trim, between)
