"""Plain data of the application in the words of a language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from eichi_utils.files.pictures import fitted_size
from eichi_utils.jobs.events import Notice, StopLevel
from eichi_utils.jobs.view import View
from eichi_utils.models.disk_space import extra_counts
from eichi_utils.problems import Problem, Remark
from eichi_utils.requests import modes
from eichi_utils.requests.append import whole_frames
from eichi_utils.requests.film_request import DETAILS
from eichi_utils.requests.film_request import FIELD as APPEND
from eichi_utils.requests.loras import shown_name
from eichi_utils.requests.plan import FPS
from eichi_utils.requests.request import Request
from locales import Translator, table

# A field that is merely still empty is no mistake yet, and is not shown as one.
NOT_YET = ("picture_needed", "prompt_empty")
# Fields beside the length that the number of files depends on.
COUNTED = ("keep_section_videos", "section_stills", "save_frames", "save_latents")


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
    """Return the sentence of a problem, behind the name of its field where the sentence does not name it."""
    # The sentences about empty fields name the field themselves, and those about LoRA the file.
    named = problem.key in NOT_YET or problem.key.startswith("lora_")
    label = "" if named else field_label(t, problem.field)
    sentence = _sentence(t, problem)
    return t("page.problem.with_field", field=label, sentence=sentence) if label else sentence


def _sentence(t: Translator, problem: Problem) -> str:
    values, field = dict(problem.values), problem.field.split("/")[0]
    kinds = modes.all_kinds()
    if "file" in values and field == "loras":
        values |= _without_folder(values) | {"file": shown_name(values["file"])}
    elif field in (*DETAILS, "sections", "request") or (field in kinds and kinds[field].names_files):
        values |= _without_folder(values)
    return _say(t, f"problem.{problem.key}", values)


def _without_folder(values: Mapping[str, Any]) -> dict[str, Any]:
    """On a page a file is known by its name; where the server keeps it tells nobody anything, in a library's words neither."""
    file = values.get("file")
    if not file:
        return {}
    path = Path(file)
    shorter = {"file": path.name}
    if isinstance(reason := values.get("reason"), str):
        # Messages often quote a path as Python does.
        for written in (str(file), repr(str(file))[1:-1]):
            reason = reason.replace(written, path.name)
        shorter["reason"] = reason
    return shorter


def notice_sentence(t: Translator, notice: Notice | Remark) -> str:
    """Return the sentence of a notice, with fields by their names on the page."""
    values = dict(notice.values)
    if notice.key == "no_effect":
        values["name"] = field_label(t, values["name"]) or values["name"]
    return _say(t, f"notice.{notice.key}", values)


def problem_list(t: Translator, problems: tuple[Problem, ...], notes: tuple[Problem, ...] = ()) -> str:
    """All problems as a list in HTML; what is still empty comes first and looks milder, as do notes, which keep nobody."""
    if not problems and not notes:
        return ""
    ordered = sorted(problems, key=lambda problem: problem.key not in NOT_YET)
    items = ""
    for problem in ordered:
        look = "todo" if problem.key in NOT_YET else "wrong"
        items += f'<li class="{look}">{escape(problem_sentence(t, problem))}</li>'
    items += "".join(f'<li class="todo">{escape(problem_sentence(t, note))}</li>' for note in notes)
    return f'<ul class="eichi-problems" role="status">{items}</ul>'


def problems_by_field(t: Translator, problems: tuple[Problem, ...]) -> dict[str, str]:
    """Field such as "seconds" or "keyframes/3" -> what is wrong there; what is merely still empty is not."""
    sentences: dict[str, str] = {}
    for problem in problems:
        if problem.field and problem.key not in NOT_YET:
            before = f"{sentences[problem.field]} " if problem.field in sentences else ""
            sentences[problem.field] = before + _sentence(t, problem)
    return sentences


