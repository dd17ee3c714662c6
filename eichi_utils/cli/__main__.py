"""Start the program `eichi`. Signals that stop it while it loads end it with one line. This file can be run from any folder."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for packages beside this file if it is run as a file, and in the current folder if it is run as a module;
    # ours are two folders up.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from eichi_utils.setup.console import leave_when_told


def main() -> int:
    """Load the commands, run one and return its exit code."""
    leave_when_told()
    from eichi_utils.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
