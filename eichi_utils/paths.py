"""Where things are, and names for new files."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eichi_utils.problems import Problem, UserError

ROOT = Path(__file__).resolve().parent.parent
WEBUI = ROOT / "webui"
DEFAULT_OUTPUTS = WEBUI / "outputs"
# Where the existing program keeps its downloads (its HF_HOME); found there, nothing is downloaded twice.
DEFAULT_MODELS = WEBUI / "hf_download" / "hub"
# Pictures that came through a page; beside the image queue's files, which lie in the folder above.
DEFAULT_UPLOADS = WEBUI / "inputs" / "uploads"
# The user's LoRA files, where the existing program looks for them.
LORAS = WEBUI / "lora"
# Where the existing program keeps what its users saved.
SETTINGS = WEBUI / "settings"
PRESETS = WEBUI / "presets"
# What can be made again and takes time; see disk_cache.py.
CACHE = WEBUI / "cache"
MINIATURE = ROOT / "miniature" / "checkpoint"
# The name, inside a PNG, an MP4 or a file of latents, of the text that holds the request as JSON.
KEY = "eichi"

# What a system reports when nothing more fits, or no more is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def new_job_id() -> str:
    """`YYMMDD_HHMMSS_mmm_R`, as users of the existing program know it."""
    now = time.time()
    stamp = time.strftime("%y%m%d_%H%M%S", time.localtime(now))
    return f"{stamp}_{int(now * 1000) % 1000:03d}_{random.SystemRandom().randrange(10000)}"


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name if the block ends well and vanishes if not.

    Whatever library wrote it, the file may be read by whom the system's umask says.
    """
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        # Some writers, such as safetensors, put a file of their own in its place that only its owner may read.
        os.chmod(temporary, usual)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Outputs:
    """The files of one job: all begin with the job's id."""

    folder: Path
    job_id: str

    def path(self, name: str) -> Path:
        """`name` such as ".png" or "_10.mp4". A folder that somebody deleted is made again; raises UserError where that cannot
        be done."""
        self.make()
        return self.folder / f"{self.job_id}{name}"

    def make(self) -> Path:
        """The folder, which is there afterwards. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError([_not_writable(self.folder, error)]) from None
        return self.folder

    def prepare(self, needed_bytes: int) -> None:
        """Make the folder and try it; raises UserError if it cannot be written or has too little room."""
        problem = folder_problem(self.folder, needed_bytes)
        if problem:
            raise UserError([problem])
        self.make()


def folder_problem(folder: Path, needed_bytes: int = 0, trial: bool = True) -> Problem | None:
    """None if files can be written to the folder and `needed_bytes` are free.

    A folder that does not exist yet is judged by the nearest one above it that does; nothing is left behind. trial: whether a
    file is written to find out; without one only the permissions are asked, which a full disk has too.
    """
    place = folder
    try:
        # Asking for a name that is too long is an error by itself.
        while not place.exists() and place != place.parent:
            place = place.parent
        # A file in the folder's way is no folder, and neither is one below a file.
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if trial:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"\0" * 4096)
                file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return _not_writable(folder, error)
    if free < needed_bytes:
        sizes = {"needed": needed_bytes // 2**20 + 1, "free": free // 2**20}
        return Problem("out", "disk_space", {"folder": str(folder), **sizes})
    return None


def _not_writable(folder: Path, error: OSError) -> Problem:
    if error.errno in DISK_FULL:
        return Problem("out", "disk_full")
    return Problem("out", "folder_not_writable", {"folder": str(folder)[:500], "reason": error.strerror or str(error)})
