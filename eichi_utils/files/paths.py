"""Locate the program's and the user's folders, check folders, and write files atomically."""

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
# The existing program's downloads (its HF_HOME), used so that nothing is downloaded twice.
DEFAULT_MODELS = WEBUI / "hf_download" / "hub"
# Pictures that were uploaded to a page. The folder above holds the image queue's files.
DEFAULT_UPLOADS = WEBUI / "inputs" / "uploads"
# The user's LoRA files, in the folder of the existing program.
LORAS = WEBUI / "lora"
# The existing program's folders for saved data. Like those above, they are elsewhere if they cannot be written: see `place`.
SETTINGS = WEBUI / "settings"
PRESETS = WEBUI / "presets"
# Files that can be made again but take time; see disk_cache.py.
CACHE = WEBUI / "cache"
# Name of our folder in the system's folder for users' data.
PROGRAM = "FramePack-eichi"
MINIATURE = ROOT / "miniature" / "checkpoint"
# Name of the text in a PNG, MP4 or file of latents that holds the request as JSON.
KEY = "eichi"

# Error numbers of a full disk or quota, and of missing permissions.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Largest number of folders in a path: more than anybody needs, and few enough for Python, which makes missing folders
# recursively.
MOST_LEVELS = 64
# Longest path in bytes (on Windows in UTF-16 units), and how much of it is reserved for names of files in a folder.
MOST_PATH = os.pathconf("/", "PC_PATH_MAX") if hasattr(os, "pathconf") else 32_767
FILES_ROOM = 128
# Seconds between attempts to replace a file that another program has open.
REPLACE_AGAIN = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()


def is_writable(folder: Path) -> bool:
    """Say whether files can be made in the folder; if it does not exist, in the nearest one above. A full disk is writable."""
    try:
        _try_writing(_nearest(folder))
    except OSError as error:
        return error.errno not in NOT_ALLOWED
    return True


def place(beside: Path, writable: Callable[[Path], bool] = is_writable) -> Path:
    """Return the folder `beside` the program, or its counterpart in the user's own folder if `beside` cannot be written.

    A program that an administrator installed, or that runs in a container, lies where its users may not write. A folder in the
    user's own place that has files stays in use as long as the one beside the program is empty.
    """
    own = user_home() / (beside.relative_to(WEBUI) if beside.is_relative_to(WEBUI) else beside.name)
    return beside if writable(beside) and (_holds_any(beside) or not _holds_any(own)) else own


def user_home() -> Path:
    """Return the user's own folder, for what cannot lie beside the program."""
    return platformdirs.user_data_path(PROGRAM, appauthor=False)


@dataclass(frozen=True)
class UserFolders:
    """Hold the folders for this user's files. logs: the folder above those of logs."""

    outputs: Path
    uploads: Path
    settings: Path
    presets: Path
    cache: Path
    logs: Path

    @property
    def moved(self) -> bool:
        """Say whether any of them is not beside the program."""
        return self != beside_program()

    def take_over(self) -> None:
        """Copy settings and presets from beside the program to this user's folders; files that exist there are not changed."""
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
    """Return the folders beside the program, as the existing program has them."""
    return UserFolders(DEFAULT_OUTPUTS, DEFAULT_UPLOADS, SETTINGS, PRESETS, CACHE, WEBUI)


def user_folders(writable: Callable[[Path], bool] = is_writable) -> UserFolders:
    """Return the folders for this user's files, each one where it can be written; see `place`."""
    return UserFolders(*(place(one, writable) for one in dataclasses.astuple(beside_program())))


def new_job_id() -> str:
    """Return a new job's id, `YYMMDD_HHMMSS_mmm_R`, in the existing program's form."""
    now = time.time()
    stamp = time.strftime("%y%m%d_%H%M%S", time.localtime(now))
    return f"{stamp}_{int(now * 1000) % 1000:03d}_{random.SystemRandom().randrange(10000)}"


