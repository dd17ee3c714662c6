"""Where results and logs may go: the program's folder, those below it, and others that it was told of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eichi_utils.files.paths import folder_problem, length_problem, real
from eichi_utils.files.pictures import is_unicode
from eichi_utils.problems import Problem

# The request field, and the flag whose folder counts where that is empty or relative.
FIELD, ROOT_FIELD = "output_folder", "out"


def check_folder(field: str, name: str) -> Problem | None:
    """What is wrong with a folder's name or path wherever it may lead."""
    if ".." in re.split(r"[\\/]", name):
        return Problem(field, "folder_upwards", {"folder": name[:200]})
    if not is_unicode(name):
        return Problem(field, "text_not_unicode")
    if any(ord(character) < 32 for character in name):
        return Problem(field, "folder_name", {"folder": ascii(name)[:200]})
    return length_problem(field, Path(name.strip()))


@dataclass(frozen=True)
class OutputFolders:
    """root: the program's folder. allowed: other folders that users may name; None where they may name any.

    field: whose value the folder is.
    """

    root: Path
    allowed: tuple[Path, ...] | None = None
    field: str = FIELD

    @property
    def all(self) -> tuple[Path, ...]:
        """What pages may show files of."""
        return (self.root, *(self.allowed or ()))

    def field_of(self, name: str) -> str:
        """The field that says the folder of this name."""
        return ROOT_FIELD if self.field == FIELD and not name.strip() else self.field

    def of(self, name: str) -> Path:
        """The folder that a checked name or path means."""
        return self.root / Path(name.strip()).expanduser()

    def problem(self, name: str, trial: bool = True) -> Problem | None:
        """Why nothing can be written there, if so. Nothing is left behind; the folder need not exist yet.

        trial: whether something is written to find out, or only the folder's permissions are asked.
        """
        if problem := check_folder(self.field, name):
            return problem
        try:
            folder = self.of(name)
            # Where a link leads counts.
            inside = self.allowed is None or any(real(folder).is_relative_to(real(one)) for one in self.all)
        except (OSError, RuntimeError) as error:
            # A user of "~user" that nobody knows is a RuntimeError.
            reason = getattr(error, "strerror", None) or str(error)[:200]
            return Problem(self.field_of(name), "folder_not_writable", {"folder": name[:200], "reason": reason})
        if not inside:
            allowed = ", ".join(str(one) for one in self.all)
            return Problem(self.field, "folder_not_allowed", {"folder": name[:200], "allowed": allowed})
        if problem := folder_problem(folder, trial=trial, field=self.field_of(name)):
            # What is wrong with the folder that it lies in is no fault of the name.
            relative = self.field == FIELD and folder.is_relative_to(self.root)
            return (folder_problem(self.root, trial=trial, field=ROOT_FIELD) if relative else None) or problem
        return None
