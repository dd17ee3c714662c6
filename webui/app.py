"""Assemble the application: read the flags, create the worker, the pages with their paths, the login and the server."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from starlette.types import ASGIApp

from eichi_utils.cli.demo import UNTRAINED
from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import DEFAULT_UPLOADS, LORAS, PRESETS, SETTINGS, WEBUI, UserFolders, user_folders, user_home
from eichi_utils.jobs.alarm import Alarm
from eichi_utils.jobs.housekeeping import Housekeeper
from eichi_utils.jobs.job_log import JobLog
from eichi_utils.jobs.queue import Jobs
from eichi_utils.jobs.snapshot import Job
from eichi_utils.jobs.timings import Timings
from eichi_utils.models.catalogue import Models
from eichi_utils.problems import Problem, UserError
from eichi_utils.render.engine import Engine
from eichi_utils.setup.console import ending_as_interrupted, leave, ready
from eichi_utils.user_data.log_file import FOLDER, SOURCES, Log
from eichi_utils.user_data.settings import AppSettings
from locales import Translator
from webui import endframe_ichi, endframe_ichi_f1, oneframe_ichi, static_files
from webui.context import Context
from webui.flags import AUTH_VARIABLE, read_flags
from webui.forms.damaged_files import DamagedFiles
from webui.frame import page_data, theme
from webui.http.doors import Doors, Rules
from webui.http.event_errors import answers_to_errors
from webui.http.gate import Gate
from webui.http.login import Login
from webui.http.page_build import SameBuild, build_of
from webui.http.path_check import OwnFiles, ServedFiles
from webui.http.server import Server, address, listen, room
from webui.live import polling
from webui.live.browser_pictures import BrowserPictures
from webui.panels.memory_panel import RESERVE, set_reserve
from webui.static_files import STYLES, PageHeads

PAGES = MappingProxyType(
    {
        "reverse": ("/endframe", endframe_ichi.page),
        "forward": ("/f1", endframe_ichi_f1.page),
        "single": ("/oneframe", oneframe_ichi.page),
    }
)
# The environment variable with gradio's folder of uploads.
UPLOADED = "GRADIO_TEMP_DIR"
# Seconds that the worker may take to reach its next step when the program ends.
CLOSING_SECONDS = 10
# Seconds that handlers still running after that (such as reading a file) may take; nobody sees their results any more.
LEAVING_SECONDS = 2

logger = logging.getLogger(__name__)


class Site(FastAPI):
    """Put the doors in front of the whole application, including Starlette's own error handlers."""

    def __init__(self, rules: Rules, t: Translator, login: Login | None, pages: Mapping[str, str]):
        super().__init__(title="FramePack-eichi", docs_url=None, redoc_url=None, openapi_url=None)
        self._doors = (rules, t, login, pages)

    def build_middleware_stack(self) -> ASGIApp:
        """Return the application behind the doors."""
        return Doors(super().build_middleware_stack(), *self._doors)


def build(
    jobs: Jobs,
    mode: str,
    t: Translator,
    outputs: Path,
    *,
    models: Models | None = None,
    uploads: Path = DEFAULT_UPLOADS,
    plain: bool = False,
    auth: tuple[str, str] | Mapping[str, str] | None = None,
    rules: Rules | None = None,
    engine: Engine | None = None,
    settings: Path = SETTINGS,
    presets: Path = PRESETS,
    more_outputs: tuple[Path, ...] = (),
    timings: Timings | None = None,
    log: Log | None = None,
    more_uploads: tuple[Path, ...] = (),
    notices: tuple[Problem, ...] = (),
) -> FastAPI:
    """Return one application with the three pages: that of `mode` at "/", the others at their own paths.

    models: those to choose from, by default those of this machine. auth: (user, password), or user -> password or its hash;
    with it all pages require one common login. rules: of the doors, by default those of a loopback address.
    engine: the one that the jobs run with, if pages may change its settings. settings, presets: folders of what users saved.
    more_outputs: folders beside `outputs` that pages may save to and serve. timings: for estimates. log: which pages switch on
    and off. more_uploads: further folders of uploaded pictures. notices: problems of the program that every page shows.
    """
    rules = rules or Rules()
    places = {name: "/" if name == mode else f"{path}/" for name, (path, _) in PAGES.items()}
    login = Login(dict(auth if isinstance(auth, Mapping) else [auth])) if auth else None
    app = Site(rules, t, login, places)
    app.add_middleware(BrowserPictures)
    models = models or Models()
    links = {name: rules.root + place for name, place in places.items()}
    for name, (path, _) in PAGES.items():
        _redirect(app, path, links[name], both=name == mode)
    builds: dict[str, str] = {}
    heads: dict[str, str] = {}
    polling.add_routes(app, jobs, t, builds, rules.root)
    static_files.add_routes(app)
    # The page at "/" is mounted last, because a mount there takes every address that no earlier one has taken.
    damaged_files = DamagedFiles(settings, presets)
    files: OwnFiles | None = None
    for name in sorted(PAGES, key=lambda name: name == mode):
        path, page = PAGES[name]
        root = "" if name == mode else path
        context = Context(
            jobs=jobs,
            t=t,
            mode=name,
            outputs=outputs,
            uploads=uploads,
            root=rules.root + root,
            front=rules.root,
            links=links,
            has_login=login is not None,
            plain=plain,
            models=models,
            engine=engine,
            settings=settings,
            presets=presets,
            more_outputs=more_outputs,
            timings=timings,
            log=log,
            more_uploads=more_uploads,
            notices=notices,
            damaged_files=damaged_files,
        )
        files = context.files
        blocks = page(context)
        builds[name] = build_of(blocks, name, links[name], t.language)
        heads[places[name]] = static_files.page_head(rules.root, page_data(context, builds[name]))
        gr.mount_gradio_app(
            app,
            blocks,
            path=root or "/",
            app_kwargs=answers_to_errors(t),
            max_file_size=rules.upload_bytes,
            # Otherwise some addresses of files would lack the proxy's path.
            root_path=rules.root + root if rules.root else None,
            # After a reload, the form of a running job shows its pictures again.
            allowed_paths=[*(str(folder.resolve()) for folder in context.files.folders), *context.files.files],
            blocked_paths=[str(folder.resolve()) for folder in context.files.closed],
            footer_links=[],
            run_history=False,
            theme=theme(),
            css_paths=[*STYLES],
        )
    app.add_middleware(PageHeads, heads=heads)
    if files is not None:
        app.add_middleware(ServedFiles, serves=files.serves)
    app.add_middleware(SameBuild, builds={place: builds[name] for name, place in places.items()}, t=t)
    return app


