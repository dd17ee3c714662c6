"""The program `eichi`; who stops it while it still loads ends it in a line. Run this file, from any folder, to start."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python looks for packages beside this file, and as a module in the current folder; ours lie above.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from eichi_utils.setup.console import leave_when_told


def main() -> int:
    """Load the commands and run one; the exit code."""
    leave_when_told()
    from eichi_utils.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
