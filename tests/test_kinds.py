"""Test that --quick leaves out what it should, and that an unmarked test that starts a process fails."""

from __future__ import annotations

import pytest

MIXED = """
import subprocess, sys
import pytest

@pytest.fixture
def checkpoint():
    return "weights"

@pytest.fixture
def pool(checkpoint):
    return checkpoint

def start():
    subprocess.run([sys.executable, "-S", "-c", ""])

def test_plain():
    pass

def test_that_forgets():
    start()

@pytest.mark.process
def test_that_says_so():
    start()

def test_with_a_model(pool):
    pass

@pytest.mark.slow
def test_slow():
    pass
"""
WHOLE = """
import pytest

pytestmark = pytest.mark.browser

def test_page():
    pass
"""


@pytest.mark.process
def test_what_is_quick_and_who_forgets(pytester: pytest.Pytester) -> None:
    """Somebody's new test started a process, and the loop of a few seconds was one of minutes some months later."""
    pytester.makepyfile(test_mixed=MIXED, test_whole=WHOLE)
    plugins = ("-p", "tests.kinds", "-p", "no:cacheprovider")
    every = pytester.runpytest_inprocess(*plugins)
    every.assert_outcomes(passed=5, failed=1)
    every.stdout.fnmatch_lines(["*starts a process (subprocess.Popen*): mark it with @pytest.mark.process*"])
    quick = pytester.runpytest_inprocess(*plugins, "--quick")
    # The other file was not even imported.
    quick.assert_outcomes(passed=1, failed=1, deselected=3)
