"""Read ZIP files safely: everything is checked by the directory before anything is unpacked.

While unpacking, no entry gives more bytes than the directory declares, whatever its compressed data expand to.
"""

from __future__ import annotations

import bz2
import copy
import io
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from eichi_utils.files.encodings import likeliest
from eichi_utils.files.pictures import MAX_BYTES
from eichi_utils.files.safe_reading import open_regular
from eichi_utils.problems import Problem, UserError

FIELD = "sections"
MAX_ENTRIES = 1000
# Only latents may be larger than a picture.
MAX_ENTRY_BYTES = MAX_BYTES
# Latents of a film of two minutes are 350 MB.
MAX_LATENTS_BYTES = 2**30
MAX_TOTAL_BYTES = 2 * 2**30
# Largest size of all entries: this much, and so many times their packed size. Pictures and latents are packed already, and
# texts are small. bzip2 and LZMA take a second for 300 MB of what packs best.
FREE_BYTES, MAX_RATIO = 256 * 2**20, 20
# Largest number of bytes that are read from the file at once; a larger directory has far over MAX_ENTRIES entries.
MAX_READ = 4 * 2**20
# Bytes of an entry, packed or not, that are read at once.
PIECE = 2**18
# Largest memory of LZMA in bytes; 7-Zip's strongest setting takes 64 MB for its dictionary.
MAX_LZMA_BYTES = 100 * 2**20
# Exceptions of zipfile and its decompressors for damaged, encrypted or unusual archives.
ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError, struct.error, IndexError)
# General purpose flags of an entry: encrypted; LZMA with an end mark; name in UTF-8.
ENCRYPTED, END_MARK, UTF_8 = 1, 2, 0x800
# Info-ZIP's extra field with the entry's name in UTF-8: version, CRC of the name it belongs to, the name.
UNICODE_PATH, UNICODE_PATH_VERSION = 0x7075, 1
# Bytes of the header before an entry's name and data.
HEADER_BYTES = 30


