"""Flags, server, login, and which page is where: the only place where things are wired."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse

from eichi_utils.catalogue import Models
from eichi_utils.console import ready, write
from eichi_utils.demo import UNTRAINED
from eichi_utils.disk_cache import DEFAULT_GB
from eichi_utils.engine import Engine
from eichi_utils.folders import OutputFolders
from eichi_utils.housekeeping import Housekeeper
from eichi_utils.jobs import Job, Jobs
from eichi_utils.log import FOLDER, SOURCES, Log
from eichi_utils.notify import Alarm
from eichi_utils.paths import DEFAULT_UPLOADS, LORAS, PRESETS, SETTINGS, WEBUI, UserFolders, user_folders, user_home
from eichi_utils.problems import Problem, UserError
from eichi_utils.settings import AppSettings
from eichi_utils.story import Story
from eichi_utils.timings import Timings
from locales import LANGUAGES, Translator, preferred_language
from webui import endframe_ichi, endframe_ichi_f1, oneframe_ichi
from webui.context import Context
from webui.frame import STYLE, theme
from webui.memory_panel import RESERVE, change
from webui.path_check import ServedFiles
from webui.pulse import add_routes

PAGES = MappingProxyType(
    {
        "reverse": ("/endframe", endframe_ichi.page),
        "forward": ("/f1", endframe_ichi_f1.page),
        "single": ("/oneframe", oneframe_ichi.page),
    }
)
FIRST_PORT = 7861
# What gradio is told its folder of uploads by.
UPLOADED = "GRADIO_TEMP_DIR"
# Ports tried before giving up; seconds the worker may take to reach its next step on the way out.
PORTS_TRIED = 100
CLOSING_SECONDS = 10

logger = logging.getLogger(__name__)


def build(
    jobs: Jobs,
    mode: str,
    t: Translator,
    outputs: Path,
    *,
    models: Models | None = None,
    uploads: Path = DEFAULT_UPLOADS,
    plain: bool = False,
    auth: tuple[str, str] | None = None,
    engine: Engine | None = None,
    settings: Path = SETTINGS,
    presets: Path = PRESETS,
    more_outputs: tuple[Path, ...] = (),
    timings: Timings | None = None,
    log: Log | None = None,
    more_uploads: tuple[Path, ...] = (),
    notices: tuple[Problem, ...] = (),
) -> FastAPI:
    """The three pages in one application: `mode`'s at "/", the others at their own paths.

    models: those to choose from, by default what this machine has. auth: (user, password) that every page asks for; who has
    logged in at one is known to the others. engine: what the jobs run with, where pages may change it.
    settings, presets: folders of what users saved.
    more_outputs: folders beside `outputs` that pages may save to and serve. timings: for estimates. log: for pages to switch.
    more_uploads: further folders of pictures that came through a page. notices: for every page to say.
    """
    app = FastAPI(title="FramePack-eichi", docs_url=None, redoc_url=None, openapi_url=None)
    models = models or Models()
    links = {name: "/" if name == mode else f"{path}/" for name, (path, _) in PAGES.items()}
    for name, (path, _) in PAGES.items():
        _redirect(app, path, links[name])
    add_routes(app, jobs, t, lambda request: auth is None or _has_logged_in(app, request))
    # What is mounted at "/" takes every address that is not taken before.
    for name in sorted(PAGES, key=lambda name: name == mode):
        path, page = PAGES[name]
        root = "" if name == mode else path
        context = Context(
            jobs=jobs,
            t=t,
            mode=name,
            outputs=outputs,
            uploads=uploads,
            root=root,
            links=links,
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
        )
        gr.mount_gradio_app(
            app,
            page(context),
            path=root or "/",
            auth=auth,
            # The form of a running job shows its pictures again after a reload.
            allowed_paths=[*(str(folder.resolve()) for folder in context.files.folders), *context.files.files],
            blocked_paths=[str(folder.resolve()) for folder in context.files.closed],
            footer_links=[],
            run_history=False,
            theme=theme(),
            css_paths=STYLE,
            # Chinese and Japanese draw shared characters differently; the browser goes by the language.
            head=f'<script>document.documentElement.lang = "{t.language}"</script>',
        )
    _share_login(app)
    app.add_middleware(ServedFiles, serves=context.files.serves)
    return app


@ready()
def serve(mode: str, argv: Sequence[str]) -> None:
    """Read the flags, start the worker and the server, and run until interrupted."""
    options = read_flags(argv)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folders = user_folders()
    folders.take_over()
    outputs = (options.out or folders.outputs).resolve()
    models = Models(options.models)
    settings = {"compiler": options.compile, "cache_gb": options.cache_gb}
    where = {"more_outputs": tuple(folder.resolve() for folder in options.allow_folder), "timings": Timings()}
    settings |= {"allowed": where["more_outputs"], "timings": where["timings"]}
    engine = Engine(models, outputs, options.device, options.attention, **settings)
    saved, log = AppSettings(), Log(SOURCES[mode], options.t, OutputFolders(folders.logs, where["more_outputs"], FOLDER))
    begin(saved, log, engine, mode, options.reserve_gb)
    jobs = Jobs(engine, [Story(log, options.t), Alarm(saved)])
    where |= {"plain": options.plain, "auth": options.auth, "engine": engine, "log": log}
    where |= {"uploads": folders.uploads, "settings": folders.settings, "presets": folders.presets}
    if folders.moved:
        where |= {"more_uploads": (DEFAULT_UPLOADS,), "notices": (_moved(folders, options.t),)}
    housekeeper = tidied(folders, saved, mode, jobs.all, (outputs, *where["more_outputs"]))
    app = build(jobs, mode, options.t, outputs, models=models, **where)
    try:
        with listen(options.server, options.port) as listener:
            url = address(options.server, listener)
            # Without handlers of its own: what the server has to say goes where everything goes.
            config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=1)
            with suppress(KeyboardInterrupt):
                _Server(config, url, options.inbrowser).run(sockets=[listener])
    finally:
        housekeeper.close()
        jobs.close(CLOSING_SECONDS)
        log.close()


def tidied(
    folders: UserFolders, saved: AppSettings, mode: str, jobs: Callable[[], Iterable[Job]], results: tuple[Path, ...]
) -> Housekeeper:
    """Give gradio a folder of this program's own for what is uploaded, and begin to tidy up. results: where films lie."""
    passing = folders.cache / "uploads"
    # Gradio's usual one is shared by all programs with gradio, lies in memory on some systems, and is never emptied.
    own = os.environ.setdefault(UPLOADED, str(passing)) == str(passing)
    keeper = Housekeeper(
        saved,
        mode,
        jobs,
        uploads=folders.uploads,
        presets=folders.presets,
        results=results,
        passing=passing if own else None,
        others=(folders.settings, folders.cache, LORAS, UNTRAINED.parent),
    )
    keeper.start()
    return keeper


