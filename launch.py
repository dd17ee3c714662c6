#!/usr/bin/env python3
"""Set FramePack-eichi up in the folder of this file and start it.

Standard library only: this file runs before anything is installed. It lets
eichi_utils/setup/environment.py make and fill `.venv`, and starts the wanted part with the Python of that environment. It
prints everything to stderr, so that stdout belongs to the program it starts. It has to parse on Python 3.7, so that an old
Python prints a sentence instead of a syntax error.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from eichi_utils.setup.console import leave_when_told

    leave_when_told()

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from eichi_utils.setup import console, environment, tool_run
from eichi_utils.setup.tool_run import say

ROOT = Path(__file__).resolve().parent

OLDEST_PYTHON = (3, 10)

# Commands of `eichi_utils.cli`, which cannot be imported yet; a test compares them with its own list.
CLI_COMMANDS = ("demo", "doctor", "render", "lora", "cache", "sections", "tensors")

COMMANDS = MappingProxyType(
    {
        "endframe": ("webui/endframe_ichi.py",),
        "f1": ("webui/endframe_ichi_f1.py",),
        "oneframe": ("webui/oneframe_ichi.py",),
        **{name: ("eichi_utils/cli/__main__.py", name) for name in CLI_COMMANDS},
        # One process for each processor, at most four, because each holds PyTorch and a browser. Test files start in the order
        # of tests/conftest.py: pytest-xdist would begin with the files that have most tests, not with the slowest ones.
        "test": ("-m", "pytest", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"),
    }
)

# Flags of `setup`, with whether optional packages for faster attention are installed.
SPEED_UPS = MappingProxyType({"--speed-ups": True, "--no-speed-ups": False})

HELP = """\
usage: launch.py [command] [arguments]

  (no command)   a menu of the modes and languages
  endframe       the standard mode (start frame, end frame, sections)
  f1             the F1 mode
  oneframe       the one-frame mode
                 e.g. --lang ja|en|zh-tw|ru, --port N, --inbrowser, --plain
  demo           a small run with a miniature model, to see that everything works
  doctor         a report on this machine and the installation
  render         a video from the command line
  lora           what LoRA files hold; `lora bake` writes a checkpoint with them
  sections       a film's pictures and prompts as one ZIP file: `sections export`, `sections import`
  tensors        files of latents: `tensors info`, `trim`, `join`, `decode`
  cache          what is kept on the disk because it takes time to make, and `cache --delete`
  test           the test suite; arguments go to pytest; with --quick those within a minute,
                 without browser, other processes and models
  setup          only set up; with --test including what the tests need, with --no-speed-ups
                 from now on without optional packages for faster attention (--speed-ups: with them)

The first start installs everything into .venv beside this file."""

LANGUAGES = (("ja", "Japanese"), ("en", "English"), ("zh-tw", "Traditional Chinese"), ("ru", "Russian"))

MENU_GROUPS = (
    (1, "Standard mode", ("endframe",)),
    (10, "F1 mode", ("f1",)),
    (20, "One-frame mode", ("oneframe",)),
    (50, "Standard mode, the original's plain page", ("endframe", "--plain")),
    (60, "Standard mode with the LoRA panel", ("endframe",)),
)

MENU_LINKS = (
    "FramePack:       https://github.com/lllyasviel/FramePack",
    "FramePack-eichi: https://github.com/git-ai-code/FramePack-eichi",
)


class UsageError(Exception):
    """Report a command line that names no known command."""


@dataclass(frozen=True)
class Invocation:
    """Hold what the command line asks for.

    child: arguments for the environment's Python, empty to set up only. test: also install what the tests need. optional:
    whether packages for faster attention are installed from now on; None leaves the earlier choice.
    """

    child: tuple[str, ...]
    test: bool = False
    optional: bool | None = None


def version_problem(version: tuple[int, int]) -> str | None:
    """Return a sentence that says why this program cannot run on a Python (major, minor), or None if it can."""
    if version >= OLDEST_PYTHON:
        return None
    return (
        "FramePack-eichi needs Python {}.{} or newer, this is Python {}.{}. Install Python 3.12 from "
        "https://www.python.org/downloads/ and start again."
    ).format(*OLDEST_PYTHON, *version)


def parse(arguments: tuple[str, ...]) -> Invocation:
    """Read a command line that begins with a command; the arguments after it are passed on to the child unread.

    Raises UsageError for an unknown command or unknown flags of `setup`.
    """
    command, rest = arguments[0], tuple(arguments[1:])
    if command == "setup" and set(rest) <= {"--test", *SPEED_UPS} and not set(rest) >= set(SPEED_UPS):
        optional = next((SPEED_UPS[flag] for flag in rest if flag in SPEED_UPS), None)
        return Invocation((), test="--test" in rest, optional=optional)
    if command not in COMMANDS:
        raise UsageError("unknown command: " + " ".join(arguments))
    return Invocation(COMMANDS[command] + rest, test=command == "test")


def menu_table() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the menu: the number to type -> (label, command line for `parse`)."""
    return {
        str(first + offset): (f"{title}: {language}", (*command, "--lang", code, "--inbrowser"))
        for first, title, command in MENU_GROUPS
        for offset, (code, language) in enumerate(LANGUAGES)
    }


