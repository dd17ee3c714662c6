"""The user's files from passing places (a page's upload, an archive) in a folder that stays, once for equal content."""

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
    """The path of the picture's copy in the folder, which is made if needed. name: instead of the picture's own; of what is
    harmless in it the copy's is made.

    Copies are named by their content first, so a picture that came once is found again whatever it is called now, and counts
    as used now. Raises OSError, and UnsafeError for what is no regular file.
    """
    if picture.parent == folder:
        return _used(picture)
    digest = _digest(picture)[:12]
    present = sorted(folder.glob(f"{digest}_*"))
    # A power cut may have left half of one.
    if present and present[0].stat().st_size == picture.stat().st_size:
        return _used(present[0])
    folder.mkdir(parents=True, exist_ok=True)
    # A copy's copy is not named by its content twice.
    kept = present[0] if present else folder / f"{digest}_{harmless_name(name or picture.name).removeprefix(f'{digest}_')}"
    with written_atomically(kept, durable=True) as temporary, open_regular(picture) as source, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, PIECE)
    return kept


def _used(kept: Path) -> Path:
    # Somebody else's file may be read and not touched.
    with suppress(OSError):
        os.utime(kept)
    return kept


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with open_regular(file) as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()