def summary(
    t: Translator, request: Request | None, problems: tuple[Problem, ...], took: Callable[..., float | None] | None = None
) -> str:
    """What will come out, e.g. "4 sections, 145 frames, 4.83 s"; "" while the length itself is wrong.

    took: (request, height, width) -> seconds by this machine's runs so far, as `Timings.seconds`.
    """
    if not _has_length(request, problems):
        return ""
    plan, size = request.plan(), _size(request)
    shown = f"{request.size} px" if size is None else f"{size[1]} × {size[0]} px"
    values = {"sections": len(plan.sections), "frames": plan.frames, "seconds": f"{plan.frames / FPS:.2f}"}
    if plan.output == "picture":
        text = t("page.summary.picture", size=shown)
    else:
        text = t("page.summary.one" if len(plan.sections) == 1 else "page.summary.many", size=shown, **values)
    if plan.append and not {problem.field for problem in problems} & {APPEND, *DETAILS}:
        whole = whole_frames(plan)
        key = "page.summary.bridged" if plan.append.bridge else "page.summary.joined"
        text = t(key, summary=text, frames=whole, seconds=f"{whole / FPS:.2f}")
    text = text if request.batch == 1 else f"{request.batch} × ({text})"
    seconds = took(request, *size) if took and size and not problems else None
    about = [] if seconds is None else [t("page.summary.about", time=duration(seconds))]
    return t("page.progress.separator").join([text, *about])


def files(t: Translator, request: Request | None, problems: tuple[Problem, ...]) -> str:
    """Which files one film or picture leaves, in words; "" while its length, or what is saved of it, is wrong."""
    if not _has_length(request, problems) or {problem.field for problem in problems} & set(COUNTED):
        return ""
    plan = request.plan()
    kinds = {plan.output: 1, "start": 1, **extra_counts(request, plan)}
    names = [t(f"page.files.{kind}", count=count) for kind, count in kinds.items()]
    return t("page.summary.files", files=t("page.progress.separator").join(names))


def end_of(t: Translator, view: View) -> str:
    """Say how a job ended: finished, or how far it came and which button stopped it."""
    if view.state == "finished":
        return t("page.state.finished")
    if not view.sections and view.state == "stopped":
        return t("page.ended.dropped")
    many = view.sections > 1
    if view.made and many:
        text = t(f"page.ended.{view.state}_after", section=view.made, sections=view.sections)
    elif view.state == "failed":
        return t("page.state.failed")
    else:
        text = t("page.ended.stopped_in_first" if many else "page.ended.stopped_before")
    if view.state == "failed" or view.stopping == StopLevel.NONE:
        return text
    button = "section" if view.stopping == StopLevel.SECTION else "now"
    return t("page.ended.by", end=text, button=t(f"page.stop.{button}"))


def settings_list(t: Translator, document: Mapping[str, Any]) -> list[list[str]]:
    """A request's document as (name, value) in its mode's words, fields without a value left out."""
    pairs, kinds, t = [], modes.all_kinds(), t.of(document.get("mode", ""))
    for name, value in document.items():
        if value in ("", None, [], {}) or value is False:
            continue
        kind = kinds.get(name)
        text = kind.in_words(value) if kind else str(value)
        word = kind.word(name, value) if kind else f"page.{name}.{text}"
        label = t("page.mode") if name == "mode" else field_label(t, name) or name
        pairs.append([label, t(word) if word in table("en") else text])
    return pairs


def duration(seconds: float) -> str:
    """Minutes and seconds: "1:02"; with hours from one hour on."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _has_length(request: Request | None, problems: tuple[Problem, ...]) -> TypeGuard[Request]:
    unclear = {"seconds", "window", "padding", "size", "batch"}
    return request is not None and not {problem.field for problem in problems} & unclear


def _size(request: Request) -> tuple[int, int] | None:
    """Height and width that the start picture leads to, or None while there is none."""
    try:
        return fitted_size(request.image, request.size)
    except (OSError, ValueError):
        return None


def _say(t: Translator, key: str, values: Mapping[str, Any]) -> str:
    try:
        return t(key, **values)
    except KeyError:
        # A sentence that is missing must not take the page's other news with it.
        return " ".join([key, *(f"{name}={value}" for name, value in values.items())])
