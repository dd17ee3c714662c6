"""Plain data of the application in the words of a language."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from eichi_utils.events import Notice
from eichi_utils.pictures import fitted_size
from eichi_utils.plan import FPS
from eichi_utils.problems import Problem
from eichi_utils.request import Request
from locales import Translator, table

# A field that is merely still empty is no mistake yet, and is not shown as one.
NOT_YET = ("picture_needed", "prompt_empty")
FILES = ("image", "end_image", "keyframes", "image_mask", "controls", "loras")


def field_label(t: Translator, field: str) -> str:
    """The page's name of a field such as "seconds" or "controls/0/mask"; "" for one that no page shows."""
    name, *rest = field.split("/")
    if f"page.field.{name}" not in table("en"):
        return ""
    parts = [t(f"page.field.{name}")]
    for part in rest:
        # Their sentences name the file, and slots may be empty.
        if name == "loras" and part.isdecimal():
            continue
        if part.isdecimal():
            # Sections are counted from 0 everywhere, references from 1.
            parts.append(str(int(part) + (name == "controls")))
        elif name == "controls":
            parts.append(t(f"page.control.{part}"))
        elif part == "strength":
            parts.append(t("page.lora.strength"))
    return " ".join(parts)


def problem_sentence(t: Translator, problem: Problem) -> str:
    # The sentences about empty fields name the field themselves, and those about LoRA the file.
    named = problem.key in NOT_YET or problem.key.startswith("lora_")
    label = "" if named else field_label(t, problem.field)
    values = dict(problem.values)
    if problem.field.split("/")[0] in FILES:
        # On a page a file is known by its name; where the server keeps it tells nobody anything.
        values |= {"file": Path(values["file"]).name} if "file" in values else {}
    sentence = _say(t, f"problem.{problem.key}", values)
    return t("page.problem.with_field", field=label, sentence=sentence) if label else sentence


def notice_sentence(t: Translator, notice: Notice) -> str:
    values = dict(notice.values)
    if notice.key == "no_effect":
        values["name"] = field_label(t, values["name"]) or values["name"]
    return _say(t, f"notice.{notice.key}", values)


def problem_list(t: Translator, problems: tuple[Problem, ...]) -> str:
    """All problems as a list in HTML; what is still empty comes first and looks milder."""
    if not problems:
        return ""
    ordered = sorted(problems, key=lambda problem: problem.key not in NOT_YET)
    items = ""
    for problem in ordered:
        look = "todo" if problem.key in NOT_YET else "wrong"
        items += f'<li class="{look}">{escape(problem_sentence(t, problem))}</li>'
    return f'<ul class="eichi-problems" role="status">{items}</ul>'


def summary(t: Translator, request: Request | None, problems: tuple[Problem, ...]) -> str:
    """What will come out, e.g. "4 sections, 145 frames, 4.83 s"; "" while the length itself is wrong."""
    if request is None or {problem.field for problem in problems} & {"seconds", "window", "padding", "size"}:
        return ""
    size = _size(request)
    if request.mode == "single":
        return t("page.summary.picture", size=size)
    plan = request.plan()
    values = {"sections": len(plan.sections), "frames": plan.frames, "seconds": f"{plan.frames / FPS:.2f}"}
    return t("page.summary.one" if len(plan.sections) == 1 else "page.summary.many", size=size, **values)


def duration(seconds: float) -> str:
    """Minutes and seconds: "1:02"; with hours from one hour on."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _size(request: Request) -> str:
    """Width x height that the start picture leads to, or the family's size while there is none."""
    try:
        height, width = fitted_size(request.image, request.size)
    except (OSError, ValueError):
        return f"{request.size} px"
    return f"{width} × {height} px"


def _say(t: Translator, key: str, values: Mapping[str, Any]) -> str:
    try:
        return t(key, **values)
    except KeyError:
        # A sentence that is missing must not take the page's other news with it.
        return " ".join([key, *(f"{name}={value}" for name, value in values.items())])
