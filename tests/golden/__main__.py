"""Replay a folder of reference vectors and print each file's errors: `python -m tests.golden FOLDER`.

The exit code is 1 if an error is too large or there are no vectors.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden.replay import replay_folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.golden FOLDER")
        return 2
    passed = []
    for result in replay_folder(Path(arguments[0])):
        print(result, flush=True)
        passed.append(result.passed)
    if not passed:
        print("no vector files found")
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
