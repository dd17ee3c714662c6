"""Where things are, and names for new files."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import random
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from eichi_utils.files.names import MOST_NAME, name_length
from eichi_utils.files.temporary import own_prefix, unfinished
from eichi_utils.problems import Problem, UserError, shown

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
WEBUI = ROOT / "webui"
DEFAULT_OUTPUTS = WEBUI / "outputs"
# Where the existing program keeps its downloads (its HF_HOME); found there, nothing is downloaded twice.
DEFAULT_MODELS = WEBUI / "hf_download" / "hub"
# Pictures that came through a page; beside the image queue's files, which lie in the folder above.
DEFAULT_UPLOADS = WEBUI / "inputs" / "uploads"
# The user's LoRA files, where the existing program looks for them.
LORAS = WEBUI / "lora"
# Where the existing program keeps what its users saved; like the folders above, elsewhere if it cannot be written: `place`.
SETTINGS = WEBUI / "settings"
PRESETS = WEBUI / "presets"
# What can be made again and takes time; see disk_cache.py.
CACHE = WEBUI / "cache"
# Below the system's folder for users' data.
PROGRAM = "FramePack-eichi"
MINIATURE = ROOT / "miniature" / "checkpoint"
# The name, inside a PNG, an MP4 or a file of latents, of the text that holds the request as JSON.
KEY = "eichi"

# What a system reports when nothing more fits, or no more is allowed.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Of a folder's path: more than anybody has, and few enough for Python, which makes missing folders by a call within a call.
MOST_LEVELS = 64
# Of a whole path, in bytes, on Windows in units of UTF-16; and what of it is left to the names of the files in a folder.
MOST_PATH = os.pathconf("/", "PC_PATH_MAX") if hasattr(os, "pathconf") else 32_767
FILES_ROOM = 128
# Seconds between tries to replace a file that another program has open.
REPLACE_AGAIN = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()


def is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder or, where there is none yet, in the nearest one above; a full disk is no No."""
    try:
        _try_writing(_nearest(folder))
    except OSError as error:
        return error.errno not in NOT_ALLOWED
    return True


def place(beside: Path, writable: Callable[[Path], bool] = is_writable) -> Path:
    """`beside`, one of the program's folders for users' files, if it can be written, else the same below the user's own folder.

    A program that an administrator installed, or that runs in a container, lies where its users may not write. What has come
    to lie in the user's own folder is used as long as nothing lies beside the program.
    """
    own = user_home() / (beside.relative_to(WEBUI) if beside.is_relative_to(WEBUI) else beside.name)
    return beside if writable(beside) and (_holds_any(beside) or not _holds_any(own)) else own


def user_home() -> Path:
    """The user's own folder, below which lies what cannot lie beside the program."""
    return platformdirs.user_data_path(PROGRAM, appauthor=False)


@dataclass(frozen=True)
class UserFolders:
    """Where files of this user go. logs: above the folders of logs."""

    outputs: Path
    uploads: Path
    settings: Path
    presets: Path
    cache: Path
    logs: Path

    @property
    def moved(self) -> bool:
        """Whether any of them is not beside the program."""
        return self != beside_program()

    def take_over(self) -> None:
        """Copy settings and presets that lie beside the program and are not there yet; nothing that is there is changed."""
        for old, new in ((SETTINGS, self.settings), (PRESETS, self.presets)):
            for file in old.glob("*.json") if old != new else ():
                try:
                    if not (new / file.name).exists():
                        new.mkdir(parents=True, exist_ok=True)
                        with written_atomically(new / file.name) as temporary:
                            shutil.copyfile(file, temporary)
                except OSError as error:
                    logger.warning("%s is not taken over: %s", file, error)


def beside_program() -> UserFolders:
    """Everything beside the program, as the existing program has it."""
    return UserFolders(DEFAULT_OUTPUTS, DEFAULT_UPLOADS, SETTINGS, PRESETS, CACHE, WEBUI)


def user_folders(writable: Callable[[Path], bool] = is_writable) -> UserFolders:
    """Each of the folders where it can be written."""
    return UserFolders(*(place(one, writable) for one in dataclasses.astuple(beside_program())))


def new_job_id() -> str:
    """`YYMMDD_HHMMSS_mmm_R`, as users of the existing program know it."""
    now = time.time()
    stamp = time.strftime("%y%m%d_%H%M%S", time.localtime(now))
    return f"{stamp}_{int(now * 1000) % 1000:03d}_{random.SystemRandom().randrange(10000)}"


