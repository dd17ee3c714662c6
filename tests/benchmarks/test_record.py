"""Test records of the benchmarks: what is kept, what is read again, and what counts as worse."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import record
from benchmarks.record import COMPARED, Record, compared, figures_of, keep, read_all

FASTER, ERROR, STEPS = (f"step: own: {kind.name}" for kind in (record.FASTER, record.ERROR, record.STEPS))
MACHINE = {"processor": "a", "cores": 2, "memory_gib": 8, "card": "", "system": "Linux"}


def made(minute: int = 0, machine: dict = MACHINE, **figures: float) -> Record:
    """Make a record of a minute; figures have the names of constants in lower case."""
    names = {"faster": FASTER, "error": ERROR, "steps": STEPS}
    named = {names[name]: value for name, value in figures.items()}
    return Record(f"2026-01-01T00:{minute:02}:00+00:00", "abc", False, machine, {"torch": "2"}, named)


def worse(record: Record, *earlier: Record, margin: float = 15.0) -> set[str]:
    return {change.name for change in compared(record, earlier, margin) if change.worse}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"faster": 2.0}, {"faster": 1.71}, set()),
        ({"faster": 2.0}, {"faster": 1.69}, {FASTER}),
        ({"faster": 2.0}, {"faster": 9.0}, set()),
        ({"error": 0.01}, {"error": 0.0114}, set()),
        ({"error": 0.01}, {"error": 0.0116}, {ERROR}),
        ({"error": 0.01}, {"error": 0.0}, set()),
        # The first has nothing to be a share of, the second is rounding.
        ({"error": 0.0}, {"error": 2e-4}, {ERROR}),
        ({"error": 1e-7}, {"error": 9e-5}, set()),
        ({"steps": 7.0}, {"steps": 15.0}, {STEPS}),
    ],
)
def test_what_is_worse_by_more_than_the_margin(before: dict, now: dict, expected: set) -> None:
    """More is better of some figures and less of others; better is never worse, by however much."""
    assert worse(made(1, **now), made(0, **before)) == expected


def test_the_median_of_the_last_five_is_what_counts() -> None:
    """The baseline is the median of the last five runs: a single run beside other work does not count, nor do old runs."""
    old = [made(minute, faster=9.0) for minute in range(3)]
    last = [made(3 + number, faster=value) for number, value in enumerate((2.0, 2.1, 0.1, 2.0, 9.0))]
    (change,) = compared(made(9, faster=1.8), [*old, *last], 15.0)
    assert (change.median, change.records, change.worse) == (2.0, COMPARED, False)
    assert change.percent == pytest.approx(10.0)
    assert worse(made(9, faster=1.8), *old, *last, margin=5.0) == {FASTER}


def test_machines_are_not_compared_with_each_other() -> None:
    """A laptop is slower than a card; that is no fault of the commit. Other versions are the same machine."""
    for name, value in (("processor", "b"), ("cores", 4), ("memory_gib", 16), ("card", "H100, 80 GiB")):
        assert compared(made(1, faster=1.0), [made(0, {**MACHINE, name: value}, faster=2.0)], 15.0) == []
    assert worse(made(1, faster=1.0), replace(made(0, faster=2.0), versions={"torch": "1"})) == {FASTER}


def test_figures_that_were_not_there_before_are_new() -> None:
    assert compared(made(1, faster=1.0), [made(0, error=0.1)], 15.0) == []


def test_damaged_records_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    """A single cut-off file ended every later comparison. Damaged records are now named and left out, and the others are
    ordered by time."""
    good = asdict(made(5, faster=2.0))
    for number, minute in ((1, 7), (2, 5)):
        (tmp_path / f"{number}.json").write_text(json.dumps({**good, "at": made(minute).at}))
    bad = {
        "cut": json.dumps(good)[:-40],
        "empty": "",
        "list": "[1, 2]",
        "lacks": json.dumps({name: value for name, value in good.items() if name != "machine"}),
        "words": json.dumps({**good, "figures": {FASTER: "fast"}}),
        "below": json.dumps({**good, "figures": {FASTER: -1}}),
        "nan": json.dumps({**good, "figures": {FASTER: float("nan")}}),
        "time": json.dumps({**good, "at": "yesterday"}),
        "zone": json.dumps({**good, "at": "2026-01-01T00:00:00"}),
    }
    for name, text in bad.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "notes.txt").write_text("no record")
    records, sentences = read_all(tmp_path)
    assert [one.at for one in records] == [made(5).at, made(7).at]
    assert {Path(sentence.partition(" is left out: ")[0]).stem for sentence in sentences} == {*bad, "folder"}
    assert all(sentence.partition(" is left out: ")[2].strip() for sentence in sentences)
    assert read_all(tmp_path / "none") == ([], [])


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    one, other = made(1, faster=2.0), replace(made(2, error=0.5), failed={"decode": "exit code 1"})
    paths = {keep(other, tmp_path / "new"), keep(one, tmp_path / "new")}
    assert len(paths) == 2 and read_all(tmp_path / "new") == ([one, other], [])


def test_figures_stand_beside_the_first_row() -> None:
    """Figures are read as the programs print them and compared with the first row; each size has a first row of its own."""
    speed = {"milliseconds": 5.0, "host_gib": 3.0, "floor": 1.0}
    rows = [
        {**speed, "size": size, "case": case, "ratio": ratio, "error": error, "gpu_gib": gib}
        for size in ("1x1", "2x2")
        for case, ratio, error, gib in (("diffusers", 1.0, 0.0, 9.0), ("own", 1.5, 0.01, 4.0))
    ]
    expected = {}
    for size in ("1x1", "2x2"):
        for kind, value in ((record.FASTER, 1.5), (record.ERROR, 0.01), (record.CARD, 4.0)):
            expected[f"{size}, own: {kind.name}"] = value
    assert dict(figures_of("step", {"rows": rows})) == expected
    assert f"1x1, own: {record.COMPUTER.name}" in dict(figures_of("load", {"rows": rows}))
    films = [{"case": case, "computed_steps": 6.0, "seconds": seconds, "error": 0.1} for case, seconds in (("a", 4), ("b", 2))]
    assert dict(figures_of("quality", {"rows": films})) == {
        f"a: {record.STEPS.name}": 6.0,
        f"b: {record.STEPS.name}": 6.0,
        f"b: {record.FASTER.name}": 2.0,
        f"b: {record.ERROR.name}": 0.1,
    }
    document = {"precision": "int8", "without": {"step_ms": 10.0}, "beside": {"step_ms": 12.0}}
    assert dict(figures_of("lora", document)) == {f"int8: {record.SLOWER.name}": 1.2}
    assert {name.rpartition(": ")[2] for name in expected} <= set(record.KINDS)


def test_a_run_is_kept_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A run is recorded and compared. The exit status is 0 for a first or equal run, and 1 if something is worse or failed."""
    answer = {"ratio": 2.0, "error": 0.0}
    asked = []

    def run(program: str, flags: list[str], minutes: float) -> tuple[str, str]:
        asked.append((program, flags))
        if program == "decode":
            return "half a docu", "exit code 1"
        rows = [{"size": "1x1", "case": case, "gpu_gib": 0.0, "host_gib": 1.0} for case in ("diffusers", "own")]
        return json.dumps({"rows": [{**rows[0], "ratio": 1.0, "error": 0.0}, {**rows[1], **answer}]}), ""

    monkeypatch.setattr(record, "run", run)
    monkeypatch.setattr(record, "commit", lambda: ("abc", False))
    flags = ["--folder", str(tmp_path)]
    assert record.main(['step --only "own, int8"', *flags]) == 0
    assert asked == [("step", ["--only", "own, int8", "--json"])] and "no earlier record" in capsys.readouterr().out
    (tmp_path / "broken.json").write_text("{")
    assert record.main(['step --only "own, int8"', *flags]) == 0
    said = capsys.readouterr()
    assert "broken.json is left out" in said.err and "margin 15 %" in said.out and "**worse**" not in said.out
    answer["ratio"] = 1.0
    assert record.main(['step --only "own, int8"', *flags]) == 1
    assert "| +50.0 % **worse** |" in capsys.readouterr().out
    assert record.main(['step --only "own, int8"', "--margin", "60", *flags]) == 0
    answer["error"] = float("nan")
    assert record.main(["step", *flags]) == 1
    assert "failed: step: no number" in capsys.readouterr().out
    assert record.main(["decode", *flags]) == 1
    assert "failed: decode: exit code 1" in capsys.readouterr().out
    records, left_out = read_all(tmp_path)
    assert len(records) == 6 and len(left_out) == 1 and records[-1].failed == {"decode": "exit code 1"}
    with pytest.raises(SystemExit):
        record.main(["film --tiny", *flags])


