"""Keep files that can be made again in folders of limited size, by key; the longest unused is deleted first.

A key is a hash of everything that a file's content depends on, so no content becomes outdated. Nothing here fails a job: on a
full disk, or in a folder that cannot be written, a file is just made again next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eichi_utils.files import paths
from eichi_utils.files.temporary import own_prefix

logger = logging.getLogger(__name__)

GB = 10**9
DEFAULT_GB, MOST_GB = 24.0, 10_000
# Shares of the user's limit. 8-bit weights are 9 GB for each transformer, a prompt or picture some megabytes.
SHARES = {"prompts": 0.05, "pictures": 0.05, "weights": 0.9}
SUFFIX, UNFINISHED = ".safetensors", ".part"
# Bytes of the disk that stay free for films.
SPARE_BYTES = 2 * GB
# Seconds without a change after which an unfinished file counts as left by a process that has ended.
ABANDONED_SECONDS = 3600


def key_of(*parts: Any) -> str:
    """Return the key for JSON values, a SHA-256 in hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DiskCache:
    """Keep files in one folder. limit: largest size of all together in bytes; 0 switches the cache off."""

    folder: Path
    limit: int

    def find(self, key: str) -> Path | None:
        """Return the key's file, which counts as used now, or None."""
        if not self.limit:
            return None
        path = self._path(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:
            # Another user's file that can be read, or a folder that this user may not enter.
            with suppress(OSError):
                return path if path.is_file() else None
            return None
        return path

    def add(self, key: str, size: int, write: Callable[[Path], Any]) -> bool:
        """Let `write(path)` make the key's file of about `size` bytes, and return whether it is there now.

        Several processes may add the same key at once: each writes its own file, and the last one stays.
        """
        if not self.limit:
            return False
        if size > self.limit:
            logger.warning("not kept: %.1f GB is more than this cache may hold, %.1f GB", size / GB, self.limit / GB)
            return False
        temporary = self.folder / f"{own_prefix()}{secrets.token_hex(4)}{UNFINISHED}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            if (free := shutil.disk_usage(self.folder).free) < size + SPARE_BYTES:
                logger.warning("not kept: %.1f GB for the next start, but %.1f GB of the disk are free", size / GB, free / GB)
                return False
            write(temporary)
            temporary.replace(self._path(key))
            return True
        except OSError as error:
            logger.warning("not kept in %s: %s", self.folder, error)
            return False
        finally:
            _remove(temporary)

    def discard(self, key: str, reason: object) -> None:
        """Delete the key's file, which is damaged, so that it is made again."""
        logger.warning("damaged, and made again: %s: %s", self._path(key), reason)
        _remove(self._path(key))

    def usage(self) -> tuple[int, int]:
        """Return the number of finished files, and the bytes of all files, unfinished ones included."""
        files = self._files()
        return sum(path.suffix == SUFFIX for _, _, path in files), sum(size for _, size, _ in files)

    def empty(self) -> list[OSError]:
        """Delete everything that can be deleted, and return why other files could not be."""
        errors = []
        for _, _, path in self._files():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                errors.append(error)
        return errors

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return (last use, bytes, path) of all files, the longest unused first."""
        found, paths = [], []
        # Files in a folder that is missing or cannot be read could not be deleted anyway.
        with suppress(OSError):
            paths = list(self.folder.iterdir())
        for path in paths:
            if path.suffix in (SUFFIX, UNFINISHED):
                # Another process may have deleted the file.
                with suppress(OSError):
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _make_room(self, size: int) -> None:
        files = self._files()
        total = sum(there for _, there, _ in files) + size
        for used, there, path in files:
            finished = path.suffix == SUFFIX
            if (finished and total > self.limit) or (not finished and used < time.time() - ABANDONED_SECONDS):
                _remove(path)
                total -= there


def _remove(path: Path) -> None:
    # Windows does not delete open files; it is deleted another time.
    with suppress(OSError):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Caches:
    """Hold the caches: encodings of prompts and of pictures, and transformer weights in 8 bits as they lie in memory."""

    prompts: DiskCache
    pictures: DiskCache
    weights: DiskCache


def open_caches(gigabytes: float) -> Caches:
    """Return this program's caches, which together hold at most so many gigabytes; 0 switches them off."""
    folder = paths.place(paths.CACHE)
    return Caches(**{kind: DiskCache(folder / kind, int(share * gigabytes * GB)) for kind, share in SHARES.items()})