@dataclass(frozen=True)
class Archive:
    """Hold an opened ZIP. entries: by name in its maker's spelling, with slashes; without folders."""

    file: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]

    def read(self, name: str) -> bytes:
        """Return an entry's content. Errors are those of `opened`."""
        return b"".join(self._pieces(self.entries[name]))

    def unpack(self, name: str, target: Path) -> None:
        """Write an entry to the file `target`. Errors are those of `opened`."""
        with target.open("wb") as file:
            for piece in self._pieces(self.entries[name]):
                file.write(piece)

    def _pieces(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield an entry's content in pieces of limited size; checks the declared size and the checksum."""
        size = total = 0
        for piece in _inflated(self.file, entry):
            size += len(piece)
            total = zlib.crc32(piece, total)
            if size > entry.file_size:
                raise zipfile.BadZipFile(f"an entry holds more than the {entry.file_size} bytes that it declares")
            yield piece
        if size < entry.file_size or total != entry.CRC:
            raise zipfile.BadZipFile("the checksum of an entry is wrong")


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive. Raises UserError if it is none, or if its entries are not acceptable."""
    try:
        with _BoundedFile(open_regular(path).detach()) as file, zipfile.ZipFile(file) as archive:
            if (count := len(archive.infolist())) > MAX_ENTRIES:
                values = {"file": str(path), "count": count, "limit": MAX_ENTRIES}
                raise UserError([Problem(FIELD, "zip_entries", values)])
            names = names_of(archive.infolist())
            if problems := entry_problems(archive, names, path):
                raise UserError(problems)
            files = {name: entry for name, entry in names.items() if not name.endswith("/")}
            yield Archive(archive, files)
    except FileNotFoundError:
        raise UserError([Problem(FIELD, "zip_missing", {"file": str(path)})]) from None
    except ERRORS as error:
        raise UserError([_damaged(path, error)]) from None


def names_of(entries: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by their names in their maker's spelling, with slashes; equal names get a number.

    A name is in UTF-8 only if it is marked so. The others are in the encoding of the maker's system, which is guessed from all
    names together; zipfile assumes cp437, which is rarely right outside of America. Raises ValueError for an empty name.
    """
    marked = {number: name for number, entry in enumerate(entries) if (name := _marked_name(entry)) is not None}
    raw = {number: entry.orig_filename.encode("cp437") for number, entry in enumerate(entries) if number not in marked}
    encoding = _encoding(b"\n".join(raw.values()))
    named = marked | {number: name.decode(encoding, "replace") for number, name in raw.items()}
    found: dict[str, zipfile.ZipInfo] = {}
    for number, entry in enumerate(entries):
        name = named[number].replace("\\", "/")
        if not name or "\0" in name:
            raise ValueError("an entry has no name")
        count, unique = 1, name
        while unique in found:
            count, unique = count + 1, f"{name} ({count + 1})"
        found[unique] = entry
    return found


def _encoding(names: bytes) -> str:
    try:
        names.decode()
    except UnicodeDecodeError:
        return likeliest(names)
    return "utf-8"


def _marked_name(entry: zipfile.ZipInfo) -> str | None:
    """Return the name of an entry that gives its encoding, or whose name is ASCII; otherwise None."""
    if entry.flag_bits & UTF_8 or entry.orig_filename.isascii():
        return entry.orig_filename
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        part, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(part) > 5:
            version, checksum = struct.unpack_from("<BI", part)
            # A program that does not know the field may have renamed the entry.
            if version == UNICODE_PATH_VERSION and checksum == zlib.crc32(entry.orig_filename.encode("cp437")):
                return part[5:].decode()
    return None


def entry_problems(archive: zipfile.ZipFile, names: Mapping[str, zipfile.ZipInfo], path: Path) -> list[Problem]:
    """Return what forbids unpacking, judged by the directory alone. Raises BadZipFile if entries overlap."""
    problems = []
    for name, entry in names.items():
        shown = {"file": str(path), "name": shown_name(name)[:200]}
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:", name):
            problems.append(Problem(FIELD, "zip_name", shown))
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append(Problem(FIELD, "zip_link", shown))
        elif entry.flag_bits & ENCRYPTED:
            problems.append(Problem(FIELD, "zip_encrypted", shown))
        elif entry.file_size > (limit := most_bytes(name)):
            sizes = {"size": entry.file_size // 2**20, "limit": limit // 2**20}
            problems.append(Problem(FIELD, "zip_entry_size", {**shown, **sizes}))
    total = sum(entry.file_size for entry in names.values())
    packed = sum(entry.compress_size for entry in names.values())
    if not problems and total > (most := min(MAX_TOTAL_BYTES, FREE_BYTES + MAX_RATIO * packed)):
        sizes = {"size": total // 2**20, "limit": most // 2**20}
        problems.append(Problem(FIELD, "zip_total_size", {"file": str(path), **sizes}))
    if not problems:
        _check_places(archive)
    return problems


def _check_places(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile if entries overlap: thousands of entries over the same data make a bomb of a small file."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise zipfile.BadZipFile("entries lie over each other")
        end = entry.header_offset + HEADER_BYTES + entry.compress_size
    if end > archive.start_dir:
        raise zipfile.BadZipFile("an entry lies over the directory")


def most_bytes(name: str) -> int:
    """Return the largest allowed size in bytes of an entry with this name."""
    return MAX_LATENTS_BYTES if name.lower().endswith(".safetensors") else MAX_ENTRY_BYTES


def shown_name(name: str) -> str:
    """Return an entry's name with U+FFFD for control characters and others that cannot be printed."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def _inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield an entry's content in pieces of limited size.

    zipfile itself returns all that bzip2 or LZMA make of 4 kB at once, which may be gigabytes.
    """
    stored = copy.copy(entry)
    # Reads the packed bytes: marked as stored, and without the checksum of the content, which would not match.
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, entry.compress_size
    del stored.CRC
    with archive.open(stored) as source:
        if entry.compress_type == zipfile.ZIP_STORED:
            while piece := source.read(PIECE):
                yield piece
        elif entry.compress_type == zipfile.ZIP_DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            while not inflate.eof:
                yield inflate.decompress(inflate.unconsumed_tail or _more(source), PIECE)
        else:
            other = _decompressor(entry, source)
            while not other.eof:
                yield other.decompress(_more(source) if other.needs_input else b"", PIECE)


def _decompressor(entry: zipfile.ZipInfo, source: IO[bytes]) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
    if entry.compress_type == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor()
    if entry.compress_type != zipfile.ZIP_LZMA:
        raise NotImplementedError(f"compression method {entry.compress_type}")
    # APPNOTE 5.8: version, size of the properties, properties. A .lzma file begins with the properties and the size.
    _, size = struct.unpack("<HH", source.read(4))
    length = -1 if entry.flag_bits & END_MARK else entry.file_size
    found = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_LZMA_BYTES)
    found.decompress(source.read(size) + struct.pack("<q", length), 0)
    return found


def _more(source: IO[bytes]) -> bytes:
    if not (data := source.read(PIECE)):
        raise EOFError("an entry ends too early")
    return data


class _BoundedFile(io.BufferedReader):
    """Read at most MAX_READ bytes at once, whatever size an archive gives for its directory."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(MAX_READ if size is None or size < 0 else min(size, MAX_READ))


def _damaged(path: Path, error: BaseException) -> Problem:
    return Problem(FIELD, "zip_damaged", {"file": str(path), "reason": str(error)[:200] or type(error).__name__})