@ready()
def serve(mode: str, argv: Sequence[str]) -> None:
    """Read the flags, start the worker and the server, and run until interrupted."""
    options = read_flags(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Child processes must not inherit the password.
    os.environ.pop(AUTH_VARIABLE, None)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with suppress(KeyboardInterrupt), ending_as_interrupted():
        _serve(mode, options)
    leave(LEAVING_SECONDS)


def _serve(mode: str, options: argparse.Namespace) -> None:
    folders = user_folders()
    folders.take_over()
    outputs = options.out or folders.outputs
    models = Models(options.models)
    settings = {"compiler": options.compile, "cache_gb": options.cache_gb}
    where = {"more_outputs": tuple(options.allow_folder), "timings": Timings()}
    settings |= {"allowed": where["more_outputs"], "timings": where["timings"]}
    engine = Engine(models, outputs, options.device, options.attention, **settings)
    saved, log = AppSettings(), Log(SOURCES[mode], options.t, OutputFolders(folders.logs, where["more_outputs"], FOLDER))
    for handler in logging.getLogger().handlers:
        handler.addFilter(log.seldom)
    apply_saved(saved, log, engine, mode, options.reserve_gb)
    rules = Rules(
        options.server,
        tuple(options.allow_host),
        tuple(options.trust_proxy),
        options.root_path,
        options.max_upload_mb << 20,
    )
    where |= {"plain": options.plain, "auth": options.accounts, "rules": rules, "engine": engine, "log": log}
    jobs = Jobs(engine, [JobLog(log, options.t), Alarm(saved)])
    where |= {"uploads": folders.uploads, "settings": folders.settings, "presets": folders.presets}
    if folders.moved:
        where |= {"more_uploads": (DEFAULT_UPLOADS,), "notices": (_moved(folders, options.t),)}
    housekeeper = start_housekeeping(folders, saved, mode, jobs.all, (outputs, *where["more_outputs"]))
    try:
        app = build(jobs, mode, options.t, outputs, models=models, **where)
        with listen(options.server, options.port) as listener:
            url = address(options.server, listener) + rules.root
            Server(app, Gate(room(), rules.proxies), url, options.inbrowser).run(sockets=[listener])
    finally:
        housekeeper.close()
        jobs.close(CLOSING_SECONDS)
        log.close()


def start_housekeeping(
    folders: UserFolders, saved: AppSettings, mode: str, jobs: Callable[[], Iterable[Job]], results: tuple[Path, ...]
) -> Housekeeper:
    """Give gradio a folder of this program's own for uploads, and start to delete old files in the background.

    results: folders of finished films. Returns the housekeeper, which the caller closes.
    """
    passing = folders.cache / "uploads"
    # Gradio's default folder is shared by all programs with gradio, is in memory on some systems, and is never emptied.
    own = os.environ.setdefault(UPLOADED, str(passing)) == str(passing)
    keeper = Housekeeper(
        saved,
        mode,
        jobs,
        uploads=folders.uploads,
        presets=folders.presets,
        results=results,
        passing=passing if own else None,
        others=(folders.settings, folders.cache, folders.logs, LORAS, UNTRAINED.parent),
    )
    keeper.start()
    return keeper


def _moved(folders: UserFolders, t: Translator) -> Problem:
    """Log and return the notice that the program's own folders cannot be written, and where files are kept instead."""
    notice = Problem("", "program_folder_read_only", {"folder": str(WEBUI), "place": str(user_home())})
    logger.warning("%s", t(f"problem.{notice.key}", **notice.values))
    return notice


def apply_saved(settings: AppSettings, log: Log, engine: Engine, mode: str, reserve_gb: float | None) -> None:
    """Apply the saved settings of the log and of the reserved GPU memory at the start of the program.

    reserve_gb: the command line's value in place of the saved one, None without. Problems are logged and do not stop the start.
    """
    try:
        set_reserve(engine, settings.choice(mode, RESERVE) if reserve_gb is None else reserve_gb)
        problems = log.begin(settings, mode)
    except UserError as error:
        problems = error.problems
    for problem in problems:
        logger.warning("%s", log.t(f"problem.{problem.key}", **problem.values))


def _redirect(app: FastAPI, path: str, target: str, both: bool) -> None:
    """Redirect a path to a target. both: also the path with a slash at its end."""

    async def go() -> RedirectResponse:
        return RedirectResponse(target)

    app.add_api_route(path, go)
    if both:
        app.add_api_route(f"{path}/", go)
