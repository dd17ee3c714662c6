"""Print results, messages and problems, and define exit codes, in the same way for every command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from eichi_utils.problems import Problem, Translate, shown
from eichi_utils.requests import modes
from eichi_utils.requests.kinds import finite_number
from eichi_utils.setup.console import write

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
# Flags of request fields whose name is not the field's with dashes.
FLAG_NAMES = {
    "keyframes": "--keyframe", "section_prompts": "--section-prompt", "section_lora_scales": "--section-lora-scale",
    "image_mask": "--mask", "loras": "--lora", "controls": "--reference",
}  # fmt: skip
# Parts of a control that have a flag of their own.
CONTROL_FLAGS = {"index": "--reference-index", "mask": "--reference-mask"}
# Other values that problems name and that are set by flags only.
OTHER_FLAGS = (
    "models", "out", "device", "attention", "reserve_gb", "cache_gb", "crf", "join_latents", "trim_start", "trim_end",
    "log_folder", "uploads",
)  # fmt: skip


class Commands(Protocol):
    """Take the commands of a program, as what argparse's `add_subparsers` returns does."""

    def add_parser(self, name: str, **settings: Any) -> argparse.ArgumentParser:
        """Return the parser of a new command. settings: as ArgumentParser's."""
        ...


def result(text: str) -> None:
    """Write a line of the command's result to stdout; everything else goes to stderr."""
    write(sys.stdout, text + "\n")


def say(text: str) -> None:
    """Write a line for the user to stderr."""
    write(sys.stderr, text + "\n")


def amount(text: str) -> float:
    """Return the number in a flag's text. Raises argparse's error for other texts, which argparse shows in its own words."""
    if (number := finite_number(text)) is None:
        raise argparse.ArgumentTypeError(f"invalid number: {shown(text)!r}")
    return number


def whole(text: str) -> int:
    """Return the whole number in a flag's text. Raises argparse's error for other texts."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid whole number: {shown(text)!r}") from None


def flag_of(name: str) -> str:
    """Return the flag that sets a request field or another value of this name."""
    return FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")


def place_of(field: str, options: argparse.Namespace) -> str:
    """Return where a problem comes from in the user's terms: the flag, or else the place in the request's file.

    field: of the problem, such as "image", "controls/0/mask" or "keyframes/2". If several LoRA or references were given, the
    flag is followed by a number.
    """
    name, *rest = field.split("/")
    if name in OTHER_FLAGS and hasattr(options, name):
        return flag_of(name)
    if name not in modes.all_kinds() or not hasattr(options, "mode"):
        return field
    given = getattr(options, name, None)
    if given is None and options.request is not None:
        return field
    flag = CONTROL_FLAGS.get(rest[-1], flag_of(name)) if name == "controls" and rest else flag_of(name)
    if name in ("controls", "loras"):
        return f"{flag} #{int(rest[0]) + 1}" if rest and rest[0].isdecimal() and len(given or ()) > 1 else flag
    return f"{flag} {rest[0]}=" if rest else flag


def report_problems(problems: Sequence[Problem], t: Translate, options: argparse.Namespace, code: int = BAD_INPUT) -> int:
    """Write the problems to stderr, and with `--json` also as a document to stdout. Returns the exit code `code`."""
    for line in problem_lines(problems, t, options):
        say(line)
    if options.json:
        result(json.dumps({"files": [], "problems": problems_document(problems, t)}))
    return code


def problem_lines(problems: Sequence[Problem], t: Translate, options: argparse.Namespace) -> list[str]:
    """Return a sentence for each problem, after the flag or the place in a file that it is about."""
    lines = ((place_of(problem.field, options), t(f"problem.{problem.key}", **problem.values)) for problem in problems)
    return [f"{place}: {text}".removeprefix(": ") for place, text in lines]


def problems_document(problems: Sequence[Problem], t: Translate) -> list[dict[str, str]]:
    """Return the problems as JSON, with the language-free field and key beside the sentence."""
    return [{"field": p.field, "key": p.key, "text": t(f"problem.{p.key}", **p.values)} for p in problems]
