"""`python -m tests.golden FOLDER`: a line for every vector file with its largest error; exit code 1 if one is too large."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden.replay import replay_folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.golden FOLDER")
        return 2
    results = list(replay_folder(Path(arguments[0])))
    for result in results:
        print(result)
    if not results:
        print("no vector files found")
    return 0 if results and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