def _moved(folders: UserFolders, t: Translator) -> Problem:
    """What is said, once in the log and on every page, of a program whose own folders cannot be written."""
    notice = Problem("", "program_folder_read_only", {"folder": str(WEBUI), "place": str(user_home())})
    logger.warning("%s", t(f"problem.{notice.key}", **notice.values))
    return notice


def begin(settings: AppSettings, log: Log, engine: Engine, mode: str, reserve_gb: float | None) -> None:
    """What was saved about log and card counts from the start; reserve_gb: what the command line says instead.

    Nothing of it keeps the program from starting.
    """
    try:
        change(engine, settings.choice(mode, RESERVE) if reserve_gb is None else reserve_gb)
        problems = log.begin(settings, mode)
    except UserError as error:
        problems = error.problems
    for problem in problems:
        logger.warning("%s", log.t(f"problem.{problem.key}", **problem.values))


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; leaves with code 2 and a sentence if it cannot be followed."""
    language = preferred_language(os.environ)
    words = Translator(language)
    parser = argparse.ArgumentParser(description=words("page.flag.description"))
    parser.add_argument("--lang", choices=LANGUAGES, default=language, help=words("page.flag.lang"))
    parser.add_argument("--server", metavar="ADDRESS", default="127.0.0.1", help=words("page.flag.server"))
    parser.add_argument("--port", type=int, default=FIRST_PORT, help=words("page.flag.port", port=FIRST_PORT))
    parser.add_argument("--inbrowser", action="store_true", help=words("page.flag.inbrowser"))
    parser.add_argument("--models", type=Path, metavar="DIR", help=words("page.flag.models"))
    parser.add_argument("--out", type=Path, metavar="DIR", help=words("page.flag.out"))
    parser.add_argument(
        "--allow-folder", type=Path, action="append", default=[], metavar="DIR", help=words("page.flag.allow_folder")
    )
    parser.add_argument("--attention", metavar="NAME", default="auto", help=words("page.flag.attention"))
    parser.add_argument("--compile", choices=("auto", "off"), default="auto", help=words("page.flag.compile"))
    parser.add_argument("--device", metavar="NAME", default="auto", help=words("page.flag.device"))
    parser.add_argument("--reserve-gb", type=float, metavar="N", help=words("page.flag.reserve_gb"))
    parser.add_argument("--cache-gb", type=float, metavar="N", default=DEFAULT_GB, help=words("page.flag.cache_gb"))
    parser.add_argument("--plain", action="store_true", help=words("page.flag.plain"))
    parser.add_argument("--auth", metavar="USER:PASSWORD", help=words("page.flag.auth"))
    options = parser.parse_args(argv)
    options.t = Translator(options.lang)
    if options.auth is not None:
        user, _, password = options.auth.partition(":")
        if not user or not password:
            parser.error(options.t("page.flag.auth_form"))
        options.auth = (user, password)
    if not options.auth and not is_loopback(options.server):
        parser.error(options.t("page.flag.auth_needed", address=options.server))
    if not 0 <= options.port <= 65535:
        parser.error(options.t("page.flag.port_range", port=options.port))
    return options


def is_loopback(server: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return server == "localhost"


def listen(server: str, port: int) -> socket.socket:
    """A listening socket at the port or the next free one; port 0 lets the system choose."""
    family, *_, place = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM)[0]
    last = min(port + PORTS_TRIED, 65536) - 1
    for number in range(port, last + 1):
        listener = socket.socket(family)
        # Elsewhere the option means "take over a port in use", the opposite of looking for a free one.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place[0], number, *place[2:]))
            listener.listen(2048)
        except OSError:
            listener.close()
            if number == last:
                raise
        else:
            return listener
    raise AssertionError("at least one port is tried")


def address(server: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the listener."""
    host = "127.0.0.1" if server in ("0.0.0.0", "::") else server
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


