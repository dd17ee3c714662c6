"""Test the log: its files, its lines, what is written to it, and that its failures hold up no job."""

from __future__ import annotations

import errno
import io
import logging
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eichi_utils.files.folders import OutputFolders
from eichi_utils.jobs.job_log import JobLog
from eichi_utils.jobs.queue import Jobs
from eichi_utils.problems import UserError
from eichi_utils.user_data import log_file as logs
from eichi_utils.user_data.log_file import FOLDER, Log, LogFile
from eichi_utils.user_data.settings import AppSettings, JsonFile
from locales import Translator
from tests.eichi_utils.helpers import found, names_in
from tests.eichi_utils.jobs.fakes import WAIT, Fake, ending, some

LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] (.*)")
T = Translator("en")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log("endframe_ichi", T, OutputFolders(tmp_path, (), FOLDER))
    yield log
    log.close()


def lines(log_or_file: Log | Path) -> list[str]:
    """Return the lines of a log without their times, which every line must have."""
    path = log_or_file if isinstance(log_or_file, Path) else log_or_file.path
    found = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(found)
    return [line[1] for line in found]


def test_a_file_of_its_own(log: Log, tmp_path: Path) -> None:
    """The log file is named as in the existing program; while it is off, neither the file nor its folder is made."""
    log.apply(False, "logs")
    log.say("unheard")
    assert log.path is None and names_in(tmp_path) == set()
    log.apply(True, "logs")
    assert log.path.parent == tmp_path / "logs" and re.fullmatch(r"endframe_ichi_\d{8}_\d{6}\.log", log.path.name)
    log.say("猫 \ud83d")
    log.say("")
    path = log.path
    log.close()
    assert lines(path) == [
        "=== FramePack-eichi endframe_ichi: the log begins ===",
        r"猫 \ud83d",
        "",
        "=== FramePack-eichi endframe_ichi: the log ends ===",
    ]


def test_whatever_is_logged(log: Log) -> None:
    """The log file holds our warnings, other libraries', Python's and tracebacks, each line with its time, on the disk at
    once."""
    log.apply(True, "")
    logging.getLogger("eichi_utils.anything").warning("first\n\n  second")
    logging.getLogger("somebody.else").error("no %s", "more")
    logging.getLogger("eichi_utils.anything").info("a detail")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old things", UserWarning, stacklevel=1)
    try:
        raise ValueError("of no value")
    except ValueError:
        logging.getLogger("eichi_utils.anything").exception("it happened")
    said = lines(log)[1:]
    assert said[:3] == ["WARNING eichi_utils.anything: first", "  second", "ERROR somebody.else: no more"]
    assert "old things" in said[3] and said[3].startswith("WARNING py.warnings: ")
    assert "ERROR eichi_utils.anything: it happened" in said and said[-1] == "ValueError: of no value"
    assert "Traceback (most recent call last):" in said and not any("a detail" in line for line in said)


def test_another_folder_is_another_file(log: Log, tmp_path: Path) -> None:
    """Another folder begins another log file and closes the old one; the same folder again changes nothing."""
    handlers = list(logging.getLogger().handlers)
    log.apply(True, "one")
    first = log.path
    log.apply(True, " one ")
    assert log.path == first
    log.apply(True, "two")
    second = log.path
    logging.getLogger("x").warning("here")
    log.apply(False, "two")
    logging.getLogger("x").warning("nowhere")
    assert [len(lines(path)) for path in (first, second)] == [2, 3]
    assert "ends" in lines(first)[-1] and lines(second)[1] == "WARNING x: here" and "ends" in lines(second)[-1]
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("../x", "folder_upwards"),
        ("/etc", "folder_not_allowed"),
        ("~", "folder_not_allowed"),
        ("file/x", "folder_not_writable"),
        ("a\nb", "folder_name"),
        ("\ud800", "text_not_unicode"),
        ("x" * 6000, "folder_name_too_long"),
    ],
)
def test_folders_that_cannot_be(log: Log, tmp_path: Path, folder: str, key: str) -> None:
    """Folders of the log have the same rules as those of films; a refused one leaves the current log running."""
    (tmp_path / "file").write_text("x")
    log.apply(True, "logs")
    before = log.path
    with pytest.raises(UserError) as error:
        log.apply(True, folder)
    assert found(error.value.problems) == {(FOLDER, key)}
    log.say("on")
    assert log.path == before and lines(before)[-1] == "on"
    # Switching the log off needs no valid folder.
    log.apply(False, folder)
    assert log.path is None


def test_folders_that_were_given(tmp_path: Path) -> None:
    log = Log("x", T, OutputFolders(tmp_path / "webui", (tmp_path / "else",), FOLDER))
    log.apply(True, str(tmp_path / "else" / "logs"))
    assert log.path.parent == tmp_path / "else" / "logs"
    log.close()


