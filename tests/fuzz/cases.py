"""Make and run the cases of a reader; each is made from its number, so that it can be made again."""

from __future__ import annotations

import contextlib
import logging
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from eichi_utils.problems import UserError
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import READERS, Reader

# Seconds of the processor, and bytes, that a case may take.
MOST_SECONDS = 2.0
MOST_BYTES = 300 * 2**20
MIB = 2**20


@dataclass(frozen=True)
class Finding:
    """Hold one finding.

    kind: findings of one kind are the same fault: type and place of an error, or "time" or "memory". details: traceback or
    figures. data, name: content and name of the file.
    """

    reader: str
    case: int
    kind: str
    details: str
    data: bytes
    name: str


class Cases:
    """Make and run the mutations of a reader's seeds, each in a folder that is deleted after it.

    The first cases, as many as there are seeds, are the seeds themselves. seed: other numbers give other mutations.
    """

    def __init__(self, reader: Reader, seed: int, folder: Path):
        self.reader, self.seed, self.folder = reader, seed, folder
        (folder / "seeds").mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.seeds = [(file.suffix, file.read_bytes()) for file in reader.seeds(folder / "seeds")]
        assert self.seeds

    def make(self, case: int) -> tuple[str, bytes]:
        """Return a case's file name and content."""
        if case < len(self.seeds):
            suffix, data = self.seeds[case]
            return f"case{case}{suffix}", data
        random = Random(f"{self.seed} {self.reader.name} {case}")
        suffix, data = random.choice(self.seeds)
        data = mutated(data, [other for _, other in self.seeds], random)
        return f"case{case}{suffix}", data

    def run(self, case: int) -> Finding | None:
        """Read the file of a case; returns None if the reader ends as it may, in time and in little memory."""
        name, data = self.make(case)
        place = self.folder / "place"
        place.mkdir()
        (place / name).write_bytes(data)
        # Time of the processor: other work on the machine does not count, and a reader that only waits is ended as a hang.
        before, began = _peak(), time.process_time()
        try:
            kind, details = _ended(self.reader, place / name)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        seconds, grown = time.process_time() - began, _peak() - before
        if not kind and seconds > MOST_SECONDS:
            kind, details = "time", f"{seconds:.1f} s"
        if not kind and grown > MOST_BYTES:
            kind, details = "memory", f"{grown // MIB} MB"
        return Finding(self.reader.name, case, kind, details, data, name) if kind else None


def _ended(reader: Reader, path: Path) -> tuple[str, str]:
    """Read a file; returns kind and details of an error that no reader may raise, else ("", "")."""
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            reader.read(path)
    except (UserError, *reader.errors):
        return "", ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            frame for frame in frames if "eichi" in frame.filename or "_utils" in frame.filename or "helper" in frame.filename
        ]
        last, ours = frames[-1], (own or frames)[-1]
        places = f"{Path(ours.filename).name}:{ours.name} {Path(last.filename).name}:{last.name}"
        return f"{type(error).__name__} {places}", "".join(traceback.format_exception(error))[-6000:]
    return "", ""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Turn logging off: thousands of warnings about damaged files help nobody."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def cases_of(name: str, seed: int) -> Iterator[Cases]:
    """Make the cases of a reader in a temporary folder, where the reader's own temporary files lie too."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="eichi-fuzz-") as folder:
        (Path(folder) / "temporary").mkdir()
        tempfile.tempdir = str(Path(folder) / "temporary")
        try:
            yield Cases(READERS[name], seed, Path(folder))
        finally:
            tempfile.tempdir = before
