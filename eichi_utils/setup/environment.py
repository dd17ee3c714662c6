"""Make and update the `.venv` beside launch.py.

Standard library only, like launch.py, which is its only user: this runs before anything is installed. It has to parse on Python
3.7, as launch.py does. The functions that decide are pure; those that act are small and below them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from eichi_utils.setup import install_plan, tool_run
from eichi_utils.setup.tool_run import SetupError, say

NEWEST_PYTHON = (3, 14)

OWN_VERSION = "{}.{}".format(*sys.version_info[:2])

FAILURE_ADVICE = (
    (
        r"No space left on device|not enough space|Errno 28|WinError 112",
        "The disk is full. Free some space (about 10 GB with a CUDA build of torch) and start again.",
    ),
    (
        r"ensurepip|No module named '?venv",
        "This Python cannot make environments. On Debian and Ubuntu run `sudo apt install python3-venv` "
        "and start again; elsewhere install Python from https://www.python.org/downloads/ .",
    ),
    (
        r"NewConnectionError|Temporary failure in name resolution|Name or service not known|getaddrinfo"
        r"|Max retries exceeded|ConnectTimeout|ReadTimeout|Read timed out|ProxyError|SSLError"
        r"|Connection (?:refused|reset|aborted)|Network is unreachable",
        "The package server could not be reached. Check the network (proxy, firewall) and start again.",
    ),
    (
        r"Requires-Python|requires a different Python|No matching distribution found"
        r"|Could not find a version that satisfies",
        "A package has no version for this Python. Python {python} is running; 3.12 is a safe choice: "
        "install it from https://www.python.org/downloads/ and start launch.py with it.",
    ),
    (
        r"PermissionError|Permission denied|Access is denied|WinError (?:5|32)\b",
        "A file could not be written. Close other windows of this program, keep the folder somewhere you "
        "may write, and start again.",
    ),
    (r"MemoryError|Cannot allocate memory", "The memory ran out. Close other programs and start again."),
)


@dataclass(frozen=True)
class Stamp:
    """Describe what an environment was made for; it is written into the environment after everything is installed."""

    fingerprint: str
    torch_build: str
    root: str
    test: bool
    speed_ups: bool = True

    def to_json(self) -> str:
        """Return the text of the stamp file."""
        return json.dumps(vars(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Stamp | None:
        """Return the stamp in `text`, or None if it is not a complete one."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


def installation_problem(version: tuple[int, int]) -> str | None:
    """Return why a new environment cannot be made with that Python, or None. The newest version is limited by torch."""
    if version <= NEWEST_PYTHON:
        return None
    return (
        "Python {}.{} is too new: torch is available up to Python {}.{}. Install Python 3.12 from "
        "https://www.python.org/downloads/ and run its python with launch.py once (Windows: "
        "`py -3.12 launch.py setup`, Linux: `python3.12 launch.py setup`)."
    ).format(*version, *NEWEST_PYTHON)


