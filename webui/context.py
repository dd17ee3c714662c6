"""Hold what every page and panel needs: the jobs, the texts of a language, the folders, and which files may be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import DEFAULT_UPLOADS, PRESETS, SETTINGS
from eichi_utils.jobs.queue import Jobs
from eichi_utils.jobs.snapshot import Job
from eichi_utils.jobs.timings import Timings
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import Problem
from eichi_utils.render.engine import Engine
from eichi_utils.user_data.log_file import Log
from eichi_utils.user_data.settings import AppSettings, JsonFile
from locales import Translator
from webui.forms.damaged_files import DamagedFiles
from webui.gradio_compat import Block
from webui.http.path_check import OwnFiles


class EventSettings(TypedDict):
    """Name the parameters of a gradio event that `QUIET` sets."""

    queue: bool
    show_progress: Literal["full", "minimal", "hidden"]
    api_visibility: Literal["public", "private", "undocumented"]


# Settings of an event that neither waits in gradio's queue nor shows its spinner: every handler here answers at once.
QUIET: EventSettings = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def event_of(component: Block, name: str) -> Any:
    """Return a component's event by its name, such as "change"; gradio's base class declares no events for type checkers."""
    return getattr(component, name)


@dataclass(frozen=True)
class Context:
    """Hold what a page's panels share.

    mode: the page's mode, in whose words `t` speaks. root: the path that the page is mounted at, "" for "/".
    front: the path at which a proxy serves the program, with which `root` and `links` begin; "" without a proxy's path.
    links: mode -> address of its page. has_login: whether there is a login, and so a logout.

    outputs, uploads: folders of results, and of the pictures that were uploaded to a page.
    more_outputs: further folders that results may go to and are shown from. timings: of this machine's runs so far.
    models: those to choose from. engine: whose reserve of GPU memory the page changes; None if it changes none.
    plain: show only what the original FramePack page had. settings, presets: folders of what the user saved.
    damaged_files: damaged files to report; the same for all pages of a server.
    log: the program's log, which the page switches on and off; None if it does not.
    more_uploads: folders where other versions kept uploads. notices: problems of the program that every page shows.
    """

    jobs: Jobs
    t: Translator
    mode: str
    outputs: Path
    uploads: Path = DEFAULT_UPLOADS
    root: str = ""
    front: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    plain: bool = False
    models: Models = field(default_factory=Models)
    engine: Engine | None = None
    settings: Path = SETTINGS
    presets: Path = PRESETS
    more_outputs: tuple[Path, ...] = ()
    timings: Timings | None = None
    log: Log | None = None
    more_uploads: tuple[Path, ...] = ()
    notices: tuple[Problem, ...] = ()
    damaged_files: DamagedFiles | None = None
    has_login: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", self.t.of(self.mode))

    @cached_property
    def damaged(self) -> DamagedFiles:
        """Return the reporter of damaged files: that of all pages, or one of its own for a page without a server."""
        return self.damaged_files or DamagedFiles(self.settings, self.presets)

    @property
    def app_settings(self) -> AppSettings:
        """Return the user's saved settings."""
        return AppSettings(JsonFile(self.settings / "app_settings.json"))

    @property
    def folders(self) -> OutputFolders:
        """Return the folders that results may go to."""
        return OutputFolders(self.outputs, self.more_outputs)

    def url(self, path: str) -> str:
        """Return the address at which gradio serves a file, if browsers may name it (`files`)."""
        return f"{self.root}/gradio_api/file={quote(Path(path).as_posix())}"

    @cached_property
    def files(self) -> OwnFiles:
        """Return the files that browsers may name: results, uploads and examples."""
        folders = (self.uploads, *self.more_uploads, *self.folders.all)
        # Only the pictures themselves, not their folders: a model's description may name a picture in any folder.
        examples = frozenset(example.picture for name in self.models.names for example in self.models.examples(name))
        return OwnFiles(folders, examples, (self.settings, self.presets))

    def holds(self, path: Any) -> bool:
        """Tell whether a browser may name the file at a path."""
        return self.files.holds(path)

    def job_to_fill_from(self) -> Job | None:
        """Return the job whose request a newly loaded form shows: the current job if it has this mode, else this mode's newest.

        None if the mode has no job.
        """
        current = self.jobs.current()
        if current and current.request.mode == self.mode:
            return current
        own = [job for job in self.jobs.all() if job.request.mode == self.mode]
        return own[-1] if own else None
