"""Test every reader on a hundred mutated files; `python -m tests.fuzz` tries as many as one likes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from random import Random

import pytest

from eichi_utils.problems import Problem, UserError
from tests.fuzz import __main__ as main
from tests.fuzz import cases
from tests.fuzz.cases import Cases, cases_of
from tests.fuzz.mutate import NASTY, mutated
from tests.fuzz.readers import READERS, Reader, say

pytestmark = pytest.mark.slow

CASES, SEED = 100, 1


@pytest.mark.parametrize("name", READERS)
def test_no_file_ends_in_a_traceback(name: str) -> None:
    """No mutated file ends in a traceback. Mutations are the same on every machine: `--seed 1 --case N` repeats a case."""
    with cases_of(name, SEED) as made:
        # The first case does the late imports, which count for none.
        made.run(0)
        for case in range(len(made.seeds), len(made.seeds) + CASES):
            finding = made.run(case)
            assert finding is None or finding.kind == "time", f"{name} --seed {SEED} --case {case}: {finding.details}"


def broken(read) -> Reader:
    def seeds(folder: Path) -> list[Path]:
        (folder / "a.json").write_text('{"a": 1, "b": [2, "text"]}')
        return [folder / "a.json"]

    return Reader("broken", seeds, read)


def test_findings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback and too much time are findings; a reader's own refusal is none, and much memory is nothing else."""

    def refuses(path: Path) -> None:
        raise UserError([Problem("", "not_an_object")])

    def fails(path: Path) -> None:
        json.loads(path.read_bytes())["a"] += 1

    def works(path: Path) -> None:
        end = time.process_time() + 0.15
        while time.process_time() < end:
            pass

    def grows(path: Path) -> None:
        assert len(bytearray(80 * 2**20)) and bytes(2**26)

    monkeypatch.setattr(cases, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(cases, "MOST_BYTES", 2**24)
    kinds = {}
    # Not every changed document makes `fails` fail, so it gets more cases.
    for number, (read, count) in enumerate(((refuses, 30), (fails, 30), (works, 2), (grows, 3))):
        (tmp_path / str(number)).mkdir()
        made = Cases(broken(read), 0, tmp_path / str(number))
        kinds[read.__name__] = {finding.kind.split()[0] for case in range(count) if (finding := made.run(case))}
    assert kinds["refuses"] == set() and kinds["works"] == {"time"}
    assert {"TypeError", "JSONDecodeError"} <= kinds["fails"]
    # The memory peak of this process grows only if no earlier test used as much.
    assert kinds["grows"] <= {"memory"}


@pytest.mark.process
def test_waiting_is_no_hang_and_working_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang is judged by processor time: on a busy machine a case that took long by the clock was reported as one."""
    begin = "import time; print('{\"case\": 7}', flush=True); "
    works, waits, ends = "\nwhile True: pass", "time.sleep(1000)", "time.sleep(0.8); print('{\"end\": 8}', flush=True)"
    process = main._process
    monkeypatch.setattr(main, "HANGS_SECONDS", 0.3)
    for rest, most, ended in ((works, 300.0, (7, "hang")), (ends, 300.0, (8, "end")), (waits, 0.3, (7, "hang"))):
        code = begin + rest
        monkeypatch.setattr(main, "_process", lambda command, code=code: process([sys.executable, "-c", code]))
        monkeypatch.setattr(main, "WAITS_SECONDS", most)
        assert main._watch_one(main.Watched("request"), 0, 0, 1.0, tmp_path) == ended


def test_minutes_are_those_of_all_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minutes given are shared by all readers; one minute was spent on each of thirteen."""
    given = []
    monkeypatch.setattr(main, "watch", lambda name, seed, seconds, folder: given.append(seconds) or main.Watched(name))
    monkeypatch.setattr(sys, "argv", ["fuzz", "--minutes", "1", "--keep", str(tmp_path), "films", "texts", "lora"])
    assert main.main() == 0 and given == [20, 20, 20]


def test_a_case_is_made_again_by_its_number() -> None:
    with cases_of("request", 3) as one, cases_of("request", 3) as other, cases_of("request", 4) as third:
        numbers = range(len(one.seeds), len(one.seeds) + 30)
        assert [one.make(number) for number in numbers] == [other.make(number) for number in numbers]
        assert [one.make(number) for number in numbers] != [third.make(number) for number in numbers]


def test_changes_get_past_the_first_check() -> None:
    """Most changed documents are still read as JSON by Python's parser."""
    data = json.dumps({"prompt": "a cat", "seed": 7, "loras": [{"file": "a", "strength": 1}]}).encode()
    changed = [mutated(data, [data], Random(number)) for number in range(200)]
    assert len(set(changed)) > 150
    assert sum(any(raw.encode() in one for raw in NASTY if len(raw) > 3) for one in changed) > 40


def test_what_is_said_is_checked() -> None:
    with pytest.raises(UnicodeEncodeError):
        "\ud800".encode()
    say([Problem("prompt", "text_not_unicode")])
