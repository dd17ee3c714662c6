"""Mark tests by what they need beside this process, and leave the marked ones out with `--quick`.

Kinds are pytest markers. A test is marked here by the fixtures that it uses, directly or through others. A test that starts a
process without a fixture must be marked by hand, else it fails. A file whose tests are all of one kind sets `pytestmark`;
`--quick` does not even import it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Kinds that --quick leaves out, each with the fixtures whose users belong to it.
KINDS = {"browser": {"browser"}, "model": {"checkpoint", "studio"}, "process": set(), "slow": {"serve", "whole"}}
WHOLE_FILE = re.compile(rf"^pytestmark = (\[.*)?pytest\.mark\.({'|'.join(KINDS)})\b", re.MULTILINE)
# Audit events with which Python reports that a process is started.
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.spawn", "os.system"})
STARTED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"leave out what is marked {', '.join(KINDS)}")


def pytest_configure(config: pytest.Config) -> None:
    """Note every process that is started from now on. An audit hook cannot be removed: it stays until Python ends."""
    started = config.stash[STARTED] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            started.append(f"{event} {arguments[:2]}")

    sys.addaudithook(hear)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, with --quick, files whose tests are all of one kind, before they are imported."""
    if not config.getoption("quick") or collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    return True if WHOLE_FILE.search(collection_path.read_text(encoding="utf-8")) else None


def kinds_of(item: pytest.Item) -> set[str]:
    return {kind for kind in KINDS if item.get_closest_marker(kind)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for kind, fixtures in KINDS.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(kind)
    if config.getoption("quick"):
        left_out = [item for item in items if kinds_of(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not kinds_of(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.config.stash[STARTED].clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test without a kind that starts a process, with and without --quick."""
    result = yield
    started = item.config.stash[STARTED]
    if started and not kinds_of(item):
        pytest.fail(f"starts a process ({started[0]}): mark it with @pytest.mark.process", pytrace=False)
    return result