def test_what_was_saved_counts_from_the_start(log: Log, tmp_path: Path) -> None:
    """A folder that an older program was content with is said, and the program starts without a log."""
    settings = AppSettings(JsonFile(tmp_path / "app_settings.json"))
    assert log.begin(settings, "reverse") == () and log.path is None
    settings.save_program({"log_enabled": True})
    assert log.begin(settings, "reverse") == () and log.path.parent == tmp_path / "logs"
    log.close()
    settings.save_program({"log_folder": "/etc/logs"})
    assert found(log.begin(settings, "reverse")) == {(FOLDER, "folder_not_allowed")} and log.path is None


@pytest.fixture
def jobs(log: Log) -> Iterator[Jobs]:
    """Provide a queue with a log, whose runs of two sections take a moment."""
    jobs = Jobs(Fake(), [JobLog(log, T)])
    yield jobs
    jobs.close(WAIT)


class Full(io.BytesIO):
    """Simulate a file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def full(self: LogFile) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(Full()), encoding="utf-8")


def in_the_way(log: Log) -> None:
    shutil.rmtree(log.path.parent)
    log.path.parent.write_text("a file")


@pytest.mark.parametrize("harm", ["full", "in the way"])
def test_a_log_that_cannot_be_written_harms_nothing(
    log: Log, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    """A log that cannot be written gives a single warning, the film is made, and the log goes on when there is room again."""
    log.apply(True, "logs")
    with monkeypatch.context() as patched:
        patched.setattr(LogFile, "_open", full) if harm == "full" else in_the_way(log)
        for _ in range(2):
            assert ending(jobs, jobs.submit(some())).state == "finished"
        jobs.close(WAIT)
    (warned,) = [record for record in caplog.records if "nothing can be written to the log" in record.getMessage()]
    assert str(log.path) in warned.getMessage()
    if harm == "in the way":
        log.path.parent.unlink()
    log.say("on")
    assert lines(log)[-1] == "on"


def test_a_folder_that_was_deleted_is_made_again(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.apply(True, "logs")
    shutil.rmtree(log.path.parent)
    log.say("on")
    assert lines(log) == ["on"] and caplog.records == []


def test_a_record_that_cannot_be_put_together_is_no_crash(log: Log, capsys: pytest.CaptureFixture) -> None:
    """A log record that cannot be formatted, through a library's own mistake, is no crash."""
    log.apply(True, "logs")
    log._file.handle(logging.LogRecord("library", logging.WARNING, "", 0, "%d of %d", (1,), None))
    assert "Logging error" in capsys.readouterr().err
    log.say("on")
    assert lines(log)[-1] == "on"


def test_many_threads_and_a_change_of_folders(log: Log, tmp_path: Path) -> None:
    """If many threads log while the folder changes, lines stay whole and each is in exactly one of the files."""

    def speak(number: int) -> None:
        for line in range(50):
            log.say(f"{number}.{line}")

    log.apply(True, "a")
    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for folder in ("b", "c"):
        log.apply(True, folder)
    for thread in threads:
        thread.join()
    log.close()
    said = [line for path in tmp_path.rglob("*.log") for line in lines(path) if "===" not in line]
    assert sorted(said) == sorted(f"{number}.{line}" for number in range(4) for line in range(50))


def test_a_file_has_an_end(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that repeats itself filled the disk: 103 MB in 40 s. The older half is kept once."""
    monkeypatch.setattr(logs, "LARGEST", 2000)
    log.apply(True, "")
    for number in range(300):
        log.say(f"line {number} " + "x" * 80)
    older = log.path.with_suffix(".old.log")
    assert names_in(log.path.parent) == {log.path.name, older.name}
    assert log.path.stat().st_size <= 2000 and 1800 < older.stat().st_size <= 2000
    said = [*lines(older), *lines(log.path)]
    assert [int(line.split()[1]) for line in said] == list(range(300 - len(said), 300))


def test_several_processes_write_one_file(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs that begin in the same second have one file: who renames it when it is full takes no line of the other."""
    monkeypatch.setattr(logs, "LARGEST", 8000)
    log.apply(True, "")
    other = LogFile(log.path, logs.Seldom())
    for number in range(80):
        log.say(f"one {number} " + "x" * 40)
        other.handle(logging.LogRecord(logs.SAID, logging.INFO, "", 0, f"two {number} " + "y" * 40, None, None))
    other.close()
    older = log.path.with_suffix(".old.log")
    assert names_in(log.path.parent) == {log.path.name, older.name}
    said = [line.split()[:2] for line in [*lines(older), *lines(log.path)] if "===" not in line]
    assert said == [[name, str(number)] for number in range(80) for name in ("one", "two")]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("asked with hf_abcDEF0123456789abcDEF for it", "asked with hf_*** for it"),
        ("ProxyError('http://me:secret@proxy:8080')", "ProxyError('http://***@proxy:8080')"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("hf_hub is at https://huggingface.co/a@b", "hf_hub is at https://huggingface.co/a@b"),
        ("a cat, token: ohwx, mail me@here", "a cat, token: ohwx, mail me@here"),
    ],
)
def test_secrets_stay_out(log: Log, text: str, written: str) -> None:
    """A log is sent to others when something fails, and a failed download may name the key or the proxy's password."""
    log.apply(True, "")
    log.say(text)
    try:
        raise OSError(text)
    except OSError:
        logging.getLogger("x").exception("it failed: %s", text)
    said = lines(log)
    assert said[1] == written and said[2] == f"ERROR x: it failed: {written}" and said[-1] == f"OSError: {written}"


