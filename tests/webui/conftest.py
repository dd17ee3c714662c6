"""Provide a server with the real pages, a worker that makes tiny films without a model, and a browser."""

from __future__ import annotations

import functools
import inspect
import io
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gradio
import numpy
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from eichi_utils.files.paths import Outputs
from eichi_utils.jobs.events import Finished, Saved, Stage, Started, Step, StopLevel, Stopped
from eichi_utils.jobs.queue import Jobs
from eichi_utils.models.catalogue import Models
from eichi_utils.models.lora_fit import published_layers, shapes_in
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests import loras
from locales import Translator
from tests.lora_files import write_lora
from tests.webui.browsing import MARK_FILLED, PATIENCE, until_filled
from webui.app import PAGES, build, listen
from webui.context import Context
from webui.http.connection import Patience
from webui.http.gate import MOST, Gate
from webui.http.server import Server

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# Names under which a browser of the tests finds this machine.
LAN_NAME, FOREIGN_NAME = "studio.lan", "elsewhere.lan"
NAMES = f"--host-resolver-rules=MAP {LAN_NAME} 127.0.0.1,MAP {FOREIGN_NAME} 127.0.0.1"


@dataclass
class FakeEngine:
    """Yield the events of a run. step_seconds: of each step. hold: the middle step waits until it is set."""

    outputs: Path
    step_seconds: float = 0.0
    hold: threading.Event = field(default_factory=threading.Event)
    problem: Problem | None = None
    seen: list = field(default_factory=list)

    def __call__(self, request, job_id, stop):
        self.seen.append(request)
        plan, out = request.plan(), Outputs(self.outputs, job_id)
        count, steps, width, height = len(plan.sections), request.steps, 96, 64
        sizes = {"sections": count, "steps": steps, "frames": plan.frames, "width": width, "height": height}
        yield Started(at=time.monotonic(), seed=request.seed, **sizes)
        yield Stage(at=time.monotonic(), name="text")
        if self.problem:
            raise UserError([self.problem])
        out.prepare(0)
        files = []
        for section in range(count):
            yield Stage(at=time.monotonic(), name="sample", section=section)
            for step in range(steps):
                time.sleep(self.step_seconds)
                if step == steps // 2:
                    self.hold.wait(300)
                if stop.level == StopLevel.NOW:
                    yield Stopped(at=time.monotonic(), level=StopLevel.NOW, files=tuple(files))
                    return
                yield Step(at=time.monotonic(), section=section, step=step, preview=preview(section * steps + step))
            yield Stage(at=time.monotonic(), name="decode", section=section)
            if plan.output == "picture":
                files.append(str(out.path(".png")))
                Image.fromarray(picture(section, width, height)).save(files[-1])
                yield Saved(at=time.monotonic(), path=files[-1], kind="picture", section=section, frames=1)
                break
            files.append(str(out.path(f"_{plan.latents_after(section + 1)}.mp4")))
            frames = 8 * (section + 1)
            write_film(Path(files[-1]), frames, width, height)
            last = section == count - 1
            yield Saved(
                at=time.monotonic(),
                path=files[-1],
                kind="film" if last else "so_far",
                section=section,
                frames=frames,
            )
            if stop.level == StopLevel.SECTION:
                yield Stopped(at=time.monotonic(), level=StopLevel.SECTION, files=tuple(files))
                return
        yield Finished(at=time.monotonic(), files=tuple(files), frames=plan.frames)


def picture(number: int, width: int, height: int) -> numpy.ndarray:
    y, x = numpy.mgrid[0:height, 0:width]
    return numpy.stack([(x * 2 + number * 8) % 256, y * 3 % 256, (x + y) % 256], axis=-1).astype(numpy.uint8)


def preview(number: int) -> bytes:
    first, *others = (Image.fromarray(picture(number * 4 + i, 24, 16)) for i in range(4))
    data = io.BytesIO()
    first.save(data, "WEBP", save_all=True, append_images=others, duration=100, loop=0)
    return data.getvalue()


