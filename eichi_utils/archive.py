"""ZIP files from anywhere, read without trust: everything is judged by the directory before anything is unpacked."""

from __future__ import annotations

import io
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from eichi_utils.problems import Problem, UserError

FIELD = "sections"
MAX_ENTRIES = 1000
# A picture of 100 megapixels, the most that is read, without any compression, is 300 MB; nobody's PNG is over 200.
MAX_ENTRY_BYTES = 200 * 2**20
# Latents of a film of two minutes are 350 MB.
MAX_LATENTS_BYTES = 2**30
MAX_TOTAL_BYTES = 2 * 2**30
# Most that is read from the file at once; a directory of more than this has far over MAX_ENTRIES entries.
MAX_READ = 4 * 2**20
# What zipfile and its decompressors raise for damaged, encrypted or exotic archives.
ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


def most_bytes(name: str) -> int:
    """Of a file of this name."""
    return MAX_LATENTS_BYTES if name.lower().endswith(".safetensors") else MAX_ENTRY_BYTES


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; raises UserError if it is none, or if anything about its entries is not as it should be."""
    try:
        with _BoundedFile(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            problems = entry_problems(archive, path)
            if problems:
                raise UserError(problems)
            yield archive
    except FileNotFoundError:
        raise UserError([Problem(FIELD, "zip_missing", {"file": str(path)})]) from None
    except ERRORS as error:
        raise UserError([_damaged(path, error)]) from None


def entry_problems(archive: zipfile.ZipFile, path: Path) -> list[Problem]:
    """What forbids unpacking, from the directory alone."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        return [Problem(FIELD, "zip_entries", {"file": str(path), "count": len(entries), "limit": MAX_ENTRIES})]
    problems = []
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        shown = {"file": str(path), "name": entry.filename[:200]}
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:", name):
            problems.append(Problem(FIELD, "zip_name", shown))
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append(Problem(FIELD, "zip_link", shown))
        elif entry.flag_bits & 1:
            problems.append(Problem(FIELD, "zip_encrypted", shown))
        elif entry.file_size > (limit := most_bytes(name)):
            sizes = {"size": entry.file_size // 2**20, "limit": limit // 2**20}
            problems.append(Problem(FIELD, "zip_entry_size", {**shown, **sizes}))
    total = sum(entry.file_size for entry in entries)
    if not problems and total > MAX_TOTAL_BYTES:
        sizes = {"size": total // 2**20, "limit": MAX_TOTAL_BYTES // 2**20}
        problems.append(Problem(FIELD, "zip_total_size", {"file": str(path), **sizes}))
    return problems


def unpack(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """One entry into the file `target`: never more than its directory promised. Errors are those of `opened`."""
    with archive.open(name) as source, target.open("wb") as file:
        while chunk := source.read(MAX_READ):
            file.write(chunk)


class _BoundedFile(io.BufferedReader):
    """A file that never hands out more than MAX_READ bytes at once, whatever an archive says its directory's size is."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_READ if size is None or size < 0 else min(size, MAX_READ))


def _damaged(path: Path, error: BaseException) -> Problem:
    return Problem(FIELD, "zip_damaged", {"file": str(path), "reason": str(error)[:200] or type(error).__name__})