def fingerprint(requirements: bytes, project: bytes, python_version: str) -> str:
    """Return a digest that changes whenever the environment has to be updated."""
    parts = (requirements, project, python_version.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def assess(found: Stamp | None, python_version: str | None, wanted: Stamp) -> str:
    """Return the state of the environment: "ready", "outdated" (install into it) or "broken" (make it anew).

    found: None for an environment that cannot be used, or whose installation was not finished, so that nothing in it can be
    trusted. The folder is compared because an environment holds absolute paths. A CPU build is replaced when a card appeared; a
    CUDA build stays, since a driver that fails to answer is no reason to download it again.
    """
    if python_version is None or found is None or found.root != wanted.root:
        return "broken"
    if found.torch_build == "cpu" and wanted.torch_build != "cpu":
        return "broken"
    if found.fingerprint != wanted.fingerprint or (wanted.test and not found.test) or wanted.speed_ups != found.speed_ups:
        return "outdated"
    return "ready"


def failure_advice(output: str, python_version: str) -> str:
    """Return what the user can do about a failed installation, judged by the tool's output."""
    for pattern, advice in FAILURE_ADVICE:
        if re.search(pattern, output):
            return advice.format(python=python_version)
    return "The installation failed for a reason not known here. The log says more; starting again may help."


def venv_python(root: Path) -> Path:
    """Return the path of the environment's interpreter."""
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_path(root: Path) -> Path:
    """Return the path of the environment's stamp; it lies inside, so that it is deleted with the environment."""
    return root / ".venv" / "eichi-stamp.json"


def mark_path(root: Path) -> Path:
    """Return the path of an unfinished installation's mark, which holds the future stamp; a killed one leaves it behind."""
    return root / ".venv" / "eichi-unfinished.json"


def read_stamp(path: Path) -> Stamp | None:
    """Return the stamp in a file, or None if there is no complete one."""
    try:
        return Stamp.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def installed_build(version: str, platform: str) -> str:
    """Return the build of an installed torch, told by its version; the build from the package index does not name itself."""
    _, _, local = version.partition("+")
    return local or ("cu130" if platform == "linux" else "cpu")


def adopted_stamp(root: Path, report: dict | None) -> Stamp | None:
    """Return the stamp for an environment without one, by what it holds (see installed.py); None for one that is of no use.

    A complete environment is kept, whoever made it, and to an incomplete one only what is missing is added.
    """
    if not report or not (report["complete"] or report["pip"]):
        return None
    if not report["torch"] or Path(report["prefix"]).resolve() != (root / ".venv").resolve():
        return None
    build = installed_build(report["torch"], sys.platform)
    stamp = wanted_stamp(root, build, report["test"], report["python"], report["speed_ups"] or build == "cpu")
    return stamp if report["complete"] else replace(stamp, fingerprint="")


def examine(root: Path) -> dict | None:
    """Return what an environment holds (see installed.py), or None if its Python does not run."""
    command = [str(venv_python(root)), str(Path(__file__).with_name("installed.py")), str(root)]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
        return json.loads(result.stdout) if result.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def probe_python(interpreter: Path) -> str | None:
    """Return the environment's Python version, or None if it does not run or has no pip."""
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([str(interpreter), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode().strip() if result.returncode == 0 else None


def remove_environment(root: Path) -> None:
    """Remove `.venv`, be it a folder, a link or a file."""
    path = root / ".venv"
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def wanted_stamp(root: Path, build: str, test: bool, python_version: str, optional: bool = True) -> Stamp:
    """Return the stamp of an environment that fits the files in `root`."""
    requirements = (root / "requirements.txt").read_bytes()
    project = (root / "pyproject.toml").read_bytes()
    return Stamp(fingerprint(requirements, project, python_version), build, str(root), test, optional)


def current_state(root: Path, test: bool, optional: bool | None = None) -> tuple[str, Stamp]:
    """Return the environment's state and the stamp it should have. Test tools that were once asked for stay wanted.

    optional: with the speed-ups or without; None keeps the last decision, which is at first with them.
    """
    unfinished = mark_path(root).exists()
    found = None if unfinished else read_stamp(stamp_path(root))
    version = probe_python(venv_python(root)) if found else None
    if found is None and not unfinished:
        report = examine(root)
        found, version = adopted_stamp(root, report), report["python"] if report else None
    known = found or read_stamp(mark_path(root))
    cuda = install_plan.detect_cuda() if found is None or found.torch_build == "cpu" else None
    build = install_plan.torch_build(sys.platform, cuda) if found is None or cuda else found.torch_build
    test = test or (known is not None and known.test)
    if optional is None:
        optional = known is None or known.speed_ups
    wanted = wanted_stamp(root, build, test, version or OWN_VERSION, optional)
    state = assess(found, version, wanted)
    return state, wanted_stamp(root, build, test, OWN_VERSION, optional) if state == "broken" else wanted


def run_step(command: list[str], root: Path, log_path: Path, title: str) -> None:
    """Run one tool of the setup. Raises SetupError with advice if it fails."""
    code, output = tool_run.run_logged(command, root, log_path, title)
    if code:
        raise SetupError(failure_advice("\n".join(output), OWN_VERSION), tuple(output[-8:]))


def install(root: Path, state: str, wanted: Stamp, log_path: Path) -> None:
    """Bring the environment into the wanted state. Its stamp is written only when all of it worked.

    The environment is marked as unfinished first, so that one whose installation was killed is made anew. If pip itself fails,
    it has undone its work, and the mark is removed: the next start tries the update again.
    """
    log_path.write_text("", encoding="utf-8")
    requirements = (root / "requirements.txt").read_text(encoding="utf-8")
    capability = install_plan.detect_capability() if wanted.torch_build != "cpu" else None
    steps = install_plan.plan_install(sys.platform, wanted.torch_build, requirements, wanted.test, capability, wanted.speed_ups)
    making = state == "broken"
    total = len(steps) + making

    if making:
        problem = installation_problem(sys.version_info[:2])
        if problem:
            raise SetupError(problem)
        again = " anew" if (root / ".venv").exists() else ""
        say(f"[1/{total}] Making the environment .venv{again} ...")
        remove_environment(root)
        stamp_path(root).parent.mkdir()
    mark_path(root).write_text(wanted.to_json(), encoding="utf-8")
    if making:
        base = getattr(sys, "_base_executable", None) or sys.executable
        run_step([base, "-m", "venv", str(root / ".venv")], root, log_path, "venv")

    pip = [str(venv_python(root)), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    for number, step in enumerate(steps, start=1 + making):
        say(f"[{number}/{total}] Installing {step.title} ...")
        try:
            run_step([*pip, "--progress-bar", "off", *step.arguments], root, log_path, step.title)
        except SetupError:
            if step.without:
                say(f"      not installed; {step.without}.")
                continue
            if not making:
                mark_path(root).unlink()
            raise

    stamp_path(root).write_text(wanted.to_json(), encoding="utf-8")
    mark_path(root).unlink()
    say("Everything is installed.")


def set_up(root: Path, test: bool, optional: bool | None = None) -> None:
    """Make sure that the environment is complete; does nothing if it is."""
    state, wanted = current_state(root, test, optional)
    if state == "ready":
        if not stamp_path(root).exists():
            # The stamp is not needed, but saves the next start a close look.
            with suppress(OSError):
                stamp_path(root).write_text(wanted.to_json(), encoding="utf-8")
        return
    logs = root / "webui" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tool_run.setup_lock(logs / "install.lock"):
        state, wanted = current_state(root, test, optional)
        if state != "ready":
            install(root, state, wanted, logs / "install.log")
