"""Makes and updates the `.venv` beside launch.py.

Standard library only, like launch.py, which is its only user: this runs before anything is installed. The deciding
functions are pure; the doing functions below them are small. It has to parse on Python 3.7, as launch.py does.
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

from eichi_utils.setup import tool_run
from eichi_utils.setup.tool_run import say

NEWEST_PYTHON = (3, 14)

# Compute capability.
HOPPER = (9, 0)

OWN_VERSION = "{}.{}".format(*sys.version_info[:2])


TORCH_INDEX = "https://download.pytorch.org/whl/"

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


class SetupError(Exception):
    """Setting up failed; the text says what to do, `tail` holds the tool's last lines."""

    def __init__(self, advice: str, tail: tuple[str, ...] = ()) -> None:
        super().__init__(advice)
        self.tail = tail


@dataclass(frozen=True)
class Stamp:
    """What an environment was made for; written into it only once everything is installed."""

    fingerprint: str
    torch_build: str
    root: str
    test: bool
    speed_ups: bool = True

    def to_json(self) -> str:
        """The text kept in the stamp file."""
        return json.dumps(vars(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Stamp | None:
        """The stamp in `text`, or None if it is not a whole one."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True)
class Step:
    """One run of `pip install`; with `without` it may fail, and that text says what then holds."""

    title: str
    arguments: tuple[str, ...]
    without: str = ""


def installation_problem(version: tuple[int, ...]) -> str | None:
    """Why a new environment cannot be made from that Python, or None: torch ends at some version."""
    if tuple(version[:2]) <= NEWEST_PYTHON:
        return None
    return (
        "Python {}.{} is too new: torch is available up to Python {}.{}. Install Python 3.12 from "
        "https://www.python.org/downloads/ and run its python with launch.py once (Windows: "
        "`py -3.12 launch.py setup`, Linux: `python3.12 launch.py setup`)."
    ).format(*version[:2], *NEWEST_PYTHON)


def fingerprint(requirements: bytes, project: bytes, python_version: str) -> str:
    """A digest that changes whenever the environment has to be brought up to date."""
    parts = (requirements, project, python_version.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def assess(found: Stamp | None, python_version: str | None, wanted: Stamp) -> str:
    """The state of the environment: "ready", "outdated" (install into it) or "broken" (make it anew).

    found: None for one that cannot be used or that an installation left unfinished, so that nothing in it can be
    trusted. The folder is compared because an environment holds absolute paths. A CPU build is replaced when a card appeared;
    a CUDA build stays, since a driver that does not answer just now is no reason to download it again.
    """
    if python_version is None or found is None or found.root != wanted.root:
        return "broken"
    if found.torch_build == "cpu" and wanted.torch_build != "cpu":
        return "broken"
    if found.fingerprint != wanted.fingerprint or (wanted.test and not found.test) or wanted.speed_ups != found.speed_ups:
        return "outdated"
    return "ready"


def cuda_version(nvidia_smi_output: str) -> tuple[int, int] | None:
    """The newest CUDA version the driver serves, from nvidia-smi's heading."""
    match = re.search(r"CUDA(?: \w+)? Version:\s*(\d+)\.(\d+)", nvidia_smi_output)
    return (int(match.group(1)), int(match.group(2))) if match else None


def compute_capability(nvidia_smi_output: str) -> tuple[int, int] | None:
    """The first card's, from `nvidia-smi --query-gpu=compute_cap --format=csv,noheader`; old drivers do not know it."""
    match = re.match(r"\s*(\d+)\.(\d+)\s*$", nvidia_smi_output.partition("\n")[0])
    return (int(match.group(1)), int(match.group(2))) if match else None


def torch_build(platform: str, cuda: tuple[int, int] | None) -> str:
    """Which build of torch suits the machine: "cpu", "cu126" or "cu130"."""
    if cuda is None or platform not in ("linux", "win32"):
        return "cpu"
    return "cu130" if cuda >= (13, 0) else "cu126"


def torch_requirement(requirements: str) -> str:
    """The exact torch pin of requirements.txt."""
    match = re.search(r"^torch==[\w.]+", requirements, re.MULTILINE)
    if match is None:
        raise SetupError("requirements.txt has no line `torch==...`. Restore the file and start again.")
    return match.group()


def speed_ups(platform: str, capability: tuple[int, int] | None) -> list[str]:
    """Packages with faster attention for a card; capability: None where the driver does not say it.

    On Hopper FlashAttention 3, where there is a ready-built one, and else nothing: the others are slower there than torch.
    """
    if capability == HOPPER and platform == "linux":
        return ["fa3-fwd>=0.0.3,<0.1"]
    names = [] if capability == HOPPER else ["xformers>=0.0.35,<0.1", "sageattention>=1.0.6,<3"]
    return ["triton-windows>=3.7,<3.8", *names] if platform == "win32" else names


def plan_install(
    platform: str, build: str, requirements: str, test: bool, capability: tuple[int, int] | None = None, optional: bool = True
) -> list[Step]:
    """The pip runs that fill an environment.

    The package index's own torch is the CUDA 13 build on Linux and the CPU build on Windows, so the other
    builds come from torch's own index, first, and requirements.txt then finds its pin already met. The
    CPU build for Linux only saves a large download, so it may fail. The speed-ups (`optional`) come
    without their dependencies, so that they cannot replace torch, and ready-built, so that no compiler
    is needed.
    """
    torch = torch_requirement(requirements)
    from_torch = ("--index-url", TORCH_INDEX + build)
    saving = ("--no-deps", "--retries", "1", "--extra-index-url", TORCH_INDEX + "cpu")
    first = {
        ("linux", "cpu"): Step("torch for the CPU (about 200 MB)", (torch, *saving), "the next step brings torch"),
        ("linux", "cu126"): Step("torch for CUDA 12 (about 3 GB)", (torch, *from_torch)),
        ("linux", "cu130"): Step("torch for CUDA 13 (about 3 GB)", (torch,)),
        ("win32", "cu126"): Step("torch for CUDA 12 (about 3 GB)", (torch, *from_torch)),
        ("win32", "cu130"): Step("torch for CUDA 13 (about 2 GB)", (torch, *from_torch)),
    }.get((platform, build))
    steps = [first] if first else []

    count = sum(1 for line in requirements.splitlines() if re.match(r"\w", line))
    steps.append(Step(f"{count} packages (about 1 GB on the first start)", ("-r", "requirements.txt")))
    if test:
        steps.append(Step("the test tools", ("-e", ".[test]")))
    if build != "cpu" and optional:
        for name in speed_ups(platform, capability):
            title = re.split("[<>=]", name)[0] + " (optional, faster; `setup --no-speed-ups` leaves it out)"
            arguments = ("--no-deps", "--only-binary", ":all:", name)
            steps.append(Step(title, arguments, "the program works without"))
    return steps


def failure_advice(output: str, python_version: str) -> str:
    """What the user can do about a failed installation, from what the tool printed."""
    for pattern, advice in FAILURE_ADVICE:
        if re.search(pattern, output):
            return advice.format(python=python_version)
    return "The installation failed for a reason not known here. The log says more; starting again may help."


def venv_python(root: Path) -> Path:
    """The environment's interpreter."""
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp_path(root: Path) -> Path:
    """Where the environment's stamp lies; inside, so that it goes with the environment."""
    return root / ".venv" / "eichi-stamp.json"


def mark_path(root: Path) -> Path:
    """Where the stamp that is to be lies while an installation goes on; left there by one that was killed."""
    return root / ".venv" / "eichi-unfinished.json"


def read_stamp(path: Path) -> Stamp | None:
    """The stamp in a file, or None where there is no whole one."""
    try:
        return Stamp.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def installed_build(version: str, platform: str) -> str:
    """Which build an installed torch is, by its version; the package index's own one does not say it."""
    _, _, local = version.partition("+")
    return local or ("cu130" if platform == "linux" else "cpu")


def adopted_stamp(root: Path, report: dict | None) -> Stamp | None:
    """The stamp for an environment without one, by what it holds (see installed.py); None for one that is of no use.

    Whoever made it, what is complete is not made again, and what lacks something is only added to.
    """
    if not report or not (report["complete"] or report["pip"]):
        return None
    if not report["torch"] or Path(report["prefix"]).resolve() != (root / ".venv").resolve():
        return None
    build = installed_build(report["torch"], sys.platform)
    stamp = wanted_stamp(root, build, report["test"], report["python"], report["speed_ups"] or build == "cpu")
    return stamp if report["complete"] else replace(stamp, fingerprint="")


def examine(root: Path) -> dict | None:
    """What an environment holds, or None where its Python does not run."""
    command = [str(venv_python(root)), str(Path(__file__).with_name("installed.py")), str(root)]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
        return json.loads(result.stdout) if result.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def probe_python(interpreter: Path) -> str | None:
    """The environment's Python version, or None if it does not run or has no pip."""
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([str(interpreter), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.decode().strip() if result.returncode == 0 else None


def detect_cuda() -> tuple[int, int] | None:
    """The CUDA version of this machine's NVIDIA driver, or None without a working one."""
    return cuda_version(ask_driver())


def detect_capability() -> tuple[int, int] | None:
    """The compute capability of this machine's first NVIDIA card, or None."""
    return compute_capability(ask_driver("--query-gpu=compute_cap", "--format=csv,noheader"))


def ask_driver(*arguments: str) -> str:
    """What nvidia-smi prints; nothing where it is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        result = subprocess.run(
            [program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode(errors="replace") if result.returncode == 0 else ""


def remove_environment(root: Path) -> None:
    """Removes `.venv`, whatever it is."""
    path = root / ".venv"
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(str(path))


def wanted_stamp(root: Path, build: str, test: bool, python_version: str, optional: bool = True) -> Stamp:
    """The stamp of an environment that fits the files here."""
    requirements = (root / "requirements.txt").read_bytes()
    project = (root / "pyproject.toml").read_bytes()
    return Stamp(fingerprint(requirements, project, python_version), build, str(root), test, optional)


def current_state(root: Path, test: bool, optional: bool | None = None) -> tuple[str, Stamp]:
    """The environment's state and the stamp it should have; test tools once asked for stay wanted.

    optional: with the speed-ups or without; None: as it was decided last, and at first with.
    """
    unfinished = mark_path(root).exists()
    found = None if unfinished else read_stamp(stamp_path(root))
    version = probe_python(venv_python(root)) if found else None
    if found is None and not unfinished:
        report = examine(root)
        found, version = adopted_stamp(root, report), report["python"] if report else None
    known = found or read_stamp(mark_path(root))
    cuda = detect_cuda() if found is None or found.torch_build == "cpu" else None
    build = torch_build(sys.platform, cuda) if found is None or cuda else found.torch_build
    test = test or (known is not None and known.test)
    if optional is None:
        optional = known is None or known.speed_ups
    wanted = wanted_stamp(root, build, test, version or OWN_VERSION, optional)
    state = assess(found, version, wanted)
    return state, wanted_stamp(root, build, test, OWN_VERSION, optional) if state == "broken" else wanted


def run_step(command: list[str], root: Path, log_path: Path, title: str) -> None:
    """Runs one tool of the setup; its failure becomes a SetupError that says what to do."""
    code, output = tool_run.run_logged(command, root, log_path, title)
    if code:
        raise SetupError(failure_advice("\n".join(output), OWN_VERSION), tuple(output[-8:]))


def install(root: Path, state: str, wanted: Stamp, log_path: Path) -> None:
    """Brings the environment into the wanted state; its stamp is there only when all of it worked.

    It is marked as unfinished first, so that an installation killed in the middle is made anew. Where pip itself
    gave up it has undone its work, and so the mark goes: the next start tries the update again.
    """
    log_path.write_text("", encoding="utf-8")
    requirements = (root / "requirements.txt").read_text(encoding="utf-8")
    capability = detect_capability() if wanted.torch_build != "cpu" else None
    steps = plan_install(sys.platform, wanted.torch_build, requirements, wanted.test, capability, wanted.speed_ups)
    making = state == "broken"
    total = len(steps) + making

    if making:
        problem = installation_problem(sys.version_info)
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
    """Makes sure that the environment is complete; does nothing when it is."""
    state, wanted = current_state(root, test, optional)
    if state == "ready":
        if not stamp_path(root).exists():
            # Nothing needs it; with it the next start need not look so closely.
            with suppress(OSError):
                stamp_path(root).write_text(wanted.to_json(), encoding="utf-8")
        return
    logs = root / "webui" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tool_run.setup_lock(logs / "install.lock"):
        state, wanted = current_state(root, test, optional)
        if state != "ready":
            install(root, state, wanted, logs / "install.log")
