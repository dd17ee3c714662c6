"""Turn the application's language-free data (problems, notices, plans, job states) into sentences of a language."""

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

# Problems of fields that are still empty; they are not shown as mistakes.
NOT_YET = ("picture_needed", "prompt_empty")
# Fields, beside the length, that decide how many files a film leaves.
COUNTED = ("keep_section_videos", "section_stills", "save_frames", "save_latents")


def field_label(t: Translator, field: str) -> str:
    """Return the page's name of a field such as "seconds" or "controls/0/mask"; "" for one that no page shows."""
    name, *rest = field.split("/")
    if f"page.field.{name}" not in table("en"):
        return ""
    parts = [t(f"page.field.{name}")]
    for part in rest:
        # Sentences about LoRA name the file; a slot's number could mislead, since slots may be empty.
        if name == "loras" and part.isdecimal():
            continue
        if part.isdecimal():
            # Users see sections counted from 0, references from 1.
            parts.append(str(int(part) + (name == "controls")))
        elif name == "controls":
            parts.append(t(f"page.control.{part}"))
        elif part == "strength":
            parts.append(t("page.lora.strength"))
    return " ".join(parts)


def problem_sentence(t: Translator, problem: Problem) -> str:
    """Return the sentence of a problem, after the name of its field unless the sentence names it itself."""
    # Sentences about empty fields name the field; those about LoRA name the file.
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
    """Return the values that replace a file's path by its name, also inside of a library's message in "reason".

    The server's folders mean nothing to the user of a page.
    """
    file = values.get("file")
    if not file:
        return {}
    path = Path(file)
    shorter = {"file": path.name}
    if isinstance(reason := values.get("reason"), str):
        # Messages may contain the path as it is or as `repr` writes it.
        for written in (str(file), repr(str(file))[1:-1]):
            reason = reason.replace(written, path.name)
        shorter["reason"] = reason
    return shorter


def notice_sentence(t: Translator, notice: Notice | Remark) -> str:
    """Return the sentence of a notice, with fields called by their names on the page."""
    values = dict(notice.values)
    if notice.key == "no_effect":
        values["name"] = field_label(t, values["name"]) or values["name"]
    return _say(t, f"notice.{notice.key}", values)


def problem_list(t: Translator, problems: tuple[Problem, ...], notes: tuple[Problem, ...] = ()) -> str:
    """Return all problems as an HTML list: empty fields first and in a milder look, notes last in the same look.

    notes: what does not prevent the start of a job.
    """
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
    """Return the sentences of problems by field, such as "seconds" or "keyframes/3"; empty fields are left out."""
    sentences: dict[str, str] = {}
    for problem in problems:
        if problem.field and problem.key not in NOT_YET:
            before = f"{sentences[problem.field]} " if problem.field in sentences else ""
            sentences[problem.field] = before + _sentence(t, problem)
    return sentences


def summary(
    t: Translator, request: Request | None, problems: tuple[Problem, ...], took: Callable[..., float | None] | None = None
) -> str:
    """Describe what a job will make, e.g. "4 sections, 145 frames, 4.83 s"; "" while the length itself is wrong.

    took: (request, height, width) -> estimated seconds by this machine's runs so far, as `Timings.seconds`.
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
    """Describe which files one film or picture leaves; "" while its length, or a field that decides it, is wrong."""
    if not _has_length(request, problems) or {problem.field for problem in problems} & set(COUNTED):
        return ""
    plan = request.plan()
    kinds = {plan.output: 1, "start": 1, **extra_counts(request, plan)}
    names = [t(f"page.files.{kind}", count=count) for kind, count in kinds.items()]
    return t("page.summary.files", files=t("page.progress.separator").join(names))


def end_of(t: Translator, view: View) -> str:
    """Describe how a job ended: finished, or how far it came and which button stopped it."""
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
    """Return a request's document as [label, value] pairs in its mode's words, without fields that have no value."""
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
    """Return a time in minutes and seconds, "1:02", or with hours from one hour on, "1:00:02"."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _has_length(request: Request | None, problems: tuple[Problem, ...]) -> TypeGuard[Request]:
    unclear = {"seconds", "window", "padding", "size", "batch"}
    return request is not None and not {problem.field for problem in problems} & unclear


def _size(request: Request) -> tuple[int, int] | None:
    """Return (height, width) in pixels that follow from the start picture, or None while there is none to read."""
    try:
        return fitted_size(request.image, request.size)
    except (OSError, ValueError):
        return None


def _say(t: Translator, key: str, values: Mapping[str, Any]) -> str:
    try:
        return t(key, **values)
    except KeyError:
        # A missing sentence, or a missing value in one, must not suppress the rest of the page's answer.
        return " ".join([key, *(f"{name}={value}" for name, value in values.items())])