def write_film(path: Path, frames: int, width: int, height: int) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "30", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, 30)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@dataclass
class Site:
    """Hold a running server with its queue and engine."""

    url: str
    jobs: Jobs
    engine: FakeEngine
    # Ends the server; another may have its port then.
    end: Callable[[], None]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@pytest.fixture(scope="session", autouse=True)
def signatures_are_read_once() -> Iterator[None]:
    """Cache the signatures of functions.

    Gradio reads those of constructors again for each of a page's hundreds of components, a quarter of the time to build a page,
    and for each component of an answer, a quarter of the answer's time.
    """
    signature, once = inspect.signature, functools.cache(inspect.signature)

    def known(function: Callable, **settings: Any) -> inspect.Signature:
        return (once if isinstance(function, Hashable) else signature)(function, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inspect, "getfullargspec", functools.cache(inspect.getfullargspec))
        patched.setattr(inspect, "signature", known)
        yield


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build pages without gradio's routes and its description for browsers, which take half of the time to build a page."""
    monkeypatch.setattr(gradio.routes.App, "create_app", lambda *args, **settings: None)
    monkeypatch.setattr(gradio.Blocks, "get_config_file", lambda self: {"dependencies": []})


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    engine = FakeEngine(tmp_path / "outputs")
    engine.hold.set()
    return engine


@pytest.fixture
def jobs(engine: FakeEngine) -> Iterator[Jobs]:
    jobs = Jobs(engine)
    yield jobs
    engine.hold.set()
    jobs.close(10)


@pytest.fixture
def serve(engine: FakeEngine, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Start the pages: `serve("reverse", "en")`. Unless told otherwise they look like those of a computer with the models.

    others: whether the other modes' pages are the real ones too, which takes as long as their loading; else they are empty.
    port: 0 is any.
    """
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    running = []

    def start(
        mode: str = "reverse",
        language: str = "en",
        others: bool = False,
        patience: Patience | None = None,
        port: int = 0,
        **settings,
    ) -> Site:
        pages = {name: (path, page if others or name == mode else empty_page) for name, (path, page) in PAGES.items()}
        monkeypatch.setattr("webui.app.PAGES", pages)
        uploads = engine.outputs.parent / "uploads"
        folders = {name: engine.outputs.parent / name for name in ("settings", "presets")}
        settings = {"models": Models(engine.outputs.parent), **folders, **settings}
        app = build(jobs, mode, Translator(language), engine.outputs, uploads=uploads, **settings)
        listener = listen("127.0.0.1", port)
        server = Server(app, Gate(MOST), patience=patience)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(10)
            listener.close()

        running.append(end)
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return Site(f"http://127.0.0.1:{listener.getsockname()[1]}", jobs, engine, end)

    yield start
    for end in running:
        end()


def empty_page(_: Context) -> gradio.Blocks:
    with gradio.Blocks(analytics_enabled=False) as page:
        return page


@pytest.fixture
def lora_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide the user's LoRA folder with files for the published models and one for the miniature."""
    folder = tmp_path / "lora"
    (folder / "small").mkdir(parents=True)
    for name in ("ink.v1.safetensors", "Style.SAFETENSORS"):
        write_lora(folder / name, "kohya_framepack", published_layers(), rank=1, only=("proj_out",))
    miniature = shapes_in(Models().files("miniature"), "framepack")
    write_lora(folder / "small" / "mini.safetensors", "peft", miniature, rank=1, only=("proj_out",))
    monkeypatch.setattr(loras, "LORAS", folder)
    return folder


@pytest.fixture(scope="session")
def tower() -> str:
    """Return the path of a real photo."""
    return str(Path(gradio.__file__).parent / "media_assets" / "images" / "tower.jpg")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    if not CHROMIUM.exists():
        pytest.skip("no browser on this machine")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*FLAGS.split(), NAMES])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser) -> Callable:
    """Open tabs and wait until their forms are filled; none may have an error or call another host."""
    contexts, complaints = [], []

    def watch(page, url: str) -> None:
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        own = (url, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else complaints.append(asked.url))

    def go(url: str, path: str = "/", width: int = 1280, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.add_init_script(MARK_FILLED)
        page = context.new_page()
        watch(page, url)
        page.goto(url + path)
        until_filled(page)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
