"""Record benchmark figures and compare them with earlier ones: `python -m benchmarks.record [--folder DIR] [--margin 15]`.

It runs the benchmarks that this machine can do within a couple of minutes, keeps their figures as one JSON file, and prints
which are worse, by more than the margin, than the median of this machine's last five records. It is started by hand: figures of
a busy machine mean little, and machines are never compared with each other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import run
from eichi_utils.files.paths import written_atomically
from eichi_utils.files.safe_reading import read_json
from eichi_utils.models.host_memory import host_memory

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "records"
# Default programs: in the published architecture on a card; without a card in a small one, with pictures as large as time
# allows.
ON_A_CARD = (
    'step --sizes 640x608 --only diffusers --only "own, compiled" --only "own, float8"',
    'decode --sizes 640x608 --latents 10 --only "diffusers, tiles in space" --only own',
    "load --sizes middle",
    "lora --steps 3",
)
WITHOUT_A_CARD = (
    'step --tiny --sizes 256x256 --steps 7 --only diffusers --only own --only "own, int8"',
    'decode --tiny --sizes 128x128 --steps 5 --only diffusers --only own --only "own, a film\'s next stretch"',
    "section --tiny --sizes 128x128 --sampling 5 --only diffusers --only own",
    "lora --tiny --size 256x256 --precision int8 --rank 4 --steps 7",
    "quality --count 1 --steps 6",
)
# Programs whose figures are relative to a baseline of the same run; those of `film` and `tabs` are not.
PROGRAMS = ("step", "decode", "section", "load", "lora", "quality")
VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "numpy")
# Number of the machine's newest records that are compared.
COMPARED = 5
GIB = 2**30


@dataclass(frozen=True)
class Kind:
    """Describe a kind of figure.

    more: larger values are better. slack: differences up to this size, in the figure's own unit, never count.
    """

    name: str
    more: bool = False
    slack: float = 0.0


# Times are recorded as ratios of two times of the same run. Errors and numbers of steps do not depend on the machine: where
# they are worse, the code has a fault. Errors of 1e-4 are rounding.
FASTER = Kind("times as fast as the first", more=True)
ERROR = Kind("relative error", slack=1e-4)
CARD = Kind("GiB of the card", slack=0.05)
COMPUTER = Kind("GiB of the computer", slack=0.05)
STEPS = Kind("computed steps", slack=0.01)
SLOWER = Kind("of a step without a LoRA")
KINDS = {kind.name: kind for kind in (FASTER, ERROR, CARD, COMPUTER, STEPS, SLOWER)}


@dataclass(frozen=True)
class Record:
    """Hold the figures of one run of this program.

    at: time in ISO 8601, UTC. changed: whether files differed from the commit. machine: what must be the same in two records
    that are compared. versions: of Python and packages. figures: by "program line: case: kind". failed: programs without
    figures, and why.
    """

    at: str
    commit: str
    changed: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    figures: Mapping[str, float]
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Hold a figure and the median of the same figure in `records` earlier records.

    percent: by how much it is worse, below 0 better. worse: whether that is more than the margin and the slack.
    """

    name: str
    value: float
    median: float
    records: int
    percent: float
    worse: bool


def machine_kind(device: torch.device) -> dict[str, Any]:
    """Describe the machine: processor, cores that this process may use, whole GiB of memory, card with its GiB, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    card = ""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card = f"{found.name}, {found.total_memory / GIB:.0f} GiB"
    return {
        "processor": processor(),
        "cores": cores,
        "memory_gib": round(host_memory().total / GIB),
        "card": card,
        "system": platform.system(),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model from Linux's cpuinfo, or else from Python's platform module."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def commit(root: Path = ROOT) -> tuple[str, bool]:
    """Return the commit of this folder and whether tracked files differ from it; "" without git or a repository."""
    found = []
    for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(("git", "-C", str(root), *arguments), capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return "", False
        if done.returncode:
            return "", False
        found.append(done.stdout.strip())
    return found[0], bool(found[1])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages in VERSIONS."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}}


def figures_of(program: str, document: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield ("case: kind", figure) pairs from what a program printed with --json.

    The first row of a size is the baseline, which has no figures of its own apart from its computed steps.
    """
    if program == "lora":
        ratio = document["beside"]["step_ms"] / document["without"]["step_ms"]
        yield f"{document['precision']}: {SLOWER.name}", ratio
        return
    first: dict[str, Mapping[str, Any]] = {}
    for row in document["rows"]:
        size = row.get("size", "")
        name = ", ".join(part for part in (size, row["case"]) if part)
        before = first.setdefault(size, row)
        if "computed_steps" in row:
            yield f"{name}: {STEPS.name}", row["computed_steps"]
        if row is not before:
            yield f"{name}: {FASTER.name}", row["ratio"] if "ratio" in row else before["seconds"] / row["seconds"]
            yield f"{name}: {ERROR.name}", row["error"]
            if row.get("gpu_gib"):
                yield f"{name}: {CARD.name}", row["gpu_gib"]
            # Only `load` runs each case in its own process; elsewhere this is the peak of all cases so far.
            if program == "load":
                yield f"{name}: {COMPUTER.name}", row["host_gib"]