@contextmanager
def written_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """Give the block a temporary path beside `path`, which replaces `path` if the block succeeds and is deleted if not.

    Several threads or processes may write one path at once: each writes its own file, and the last one stays. The file gets the
    permissions of the system's umask, whatever library wrote it. durable: after a power cut, too, there is either the old file
    or the complete new one. A missing folder is made.
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
        # Some writers, such as safetensors, replace the temporary file by one that only its owner may read.
        temporary.chmod(usual)
        if durable:
            _flush(temporary)
        _replace(temporary, path)
        if durable and os.name == "posix":
            _flush(path.parent)
    finally:
        # A file that cannot be deleted now is removed at a later start. An error here would hide that of the block.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Without it, a rename may be there before the content."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Network shares without this function report EINVAL or ENOTSUP; errors of a full or broken disk are raised.
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
            # On Windows a file that another program reads, such as a virus scanner, cannot be replaced at that moment.
            if not path.exists():
                break
        time.sleep(wait)
    temporary.replace(path)


@dataclass(frozen=True)
class Outputs:
    """Name the files of one job, which all begin with its id. field: the flag or request field that names the folder."""

    folder: Path
    job_id: str
    field: str = "out"

    def path(self, name: str) -> Path:
        """Return the path of a file of the job. name: such as ".png" or "_10.mp4".

        A folder that was deleted meanwhile is made again; raises UserError if that fails.
        """
        self.make()
        return self.folder / f"{self.job_id}{name}"

    def make(self) -> Path:
        """Make the folder if it is missing, and return it. Raises UserError."""
        try:
            # Resolved first, since `mkdir` fails on a link to a folder that does not exist yet.
            real(self.folder).mkdir(parents=True, exist_ok=True)
        except (OSError, RecursionError) as error:
            raise UserError([_not_writable(self.folder, error, self.field)]) from None
        return self.folder

    def prepare(self, needed_bytes: int) -> None:
        """Make the folder after a trial. Raises UserError if it cannot be written or has less than `needed_bytes` free."""
        problem = folder_problem(self.folder, needed_bytes, field=self.field)
        if problem:
            raise UserError([problem])
        self.make()


def real(path: Path) -> Path:
    """Return the absolute path without links. Raises OSError if a link cannot be followed, as in a cycle."""
    try:
        found = path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
    # Python 3.13 returns the links of a cycle unresolved.
    if any(part.is_symlink() for part in (found, *found.parents)):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return found


def existing(files: Iterable[str]) -> tuple[str, ...]:
    """Return those of the files that exist; the user may have deleted or moved others while a film was made."""
    return tuple(file for file in files if os.path.lexists(file))


def is_same(path: Path, other: Path) -> bool:
    """Say whether two paths lead to the same file or folder; False if one does not exist."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def length_problem(field: str, folder: Path) -> Problem | None:
    """Return what makes a path too deep or too long for a folder, judged by the path alone, or None."""
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
    """Return the absolute path without links of the file or folder that a flag names as output. field: of the flag.

    Raises UserError if links cannot be followed or the path is too long.
    """
    try:
        found = real(path)
    except OSError as error:
        raise UserError([length_problem(field, path) or _not_writable(path, error, field)]) from None
    if problem := length_problem(field, found):
        raise UserError([problem])
    return found


def folder_problem(folder: Path, needed_bytes: int = 0, trial: bool = True, field: str = "out") -> Problem | None:
    """Return why no files can be written to the folder, or that less than `needed_bytes` are free, or None.

    If the folder does not exist, the nearest one above it is judged; nothing is left behind. field: the one that names the
    folder. trial: whether a file is written as a test; without it only permissions are checked, which a full disk also has.
    """
    if problem := length_problem(field, folder.absolute()):
        return problem
    try:
        place = _nearest(real(folder))
        # A file may have the name of the folder or of one above it.
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
    """Return the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _try_writing(folder: Path) -> None:
    """Raise OSError if no file can be made and filled in the folder; nothing is left behind."""
    # Not with `tempfile`, which tries for hours where Windows allows no file.
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
