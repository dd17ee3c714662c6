"""Fuzz every reader with mutations of good files: `python -m tests.fuzz [--minutes N] [--seed S] [--keep DIR] [READER...]`.

    --minutes N   for all of these readers together (a quarter for each)
    --seed S      other mutations (0)
    --case K      one case alone, in this process, with its traceback
    --keep DIR    where files that make a reader fail are kept (fuzz-findings)

Each reader runs in a process of its own. A crash, a hang and growing memory are findings, as is an exception that is not one of
the reader's own errors. Time is measured in seconds of the processor, so that other work on the machine causes no findings.
Each kind of finding is printed once. The exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.cases import MOST_BYTES, cases_of
from tests.fuzz.readers import READERS

# A case is ended after so many seconds of the processor, or, if it only waits, of the clock. The child process itself reports a
# case that ends but takes long.
HANGS_SECONDS, WAITS_SECONDS = 10.0, 100.0
# Minutes of each reader without --minutes.
MINUTES = 0.25
# Seconds of the processor that importing and making the seeds may take.
START_SECONDS = 60.0
# Seconds between two looks at the child's memory.
LOOK_SECONDS = 0.05
ROOT = Path(__file__).parents[2]


@dataclass
class Watched:
    """Collect the findings of a reader. cases: how many were run. findings: kind -> the first finding of this kind."""

    name: str
    cases: int = 0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, finding: dict[str, Any]) -> None:
        if finding["kind"] not in self.findings:
            self.findings[finding["kind"]] = finding
            print(
                f"{self.name}: case {finding['case']}: {finding['kind']}\n{finding['details']}\n{finding['file']}\n", flush=True
            )


def watch(name: str, seed: int, seconds: float, folder: Path) -> Watched:
    """Run a reader's cases for some seconds. When its process ends, a new one goes on after the case at which it ended.

    folder: where files that cause findings are kept.
    """
    watched, first, end = Watched(name), 0, time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        case, kind = _watch_one(watched, seed, first, left, folder)
        watched.cases = max(watched.cases, case)
        if kind == "end":
            break
        first = case + 1
        if kind != "memory":
            watched.add({"case": case, "kind": kind, "details": "", "file": _kept(name, seed, case, folder)})
    return watched


def _watch_one(watched: Watched, seed: int, first: int, seconds: float, folder: Path) -> tuple[int, str]:
    """Run one process from case `first` on, and return its last case and how it ended.

    That is "end" (the time is over), "memory" (a finding that needs a new process), "hang" or "crash: ...".
    """
    command = [sys.executable, "-m", "tests.fuzz.child", watched.name, str(seed), str(first), str(seconds), str(folder)]
    with _process(command) as (process, lines):
        case, since, used, base = first, time.monotonic(), 0.0, 0
        while True:
            try:
                line = lines.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                memory = _memory(process)
                if base and memory - base > 3 * MOST_BYTES:
                    return case, "crash: memory without end"
                waited, worked = time.monotonic() - since, _processor(process) - used
                if waited > WAITS_SECONDS or worked > (HANGS_SECONDS if base else START_SECONDS):
                    return case, "hang"
                continue
            if line is None:
                code = process.wait()
                return case, "memory" if code == 0 else f"crash: {code}"
            base = base or _memory(process)
            since, used, case = time.monotonic(), _processor(process), line.get("case", line.get("end", case))
            if "end" in line:
                return case, "end"
            if "kind" in line:
                watched.add(line)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[tuple[subprocess.Popen, queue.Queue]]:
    lines: queue.Queue = queue.Queue()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        reading = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reading.start()
        try:
            yield process, lines
        finally:
            process.kill()


def _read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout or ():
        # Lines that are no JSON were printed by a library.
        with contextlib.suppress(ValueError):
            lines.put(json.loads(line))
    lines.put(None)


def _memory(process: subprocess.Popen) -> int:
    try:
        return psutil.Process(process.pid).memory_info().rss
    except psutil.Error:
        return 0


def _processor(process: subprocess.Popen) -> float:
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _kept(name: str, seed: int, case: int, folder: Path) -> str:
    with cases_of(name, seed) as cases:
        file, data = cases.make(case)
    (folder / f"{name}-{case}-{file}").write_bytes(data)
    return str(folder / f"{name}-{case}-{file}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    names = options.readers or list(READERS)
    if unknown := set(names) - set(READERS):
        parser.error(f"no such reader: {', '.join(sorted(unknown))}")
    seconds = 60 * (MINUTES if options.minutes is None else options.minutes / len(names))
    found = 0
    for name in names:
        if options.case is not None:
            with cases_of(name, options.seed) as cases:
                finding = cases.run(options.case)
            print(f"{name}: case {options.case}: {finding.kind}\n{finding.details}" if finding else f"{name}: no finding")
            found += finding is not None
            continue
        options.keep.mkdir(parents=True, exist_ok=True)
        watched = watch(name, options.seed, seconds, options.keep.resolve())
        print(f"{name}: {watched.cases} cases, {len(watched.findings)} kinds of findings", flush=True)
        found += len(watched.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
