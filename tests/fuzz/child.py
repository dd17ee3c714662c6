"""Run a reader's cases in turn until the time is over: `python -m tests.fuzz.child READER SEED FIRST SECONDS FOLDER`.

Before each case it prints the number, so that the parent knows to which case a crash, a hang or too much memory belongs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from tests.fuzz.cases import cases_of

# Bytes of addresses beyond those at the start; a case that wants more ends in a MemoryError.
MOST_ADDRESSES = 3 * 2**30


def main(name: str, seed: int, first: int, seconds: float, folder: Path) -> None:
    with cases_of(name, seed) as cases:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_ADDRESSES, -1))
        end, case = time.monotonic() + seconds, first
        while time.monotonic() < end:
            _say({"case": case})
            finding = cases.run(case)
            # Late imports in the first case take time and memory, which is not its fault.
            if finding and not (case == first and finding.kind in ("time", "memory")):
                kept = folder / f"{name}-{case}-{finding.name}"
                kept.write_bytes(finding.data)
                _say({"case": case, "kind": finding.kind, "details": finding.details, "file": str(kept)})
                if finding.kind == "memory":
                    # The process's memory peak can measure no further case.
                    return
            case += 1
        _say({"end": case})


def _say(line: dict) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