def report_failure(error: Exception, root: Path) -> None:
    """Tell the user what failed during the set-up, what to do about it, and where the full log is."""
    say()
    say("Setting up FramePack-eichi failed.")
    for line in getattr(error, "tail", ()):
        say("    " + line)
    say(
        str(error)
        if isinstance(error, tool_run.SetupError)
        else environment.failure_advice(repr(error), environment.OWN_VERSION) + f" ({error})"
    )
    log_path = root / "webui" / "logs" / "install.log"
    if log_path.is_file():
        say(f"The full log: {log_path}")


def start(root: Path, arguments: tuple[str, ...]) -> int:
    """Run the environment's Python with the arguments and return its exit code.

    arguments: either a file of the repository, which runs in the user's current folder because paths in the arguments are
    relative to it, or "-m" and a module (the tests), which runs in the repository.
    On POSIX systems this process becomes the child, so that signals and the exit code are the child's. Windows has no such
    call: there Ctrl-C reaches both processes, and this one waits until the child has ended.
    """
    if arguments[0] == "-m":
        os.chdir(str(root))
    else:
        arguments = (str(root / arguments[0]), *arguments[1:])
    command = [str(environment.venv_python(root)), *arguments]
    variables = tool_run.child_environment(dict(os.environ))
    console.write(sys.stdout, "")
    if os.name != "nt":
        os.execve(command[0], command, variables)
    process = subprocess.Popen(command, env=variables)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def ask_menu(read=input) -> tuple[str, ...] | None:
    """Show the menu and return the chosen command line, or None to quit. read: returns the line that the user types."""
    table = menu_table()
    for first, title, _ in MENU_GROUPS:
        say(title)
        for offset, (_, language) in enumerate(LANGUAGES):
            say(f"  {first + offset:>2}  {language}")
    say()
    for link in MENU_LINKS:
        say(link)
    say()
    while True:
        say("Number (Enter alone quits):")
        try:
            answer = read().strip()
        except EOFError:
            return None
        if answer in ("", "q", "Q"):
            return None
        if answer in table:
            return table[answer][1]
        say(f"There is no {answer} in the menu.")


def main(arguments: list[str]) -> int:
    """Do what the command line asks for and return the exit code, also after Ctrl-C."""
    try:
        with console.ending_as_interrupted():
            return carry_out(arguments)
    except KeyboardInterrupt:
        say("\nStopped.")
        return console.STOPPED


def carry_out(arguments: list[str]) -> int:
    """Do what the command line asks for and return the exit code. Passes KeyboardInterrupt on."""
    problem = version_problem(sys.version_info[:2])
    if problem:
        say(problem)
        return 1
    if arguments and arguments[0] in ("-h", "--help"):
        console.write(sys.stdout, HELP + "\n")
        return 0
    try:
        chosen = tuple(arguments) or ask_menu()
        if chosen is None:
            return 0
        invocation = parse(chosen)
        environment.set_up(ROOT, invocation.test, invocation.optional)
        return start(ROOT, invocation.child) if invocation.child else 0
    except UsageError as error:
        say(str(error))
        say(HELP)
        return 2
    except (tool_run.SetupError, OSError) as error:
        report_failure(error, ROOT)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