class Parsed(Exception):
    """Show that the flags were parsed, and end the program there."""


@pytest.mark.parametrize("line", [*record.ON_A_CARD, *record.WITHOUT_A_CARD])
def test_the_programs_know_their_flags(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flag that the record passes is known to its program; a removed flag would fail every later record."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *given: object) -> None:
        parse(parser, *given)
        raise Parsed

    program, *flags = shlex.split(line)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr("sys.argv", [program, *flags, "--json"])
    with pytest.raises(Parsed):
        importlib.import_module(f"benchmarks.{program}").main()


def test_the_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is named by what changes its figures, and by nothing that differs from one start to the next."""
    # Where nothing else tells, Python asks another program.
    monkeypatch.setattr(record.platform, "processor", lambda: "")
    kind = record.machine_kind(torch.device("cpu"))
    assert kind == record.machine_kind(torch.device("cpu")) and json.loads(json.dumps(kind)) == kind
    assert kind["processor"] and kind["cores"] >= 1 and kind["memory_gib"] >= 1 and kind["card"] == ""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nmodel name\t: B\n")
    assert record.processor(tmp_path / "cpuinfo") == "A CPU @ 2 GHz"
    assert record.processor(tmp_path / "none")
    assert record.versions()["torch"] == torch.__version__
    answers = iter([subprocess.CompletedProcess([], 0, "abc\n"), subprocess.CompletedProcess([], 0, " M a.py\n")])
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: next(answers))
    assert record.commit() == ("abc", True)
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 128, ""))
    assert record.commit() == ("", False)
