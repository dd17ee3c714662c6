"""Measure what open browser tabs cost while a film is made: `python -m benchmarks.tabs [--tabs 20] [--others behind] [--json]`.

A real server in a process of its own makes the same small film on the CPU, with two tabs open and with many. Measured are how
long a click waits for its answer meanwhile, and how much longer the film takes. Browser and film share this machine's
processors.

--others behind: the further tabs lie behind an empty one in a window of their own, which needs a screen (`xvfb-run -a python -m
benchmarks.tabs` where there is none). seen: all tabs are in view, each in its own window, and this machine draws them all
without a card. clients: plain HTTP clients send the requests of visible tabs, as browsers on other machines would: this shows
what the server alone takes from the film.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
# Address that tabs poll, as in webui/live/polling.py, which a benchmark may not import.
ADDRESS = "/pulse"
# Seconds after which a run fails, because the server must hang.
LONGEST = 300.0
# Seconds between two clicks, as of a person who looks at the result.
PAUSE = 2.0
# JavaScript for the page: it clicks on another length, and returns the milliseconds until the summary line changes.
CLICK = """() => new Promise((done, failed) => {
  const summary = document.querySelector('#summary'), before = summary.innerText, since = performance.now();
  const seen = new MutationObserver(() => {
    if (summary.innerText === before) return;
    seen.disconnect(); done(performance.now() - since); });
  seen.observe(summary, { childList: true, subtree: true, characterData: true });
  setTimeout(() => { seen.disconnect(); failed('no answer'); }, 30000);
  const [one, two] = document.querySelectorAll('#quick label');
  (one.classList.contains('selected') ? two : one).click(); })"""


@dataclass(frozen=True)
class Result:
    """Hold the measurements: median seconds of a film with two tabs ("alone") and with all, and milliseconds of clicks.

    load_seconds: until a further tab is there. server_share: of one processor, by an idle server with all tabs open.
    """

    tabs: int
    others: str
    alone_seconds: float
    together_seconds: float
    slowdown: float
    click_alone_ms: dict[str, float]
    click_ms: dict[str, float]
    clicks: int
    load_seconds: float
    server_share: float


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median (p50), p95 and the largest value, rounded to tenths."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for name, share in at.items()}


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run the program's server with the miniature on a free port while the context is open; yields address and process id."""
    flags = ["--port", "0", "--lang", "en", "--out", str(folder), "--cache-gb", "0", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "webui" / "endframe_ichi.py"), *flags]
    # An empty model folder, so that the page begins with the miniature on every machine.
    environment = {**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HOME": str(folder / "hub")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
    try:
        line = process.stdout.readline().strip()
        if not line.startswith("http"):
            raise RuntimeError("the server did not start")
        yield line, process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()


def busy(url: str) -> bool:
    """Ask a server, as its tabs do, whether a job runs."""
    with urllib.request.urlopen(f"{url}{ADDRESS}/reverse", timeout=10) as answer:
        return json.load(answer)["busy"]


def wait_until(url: str, wanted: bool) -> float:
    """Wait until a job runs (wanted) or none does, and return the monotonic time. Raises RuntimeError after LONGEST seconds."""
    deadline = time.monotonic() + LONGEST
    while busy(url) != wanted:
        if time.monotonic() > deadline:
            raise RuntimeError("the run does not end" if not wanted else "the run does not begin")
        time.sleep(0.02)
    return time.monotonic()


def processor_seconds(pid: int) -> float:
    """Return the processor seconds that all threads of a process have used so far."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def run(url: str, page: Any, others: Sequence[Any]) -> tuple[float, list[float]]:
    """Make one film; returns its seconds, and the milliseconds of clicks meanwhile, which go to the tabs in turn.

    page: the tab that starts it. others: the tabs that are clicked.
    """
    page.wait_for_selector("#start:enabled")
    with ThreadPoolExecutor(1) as pool:
        # Watch in a thread: with many tabs the click returns only when the film is half done.
        begins = pool.submit(wait_until, url, True)
        page.click("#start")
        began = begins.result()
    clicks, number = [], 0
    while busy(url):
        tab = others[number % len(others)]
        clicks.append(tab.evaluate(CLICK))
        number += 1
        time.sleep(PAUSE)
    return wait_until(url, False) - began, clicks


@contextmanager
def clients(url: str, count: int) -> Iterator[None]:
    """Run `count` threads while the context is open that poll the server as visible tabs do, and fetch each preview."""
    done = threading.Event()

    def ask(number: int) -> None:
        last, wait = "", number / count
        while not done.wait(wait):
            with urllib.request.urlopen(f"{url}{ADDRESS}/reverse?tab={number}", timeout=30) as answer:
                news = json.load(answer)
            preview, wait = news["preview"], news["wait"] / 1000
            if preview and preview != last:
                with urllib.request.urlopen(url + preview, timeout=30) as answer:
                    answer.read()
            last = preview

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def window(chromium: str, url: str, count: int) -> Iterator[None]:
    """Open `count` tabs behind an empty one in a browser window; the context begins when they have loaded.

    Playwright does not control this browser, because it would keep all tabs in view. Raises RuntimeError if they do not load.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [flag for flag in FLAGS.split() if "background" not in flag]
        command = [chromium, *flags, "--no-default-browser-check", f"--user-data-dir={profile}", "about:blank", *[url] * count]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + LONGEST
            busy_share = 1.0
            while busy_share > 0.1:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the browser's window did not load; it needs a screen")
                before = family_seconds(process.pid)
                time.sleep(3)
                busy_share = (family_seconds(process.pid) - before) / 3 if before else 1.0
            yield
        finally:
            process.terminate()
            process.wait(15)


def family_seconds(pid: int) -> float:
    """Return the processor seconds of a process and of all processes below it."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += processor_seconds(process.pid)
    return total


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Make films with two tabs and with many, and return their times and those of clicks. folder: of the server's files."""
    from playwright.sync_api import sync_playwright

    with server(folder) as (url, pid), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS.split())
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(60_000)

        def opened() -> Any:
            tab = context.new_page()
            tab.goto(url)
            tab.wait_for_selector("#start")
            return tab

        first = opened()
        first.click("#examples .row button >> nth=0")
        first.fill("#seed textarea, #seed input", "7")
        first.click("#advanced .label-wrap, #advanced > button")
        first.fill("#seconds input[type=number]", f"{options.seconds:g}")
        first.fill(".field-steps input[type=number]", str(options.steps))
        first.keyboard.press("Tab")
        clicker = opened()
        run(url, first, [clicker])
        alone, together, alone_clicks, clicks = [], [], [], []

        def films(count: int, tabs: Sequence[Any], seconds: list[float], waited: list[float]) -> None:
            for _ in range(count):
                took, milliseconds = run(url, first, tabs)
                seconds.append(took)
                waited += milliseconds

        # Half of the runs with two tabs come before and half after, so that a machine that slows down affects both kinds.
        films(options.runs // 2, [clicker], alone, alone_clicks)
        since, count = time.monotonic(), options.tabs - 2
        others = [opened() for _ in range(count)] if options.others == "seen" else []
        behind = window(options.chromium, url, count) if options.others == "behind" else nullcontext()
        with behind, clients(url, count if options.others == "clients" else 0):
            load = (time.monotonic() - since) / count
            # Only visible tabs can be clicked.
            films(options.runs, [clicker, *others], together, clicks)
            before = processor_seconds(pid)
            time.sleep(2)
            share = (processor_seconds(pid) - before) / 2
        for tab in others:
            tab.close()
        films(options.runs - options.runs // 2, [clicker], alone, alone_clicks)
        browser.close()
    alone_median, together_median = statistics.median(alone), statistics.median(together)
    return Result(
        tabs=options.tabs,
        others=options.others,
        alone_seconds=round(alone_median, 2),
        together_seconds=round(together_median, 2),
        slowdown=round(together_median / alone_median, 3),
        click_alone_ms=percentiles(alone_clicks),
        click_ms=percentiles(clicks),
        clicks=len(clicks),
        load_seconds=round(load, 2),
        server_share=round(share, 3),
    )


def table(result: Result) -> str:
    """Return the result as aligned lines of names and figures."""
    rows = [
        ("film with 2 tabs", f"{result.alone_seconds:.2f} s"),
        (f"film with {result.tabs} tabs, {result.others}", f"{result.together_seconds:.2f} s"),
        ("so much longer", f"{100 * (result.slowdown - 1):+.1f} %"),
        ("click with 2 tabs", ", ".join(f"{name} {value:.0f} ms" for name, value in result.click_alone_ms.items())),
        (f"click with {result.tabs} tabs", ", ".join(f"{name} {value:.0f} ms" for name, value in result.click_ms.items())),
        ("clicks", str(result.clicks)),
        ("another tab is there after", f"{result.load_seconds:.1f} s"),
        ("server, nothing to do, all tabs open", f"{100 * result.server_share:.0f} % of a processor"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for, and print the result; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tabs", description=__doc__.splitlines()[0])
    parser.add_argument("--tabs", type=int, default=20, help="tabs in all, at least 3")
    parser.add_argument("--others", choices=("behind", "seen", "clients"), default="behind", help="what all but two are")
    parser.add_argument("--runs", type=int, default=4, help="films of each kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the film")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser's program")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(asdict(result)) if options.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
