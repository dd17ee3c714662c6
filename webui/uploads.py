"""Pictures that came through a page are kept, so that a film's metadata names files that are still there next month."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from eichi_utils import modes
from eichi_utils.paths import written_atomically
from eichi_utils.request import Request, map_pictures, to_json


def keep_pictures(request: Request, folder: Path) -> Request:
    """The request with every picture copied from gradio's temporary folder to `folder`, once for equal content."""
    return modes.from_json(map_pictures(to_json(request), lambda path: str(_kept(Path(path), folder))))


def _kept(picture: Path, folder: Path) -> Path:
    if picture.parent == folder:
        return picture
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()[:12]
    # A picture that was kept before may come back by way of the page.
    kept = folder / f"{digest}_{picture.name.removeprefix(f'{digest}_')}"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(kept) as temporary:
            shutil.copyfile(picture, temporary)
    return kept
