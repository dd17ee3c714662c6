"""The user's files from passing places (a page's upload, an archive) in a folder that stays, once for equal content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from eichi_utils.paths import written_atomically

PIECE = 2**20


def keep(picture: Path, folder: Path, name: str = "") -> Path:
    """The path of the picture's copy in the folder, which is made if needed. name: instead of the picture's own.

    Copies are named by their content first, so a picture that came once is found again whatever it is called now.
    """
    if picture.parent == folder:
        return picture
    digest = _digest(picture)[:12]
    present = sorted(folder.glob(f"{digest}_*"))
    if present:
        return present[0]
    folder.mkdir(parents=True, exist_ok=True)
    # A copy's copy is not named by its content twice.
    kept = folder / f"{digest}_{(name or picture.name).removeprefix(f'{digest}_')}"
    with written_atomically(kept) as temporary:
        shutil.copyfile(picture, temporary)
    return kept


def _digest(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            total.update(piece)
    return total.hexdigest()