@contextmanager
def written_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name if the block ends well and vanishes if not.

    Several threads or processes may write one path at once: each writes a file of its own, and the last one stays.
    Whatever library wrote it, the file may be read by whom the system's umask says. durable: also a power cut leaves either
    the old file or the whole new one. A folder that vanished is made again.
    """
    temporary = unfinished(path)
    try:
        try:
            temporary.touch()
        except FileNotFoundError:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        # Some writers, such as safetensors, put a file of their own in its place that only its owner may read.
        temporary.chmod(usual)
        if durable:
            _flush(temporary)
        _replace(temporary, path)
        if durable and os.name == "posix":
            _flush(path.parent)
    finally:
        # One that cannot be deleted now is removed at a later start; the reason is what the block says.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk itself; a rename can be there before the content."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network shares that cannot do so say EINVAL; a disk that is full or broken must be told of.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _replace(temporary: Path, path: Path) -> None:
    for wait in REPLACE_AGAIN:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            # On Windows a file that somebody reads, as virus scanners do, cannot be replaced just now.
            if not path.exists():
                break
        time.sleep(wait)
    temporary.replace(path)


@dataclass(frozen=True)
class Outputs:
    """The files of one job: all begin with the job's id. field: the flag or request field that says the folder."""

    folder: Path
    job_id: str
    field: str = "out"

    def path(self, name: str) -> Path:
        """`name` such as ".png" or "_10.mp4". A folder that somebody deleted is made again; raises UserError where that cannot
        be done."""
        self.make()
        return self.folder / f"{self.job_id}{name}"

    def make(self) -> Path:
        """The folder, which is there afterwards. Raises UserError."""
        try:
            # A link to a folder that is not there yet is in its own way.
            real(self.folder).mkdir(parents=True, exist_ok=True)
        except (OSError, RecursionError) as error:
            raise UserError([_not_writable(self.folder, error, self.field)]) from None
        return self.folder

    def prepare(self, needed_bytes: int) -> None:
        """Make the folder and try it; raises UserError if it cannot be written or has too little room."""
        problem = folder_problem(self.folder, needed_bytes, field=self.field)
        if problem:
            raise UserError([problem])
        self.make()


def real(path: Path) -> Path:
    """Return the absolute path without links. Raises OSError where a link cannot be followed, as in a circle of them."""
    try:
        found = path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    # Python 3.13 leaves a circle as it is.
    if any(part.is_symlink() for part in (found, *found.parents)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return found


def existing(files: Iterable[str]) -> tuple[str, ...]:
    """Return those of the files that are there; somebody may have deleted or moved others while a film was made."""
    return tuple(file for file in files if os.path.lexists(file))


def is_same(path: Path, other: Path) -> bool:
    """Say whether two paths lead to one file or folder; one that leads nowhere is no other's."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def length_problem(field: str, folder: Path) -> Problem | None:
    """Return what makes a folder's path too deep or too long for any folder; the system is not asked."""
    levels = len(folder.parts)
    if levels > MOST_LEVELS:
        return Problem(field, "folder_too_deep", {"folder": shown(folder), "levels": levels, "most": MOST_LEVELS})
    for name in folder.parts:
        if name_length(name) > MOST_NAME:
            values = {"folder": shown(name), "length": name_length(name), "most": MOST_NAME}
            return Problem(field, "folder_name_too_long", values)
    if (length := name_length(str(folder))) > (most := MOST_PATH - FILES_ROOM):
        return Problem(field, "folder_path_too_long", {"folder": shown(folder), "length": length, "most": most})
    return None


def resolved(field: str, path: Path) -> Path:
    """Return the file or folder to write to that a flag names, absolute and without links. field: the flag's.

    Raises UserError for a path that leads nowhere or is too long for any folder.
    """
    try:
        found = real(path)
    except OSError as error:
        raise UserError([length_problem(field, path) or _not_writable(path, error, field)]) from None
    if problem := length_problem(field, found):
        raise UserError([problem])
    return found


def folder_problem(folder: Path, needed_bytes: int = 0, trial: bool = True, field: str = "out") -> Problem | None:
    """None if files can be written to the folder and `needed_bytes` are free. field: the one that says the folder.

    A folder that does not exist yet is judged by the nearest one above it that does; nothing is left behind. trial: whether a
    file is written to find out; without one only the permissions are asked, which a full disk has too.
    """
    if problem := length_problem(field, folder.absolute()):
        return problem
    try:
        place = _nearest(real(folder))
        # A file in the folder's way is no folder, and neither is one below a file.
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if trial:
            _try_writing(place)
        free = shutil.disk_usage(place).free
    except OSError as error:
        return _not_writable(folder, error, field)
    if free < needed_bytes:
        sizes = {"needed": needed_bytes // 2**20 + 1, "free": free // 2**20}
        return Problem(field, "disk_space", {"folder": str(folder), **sizes})
    return None


def _holds_any(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _try_writing(folder: Path) -> None:
    """Raise OSError if no file can be made and filled; nothing is left behind."""
    # Not by Python's own temporary files, which try for hours where Windows allows none.
    trial = folder / f"{own_prefix()}{secrets.token_hex(6)}"
    try:
        with trial.open("xb") as file:
            file.write(b"\0" * 4096)
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)


def _not_writable(folder: Path, error: OSError | RecursionError, field: str) -> Problem:
    if getattr(error, "errno", None) in DISK_FULL:
        return Problem(field, "disk_full")
    reason = getattr(error, "strerror", None) or str(error)
    return Problem(field, "folder_not_writable", {"folder": str(folder)[:500], "reason": reason})
