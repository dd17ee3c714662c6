"""Pictures that came through a page are kept, so that a film's metadata names files that are still there next month."""

from __future__ import annotations

from pathlib import Path

from eichi_utils import modes
from eichi_utils.kept import keep
from eichi_utils.request import Request, to_json
from eichi_utils.request_files import map_pictures


def keep_pictures(request: Request, folder: Path) -> Request:
    """The request with every picture copied from gradio's temporary folder to `folder`, once for equal content."""
    return modes.from_json(map_pictures(to_json(request), lambda path: str(keep(Path(path), folder))))
