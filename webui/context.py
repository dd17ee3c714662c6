"""What every page and panel is given: the jobs to look at, the words to use, and where files are served."""

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
    """How gradio treats an event; the names are those of its events' parameters."""

    queue: bool
    show_progress: Literal["full", "minimal", "hidden"]
    api_visibility: Literal["public", "private", "undocumented"]


# Events that neither wait in gradio's queue nor show its spinner: everything here answers at once.
QUIET: EventSettings = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def event_of(component: Block, name: str) -> Any:
    """Return a component's event of this name, such as "change"; only the classes of components say which they have."""
    return getattr(component, name)


@dataclass(frozen=True)
class Context:
    """mode: the page's own, in whose words `t` speaks. root: the path it is mounted at, "" for "/".

    front: the path at which a proxy has the program, with which `root` and `links` begin; "" without one.
    links: mode -> address of its page. has_login: whether one can leave.

    outputs, uploads: where results go, and where pictures that came through a page are kept.
    more_outputs: further folders that results may go to and are shown from. timings: of this machine's runs so far.
    models: those to choose from. engine: whose reserve of the card the page changes; None where it changes none.
    plain: only what the original FramePack page had. settings, presets: folders of what the user saved.
    damaged_files: damaged files that pages tell of; the same for all pages of a server.
    log: the program's, which the page switches on and off; None where it does not.
    more_uploads: where pictures were kept by other versions. notices: what every page says of the program.
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
        """Return the damaged files that pages tell of: those of all pages, or of this one where it is alone."""
        return self.damaged_files or DamagedFiles(self.settings, self.presets)

    @property
    def app_settings(self) -> AppSettings:
        """Return what the user saved as settings."""
        return AppSettings(JsonFile(self.settings / "app_settings.json"))

    @property
    def folders(self) -> OutputFolders:
        """Return where results may go."""
        return OutputFolders(self.outputs, self.more_outputs)

    def url(self, path: str) -> str:
        """The address below which gradio serves a file, if it is of the output folder or an example."""
        return f"{self.root}/gradio_api/file={quote(Path(path).as_posix())}"

    @cached_property
    def files(self) -> OwnFiles:
        """Those that pages have given out or taken in; a browser can name no other."""
        folders = (self.uploads, *self.more_uploads, *self.folders.all)
        # The pictures themselves, never their folders: a description may come from anywhere.
        examples = frozenset(example.picture for name in self.models.names for example in self.models.examples(name))
        return OwnFiles(folders, examples, (self.settings, self.presets))

    def holds(self, path: Any) -> bool:
        """Whether a browser may name the file."""
        return self.files.holds(path)

    def job_to_fill_from(self) -> Job | None:
        """The job whose request a freshly loaded form shows: the current one, else this mode's newest."""
        current = self.jobs.current()
        if current and current.request.mode == self.mode:
            return current
        own = [job for job in self.jobs.all() if job.request.mode == self.mode]
        return own[-1] if own else None
