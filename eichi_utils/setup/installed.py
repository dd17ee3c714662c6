"""Print as JSON what the environment holds whose Python runs this file: `python installed.py ROOT`.

This is for an environment that launch.py did not make, or whose stamp was lost: a complete one is not made again. Standard
library only, except for `packaging`, which several of our packages require; parses on Python 3.7, as launch.py does.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path

TEST_TOOLS = ("pytest", "pytest-xdist", "playwright", "httpx", "ruff")
SPEED_UPS = ("xformers", "sageattention", "fa3-fwd")


def version_of(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_satisfied(line: str, root: Path) -> bool:
    """Say whether a line of requirements.txt is fulfilled. Dependencies are not checked; pip installed them with it."""
    if re.match(r"-e\s+\.$", line):
        found = importlib.util.find_spec("eichi_utils")
        places = [Path(place).resolve() for place in (found.submodule_search_locations if found else None) or ()]
        return (root / "eichi_utils").resolve() in places
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(line)
    except (ImportError, ValueError):
        return False
    if wanted.marker and not wanted.marker.evaluate():
        return True
    version = version_of(wanted.name)
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def report(root: Path) -> dict:
    """Return versions and flags. complete: all of requirements.txt is installed. test, speed_ups: the test tools, a speed-up.

    python, torch: their versions. prefix: the environment's folder. pip: whether pip is installed.
    """
    text = (root / "requirements.txt").read_text(encoding="utf-8")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    return {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "prefix": sys.prefix,
        "torch": version_of("torch"),
        "complete": all(is_satisfied(line, root) for line in lines if line),
        "pip": importlib.util.find_spec("pip") is not None,
        "test": all(map(version_of, TEST_TOOLS)),
        "speed_ups": any(map(version_of, SPEED_UPS)),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report(Path(sys.argv[1]))))