def test_the_same_is_not_said_without_end() -> None:
    """The same message is logged at most sixty times a minute, whatever its values and traceback; the rest is counted.
    Others go on."""
    now = [0.0]
    seldom = logs.Seldom(lambda: now[0])

    def record(text: str, *values: object, name: str = "x") -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, text, values, None)

    assert [seldom.filter(record(f"bad 0\nTraceback {n}", n)) for n in range(100)].count(True) == logs.OFTEN
    assert seldom.filter(record("good")) and seldom.filter(record("bad 0", name="y"))
    now[0] = logs.PERIOD + 1
    next_one = record("bad 0\nTraceback", 7)
    assert seldom.filter(next_one) and seldom.filter(next_one)
    assert next_one.msg == "bad 0\nTraceback (40 more like this one left out)"
    assert [seldom.filter(record("bad 0")) for _ in range(100)].count(True) == logs.OFTEN - 1
    for number in range(10_000):
        assert seldom.filter(record(f"kind {number}"))
    assert len(seldom._seen) == logs.KINDS


def test_a_traceback_is_written_once_a_minute() -> None:
    """A traceback is written once a minute: sixty of 10 KB, for anybody who knew a failing request, were megabytes. Others
    are not affected."""
    now = [0.0]
    seldom = logs.Seldom(lambda: now[0])
    shown = logging.Formatter()

    def fail(number: int) -> None:
        raise KeyError(f"number {number}")

    def fail_elsewhere(number: int) -> None:
        raise KeyError(f"elsewhere {number}")

    def written(count: int, failing: Any = fail) -> list[str]:
        texts = []
        for number in range(count):
            try:
                failing(number)
            except KeyError as error:
                caught = (type(error), error, error.__traceback__)
            record = logging.LogRecord("x", logging.ERROR, "", 0, "it failed\n", (), caught)
            if seldom.filter(record):
                texts.append(shown.format(record))
        return texts

    first, *others = written(500)
    assert "Traceback" in first and "raise KeyError" in first and "number 0" in first
    assert len(others) == logs.OFTEN - 1 and not any("Traceback" in text for text in others)
    assert "KeyError: 'number 7'" in others[6]
    other, *_ = written(3, fail_elsewhere)
    assert "Traceback" in other and "elsewhere 0" in other
    now[0] = logs.PERIOD + 1
    again, *_ = written(2)
    assert "Traceback" in again and f"({500 - logs.OFTEN} more" in again


def test_the_same_is_not_said_at_any_length() -> None:
    """Records were counted, whatever their length: a browser's words in one may be megabytes."""
    seldom, shown = logs.Seldom(lambda: 0.0), logging.Formatter()

    def record(text: str, *values: object, error: Exception | None = None) -> logging.LogRecord:
        return logging.LogRecord("x", logging.ERROR, "", 0, text, values, error and (type(error), error, None))

    said = [record("%s was asked for", "x" * 10_000) for _ in range(60)]
    assert [seldom.filter(one) for one in said].count(True) == -(-logs.OFTEN_CHARACTERS // 10_016)
    for long in (record("%s 100%% of it", "y" * 10**6), record("z" * 10**6), record("bad", error=ValueError("w" * 10**6))):
        assert seldom.filter(long) and 100 < len(shown.format(long)) < logs.LONGEST + 100
    # A record whose arguments do not fit its text is passed on: the handler reports it.
    assert seldom.filter(record("%d", "x")) and seldom.filter(record("%(a)s", {"b": 1}))


def test_what_is_logged_without_end(log: Log) -> None:
    """Repeated lines without end are limited in the file too, but a film's own lines are all written."""
    log.apply(True, "")
    for number in range(200):
        logging.getLogger("x").warning("again %d", number)
        log.say(f"step {number}")
    said = lines(log)
    assert len([line for line in said if "again" in line]) == logs.OFTEN
    assert len([line for line in said if "step" in line]) == 200
