"""Copy the user's files from temporary places (a page's upload, an archive) to a permanent folder, once per content."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from eichi_utils.files.names import harmless_name
from eichi_utils.files.paths import written_atomically
from eichi_utils.files.safe_reading import open_regular

PIECE = 2**20


def keep(picture: Path, folder: Path, name: str = "") -> Path:
    """Copy a picture into the folder if its content is not there yet, and return the copy's path.

    name: to use instead of the picture's own; characters that are not harmless are removed. Copies are named by their content
    first, so the same picture is found again under any name, and then counts as used now. Raises OSError, and UnsafeError for
    what is no regular file.
    """
    if picture.parent == folder:
        return _used(picture)
    digest = _digest(picture)[:12]
    present = sorted(folder.glob(f"{digest}_*"))
    # The size is compared because a power cut may have left an incomplete copy.
    if present and present[0].stat().st_size == picture.stat().st_size:
        return _used(present[0])
    folder.mkdir(parents=True, exist_ok=True)
    # A copy of a copy does not get the content's digits twice.
    kept = present[0] if present else folder / f"{digest}_{harmless_name(name or picture.name).removeprefix(f'{digest}_')}"
    with written_atomically(kept, durable=True) as temporary, open_regular(picture) as source, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, PIECE)
    return kept


def _used(kept: Path) -> Path:
    # The file may belong to another user.
    with suppress(OSError):
        os.utime(kept)
    return kept


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with open_regular(file) as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()
