"""Keep the pictures that were uploaded to a page, so that the files named in a film's metadata still exist next month."""

from __future__ import annotations

from pathlib import Path

from eichi_utils.files.copies import keep
from eichi_utils.files.paths import DISK_FULL
from eichi_utils.files.safe_reading import UnsafeError
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import modes
from eichi_utils.requests.file_fields import map_pictures
from eichi_utils.requests.request import Request, to_json
from eichi_utils.user_data.passing import need_room


def keep_pictures(request: Request, folder: Path) -> Request:
    """Return the request with every picture copied from gradio's temporary folder to `folder`, once for equal content.

    Raises UserError if one cannot be copied, or if little of the disk is free.
    """

    def kept(path: str) -> str:
        if Path(path).parent != folder:
            need_room(folder)
        try:
            return str(keep(Path(path), folder))
        except (OSError, UnsafeError) as error:
            raise UserError([_problem(error, path, folder)]) from None

    return modes.from_json(map_pictures(to_json(request), kept))


def _problem(error: OSError | UnsafeError, path: str, folder: Path) -> Problem:
    if not isinstance(error, OSError) or not Path(path).is_file():
        return Problem("", "picture_missing", {"file": path})
    if error.errno in DISK_FULL:
        return Problem("", "uploads_full", {"folder": str(folder)})
    return Problem("", "uploads_not_written", {"folder": str(folder), "reason": error.strerror or str(error)})