def measured(lines: Sequence[str], minutes: float) -> tuple[dict[str, float], dict[str, str]]:
    """Run programs one after the other; returns the figures of those that succeeded, and the reasons of those that failed.

    lines: names of programs with their flags. minutes: time limit of each.
    """
    figures, failed = {}, {}
    for line in lines:
        program, *flags = shlex.split(line)
        said, why = run(program, [*flags, "--json"], minutes)
        if why:
            failed[line] = why
            continue
        found = dict(figures_of(program, json.loads(said)))
        if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
            failed[line] = f"no number: {', '.join(wrong)}"
        figures |= {f"{line}: {name}": value for name, value in found.items() if name not in wrong}
    return figures, failed


def read(path: Path) -> Record:
    """Read a record from a file. Raises OSError, or ValueError with a reason if the file holds no record."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError("it is no record")
    kinds = {"at": str, "commit": str, "changed": bool, "machine": dict, "versions": dict, "figures": dict, "failed": dict}
    for name, kind in kinds.items():
        if not isinstance(document.get(name), kind):
            raise ValueError(f"its {name!r} is missing or of another kind")
    for name, value in document["figures"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ValueError(f"{name!r} is no figure")
    if datetime.fromisoformat(document["at"]).tzinfo is None:
        raise ValueError("its time has no zone")
    return Record(**{name: document[name] for name in kinds})


def read_all(folder: Path) -> tuple[list[Record], list[str]]:
    """Read all records of a folder; returns them, the oldest first, and a sentence for each file that is left out."""
    records, left_out = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
        except (OSError, ValueError) as error:
            left_out.append(f"{path} is left out: {error}")
    return sorted(records, key=lambda record: datetime.fromisoformat(record.at)), left_out


def compared(record: Record, earlier: Sequence[Record], margin: float) -> list[Change]:
    """Compare a record with the last five of the same machine.

    Returns a Change for each figure that at least one of them has. margin: percent by which a figure may be worse.
    """
    same = [other for other in earlier if other.machine == record.machine][-COMPARED:]
    changes = []
    for name, value in record.figures.items():
        values = [other.figures[name] for other in same if name in other.figures]
        if not values:
            continue
        median, kind = statistics.median(values), KINDS[name.rpartition(": ")[2]]
        worse_by = median - value if kind.more else value - median
        percent = 100 * worse_by / median if median else 0.0
        worse = worse_by > max(kind.slack, margin / 100 * abs(median))
        changes.append(Change(name, value, median, len(values), percent, worse))
    return changes


def keep(record: Record, folder: Path) -> Path:
    """Write a record to a new file in a folder, named by its time and commit, and return the path. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.fromisoformat(record.at):%Y%m%d-%H%M%S-%f}-{record.commit[:7] or 'no-commit'}.json"
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    return path


def table(changes: Sequence[Change]) -> str:
    """Return the changes as a Markdown table."""
    lines = ["| | now | median | of | worse by |", "|---|---|---|---|---|"]
    for change in changes:
        mark = " **worse**" if change.worse else ""
        lines.append(
            f"| {change.name} | {change.value:.4g} | {change.median:.4g} | {change.records} | {change.percent:+.1f} %{mark} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Record a run and print the comparison; return 1 if a figure is worse by more than the margin or a program failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", help="each in quotes with its flags; default: what this machine can run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the records; default: benchmarks/records")
    parser.add_argument("--margin", type=float, default=15.0, help="percent by which a figure may be worse; default: 15")
    parser.add_argument("--minutes", type=float, default=5.0, help="at most, for each program")
    options = parser.parse_args(arguments)
    for line in options.programs:
        if line.partition(" ")[0] not in PROGRAMS:
            parser.error(f"no figures of {line!r}; there are {', '.join(PROGRAMS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    earlier, left_out = read_all(options.folder)
    for sentence in left_out:
        sys.stderr.write(sentence + "\n")
    lines = options.programs or (ON_A_CARD if device.type == "cuda" else WITHOUT_A_CARD)
    name, changed = commit()
    at = datetime.now(timezone.utc).isoformat()
    figures, failed = measured(lines, options.minutes)
    record = Record(at, name, changed, machine_kind(device), versions(), figures, failed)
    print(f"kept as {keep(record, options.folder)}")
    for line, why in failed.items():
        print(f"failed: {line}: {why}")
    changes = compared(record, earlier, options.margin)
    if changes:
        print(f"\nbeside this machine's last {max(change.records for change in changes)}, margin {options.margin:g} %\n")
        print(table(changes))
    else:
        print("there is no earlier record of this machine with these figures")
    return int(bool(failed) or any(change.worse for change in changes))


if __name__ == "__main__":
    sys.exit(main())
