"""Decide where results and logs may be written: the program's folder, those below it, and others that were allowed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eichi_utils.files.paths import folder_problem, length_problem, real
from eichi_utils.files.pictures import is_unicode
from eichi_utils.problems import Problem

# The request field of the folder, and the flag whose folder is used if that is empty or relative.
FIELD, ROOT_FIELD = "output_folder", "out"


def check_folder(field: str, name: str) -> Problem | None:
    """Return what is wrong with a folder's name or path in itself, or None."""
    if ".." in re.split(r"[\\/]", name):
        return Problem(field, "folder_upwards", {"folder": name[:200]})
    if not is_unicode(name):
        return Problem(field, "text_not_unicode")
    if any(ord(character) < 32 for character in name):
        return Problem(field, "folder_name", {"folder": ascii(name)[:200]})
    return length_problem(field, Path(name.strip()))


@dataclass(frozen=True)
class OutputFolders:
    """Hold the folders in which results or logs may be written.

    root: the program's folder. allowed: other folders that users may name; None if they may name any. field: the setting or
    request field whose value is the folder.
    """

    root: Path
    allowed: tuple[Path, ...] | None = None
    field: str = FIELD

    @property
    def all(self) -> tuple[Path, ...]:
        """Return the folders whose files pages may show."""
        return (self.root, *(self.allowed or ()))

    def field_of(self, name: str) -> str:
        """Return the field to report a problem of this folder for: the flag of the root if the name is empty."""
        return ROOT_FIELD if self.field == FIELD and not name.strip() else self.field

    def of(self, name: str) -> Path:
        """Return the folder for a name or path that was checked."""
        return self.root / Path(name.strip()).expanduser()

    def problem(self, name: str, trial: bool = True) -> Problem | None:
        """Return why nothing can be written to the folder, or None. Nothing is left behind; the folder need not exist.

        trial: whether a file is written as a test; without it only permissions are checked.
        """
        if problem := check_folder(self.field, name):
            return problem
        try:
            folder = self.of(name)
            # Links are resolved, so that none leads out of the allowed folders.
            inside = self.allowed is None or any(real(folder).is_relative_to(real(one)) for one in self.all)
        except (OSError, RuntimeError) as error:
            # `expanduser` raises RuntimeError for an unknown user in "~user".
            reason = getattr(error, "strerror", None) or str(error)[:200]
            return Problem(self.field_of(name), "folder_not_writable", {"folder": name[:200], "reason": reason})
        if not inside:
            allowed = ", ".join(str(one) for one in self.all)
            return Problem(self.field, "folder_not_allowed", {"folder": name[:200], "allowed": allowed})
        if problem := folder_problem(folder, trial=trial, field=self.field_of(name)):
            # A problem of the root itself is reported for the root's field.
            relative = self.field == FIELD and folder.is_relative_to(self.root)
            return (folder_problem(self.root, trial=trial, field=ROOT_FIELD) if relative else None) or problem
        return None