class _Server(uvicorn.Server):
    """Says where it is as soon as it answers."""

    def __init__(self, config: uvicorn.Config, url: str, inbrowser: bool):
        super().__init__(config)
        self._url, self._inbrowser = url, inbrowser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        write(sys.stdout, f"{self._url}\n")
        if self._inbrowser:
            webbrowser.open(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Every open tab holds a stream; that it is cut off now is no error worth a traceback.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def _redirect(app: FastAPI, path: str, target: str) -> None:
    async def go() -> RedirectResponse:
        return RedirectResponse(target)

    app.add_api_route(path, go)
    if target == "/":
        app.add_api_route(f"{path}/", go)


def _gradio_apps(app: FastAPI) -> list[gr.routes.App]:
    return [route.app for route in app.routes if isinstance(getattr(route, "app", None), gr.routes.App)]


def _has_logged_in(app: FastAPI, request: Request) -> bool:
    """Whether a request carries the cookie that one of the pages has given for name and password."""
    first = _gradio_apps(app)[0]
    names = (f"access-token-{first.cookie_id}", f"access-token-unsecure-{first.cookie_id}")
    return any(request.cookies.get(name) in first.tokens for name in names)


def _share_login(app: FastAPI) -> None:
    # Each gradio application keeps its own cookie name and table of tokens; one login is enough for a user.
    first, *others = _gradio_apps(app)
    for other in others:
        other.cookie_id, other.tokens = first.cookie_id, first.tokens
