"""Decide which packages are installed on this machine, and from where, by its system and its NVIDIA driver.

Standard library only; it has to parse on Python 3.7, as launch.py does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from eichi_utils.setup.tool_run import SetupError

# Compute capability of Hopper cards (H100, H200).
HOPPER = (9, 0)

TORCH_INDEX = "https://download.pytorch.org/whl/"


@dataclass(frozen=True)
class Step:
    """Describe one run of `pip install`. A step with `without` may fail; that text tells the user what is missing then."""

    title: str
    arguments: tuple[str, ...]
    without: str = ""


def cuda_version(nvidia_smi_output: str) -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, from nvidia-smi's heading, or None."""
    match = re.search(r"CUDA(?: \w+)? Version:\s*(\d+)\.(\d+)", nvidia_smi_output)
    return (int(match.group(1)), int(match.group(2))) if match else None


def compute_capability(nvidia_smi_output: str) -> tuple[int, int] | None:
    """Return the first card's compute capability, or None, as old drivers do not know it.

    nvidia_smi_output: of `nvidia-smi --query-gpu=compute_cap --format=csv,noheader`.
    """
    match = re.match(r"\s*(\d+)\.(\d+)\s*$", nvidia_smi_output.partition("\n")[0])
    return (int(match.group(1)), int(match.group(2))) if match else None


def torch_build(platform: str, cuda: tuple[int, int] | None) -> str:
    """Return the build of torch for the machine: "cpu", "cu126" or "cu130"."""
    if cuda is None or platform not in ("linux", "win32"):
        return "cpu"
    return "cu130" if cuda >= (13, 0) else "cu126"


def torch_requirement(requirements: str) -> str:
    """Return the exact requirement of torch in requirements.txt. Raises SetupError if there is none."""
    match = re.search(r"^torch==[\w.]+", requirements, re.MULTILINE)
    if match is None:
        raise SetupError("requirements.txt has no line `torch==...`. Restore the file and start again.")
    return match.group()


def speed_ups(platform: str, capability: tuple[int, int] | None) -> list[str]:
    """Return the packages with faster attention for a card; capability: None if the driver does not report it.

    Hopper gets FlashAttention 3 where there is a ready-built one, and nothing else: the others are slower there than torch.
    """
    if capability == HOPPER and platform == "linux":
        return ["fa3-fwd>=0.0.3,<0.1"]
    names = [] if capability == HOPPER else ["xformers>=0.0.35,<0.1", "sageattention>=1.0.6,<3"]
    return ["triton-windows>=3.7,<3.8", *names] if platform == "win32" else names


def plan_install(
    platform: str, build: str, requirements: str, test: bool, capability: tuple[int, int] | None = None, optional: bool = True
) -> list[Step]:
    """Return the pip runs that fill an environment.

    The package index's own torch is the CUDA 13 build on Linux and the CPU build on Windows, so the other builds come from
    torch's own index, first, and requirements.txt then finds its pin already met. The CPU build for Linux only saves a large
    download, so it may fail. The speed-ups (`optional`) come without their dependencies, so that they cannot replace torch, and
    ready-built, so that no compiler is needed.
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


def detect_cuda() -> tuple[int, int] | None:
    """Return the CUDA version of this machine's NVIDIA driver, or None without a working one."""
    return cuda_version(ask_driver())


def detect_capability() -> tuple[int, int] | None:
    """Return the compute capability of this machine's first NVIDIA card, or None."""
    return compute_capability(ask_driver("--query-gpu=compute_cap", "--format=csv,noheader"))


def ask_driver(*arguments: str) -> str:
    """Return what nvidia-smi prints, "" if it is missing or fails."""
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
