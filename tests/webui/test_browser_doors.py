"""Test the access checks in a browser: a login behind a proxy under TLS, the user's files, and another site's page."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from tests.webui.browsing import MARK_FILLED, PATIENCE, eventually, fill, shows, until, until_filled
from tests.webui.conftest import FOREIGN_NAME, LAN_NAME, write_film
from tests.webui.doorstep import served
from webui.app import listen
from webui.http.doors import Rules

pytestmark = pytest.mark.browser


def until_played(page) -> None:
    """Wait until the film has come so far that its size is known."""
    eventually(page, lambda: page.locator("video").evaluate("video => video.videoWidth > 0"))


def log_in(page, password: str) -> None:
    page.fill("#username", "me")
    page.fill("#password", password)
    page.keyboard.press("Enter")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Run a reverse proxy under TLS, set up like nginx: `proxy(address of the program)` is where it serves the program, at
    /eichi."""
    if not shutil.which("openssl"):
        pytest.skip("nothing makes a certificate here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    running = []

    def start(target: str) -> str:
        client = httpx.AsyncClient(base_url=target, timeout=60)

        async def forward(request: Request) -> StreamingResponse:
            path = request.url.path.removeprefix("/eichi") + (f"?{request.url.query}" if request.url.query else "")
            headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
            said = {"X-Forwarded-For": request.client.host, "X-Forwarded-Proto": "https"}
            headers += [(name.encode(), value.encode()) for name, value in said.items()]
            headers.append((b"X-Forwarded-Host", request.headers["host"].encode()))
            sent = client.build_request(request.method, path, headers=headers, content=request.stream())
            got = await client.send(sent, stream=True)
            answer = StreamingResponse(got.aiter_raw(), got.status_code, background=BackgroundTask(got.aclose))
            answer.raw_headers = [pair for pair in got.headers.raw if pair[0].lower() != b"connection"]
            return answer

        methods = ["GET", "HEAD", "POST", "OPTIONS"]
        app = Starlette(routes=[Route("/eichi/{path:path}", forward, methods=methods)])
        listener = listen("127.0.0.1", 0)
        settings = {"ssl_keyfile": str(key), "ssl_certfile": str(certificate), "log_level": "error"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.02)
        return f"https://localhost:{listener.getsockname()[1]}/eichi"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(10)
        listener.close()


def test_a_film_behind_a_proxy_with_a_login(serve, browser, proxy, tower) -> None:
    """Addresses, cookies, uploads, streams and downloads all have to find their way through; and out again."""
    site = serve(auth=("me", "secret"), rules=Rules(proxies=("127.0.0.1",), root="/eichi"))
    url = proxy(site.url)
    context = browser.new_context(ignore_https_errors=True)
    context.add_init_script(MARK_FILLED)
    page, complaints = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # The icon is looked for at the host's own root, where the proxy has nothing.
    own = f"{url}/"
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type == "error" and own in str(said.location) else None
    )
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:")) else complaints.append(asked.url))
    try:
        page.goto(f"{url}/")
        assert page.url == f"{url}/login?next=/"
        log_in(page, "wrong")
        shows(page, "p[role=alert]", "wrong")
        # The answer to a wrong password is no success, of which the browser tells.
        assert len(complaints) == 1 and "401" in complaints.pop()
        log_in(page, "secret")
        until_filled(page)
        assert page.url == f"{url}/"
        cookies = {cookie["name"].rpartition("-")[0]: cookie for cookie in context.cookies()}
        assert cookies.keys() == {"eichi-session", "eichi-known"}
        assert all(cookie["secure"] and cookie["httpOnly"] and cookie["path"] == "/eichi" for cookie in cookies.values())
        fill(page, tower)
        page.click("#start")
        until(page, "finished")
        until_played(page)
        with page.expect_download() as download:
            page.click("a.download")
        assert download.value.path().stat().st_size > 1000
        page.click(".eichi-header nav a >> nth=1")
        page.wait_for_url(f"{url}/f1/")
        page.goto(f"{url}/")
        until_filled(page)
        # A page that is left is told so by its next question.
        assert complaints == []
        page.click(".eichi-header form button", no_wait_after=True)
        page.wait_for_url(f"{url}/login")
        page.goto(f"{url}/f1/")
        assert page.url == f"{url}/login?next=/f1/"
    finally:
        context.close()


def test_a_phone_on_the_lan(serve, browser, tower) -> None:
    """A name of the computer, a login and no TLS: browsers keep cookies and more from such pages. A film is made all the same.

    Whoever has another name mean the computer sees nothing, and gets nobody to say who he is.
    """
    site = serve(auth=("me", "secret"), rules=Rules(server="0.0.0.0", names=(LAN_NAME,)))
    port = site.url.rpartition(":")[2]
    url = f"http://{LAN_NAME}:{port}"
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    context.add_init_script(MARK_FILLED)
    page, complaints = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    try:
        assert context.request.get(f"http://127.0.0.1:{port}/login", headers={"Host": FOREIGN_NAME}).status == 403
        assert context.new_page().goto(f"http://{FOREIGN_NAME}:{port}/login").status == 403
        page.goto(url)
        page.fill("#username", "me")
        page.fill("#password", "secret")
        page.tap("button")
        until_filled(page)
        fill(page, tower)
        page.tap("#start")
        until(page, "finished")
        until_played(page)
        with page.expect_download() as download:
            page.tap("a.download")
        assert download.value.path().stat().st_size > 1000 and complaints == []
    finally:
        context.close()


def test_an_upload_of_300_megabytes(serve, open_page, tmp_path, monkeypatch) -> None:
    """The latents of a film of 97 seconds are as large as this. All of them arrive, and are said to be what they are."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    shape = (1, 16, 731, 80, 80)
    size = 4 * math.prod(shape)
    described = {"history_latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    header = json.dumps(described).encode()
    latents = tmp_path / "long.safetensors"
    latents.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(latents, latents.stat().st_size + size)
    page = open_page(serve().url)
    page.click("#latents > button")
    page.set_input_files("#append_latents input[type=file]", latents)
    shows(page, "#latents-info", "640 × 640")
    (kept,) = [path for path in (tmp_path / "gradio").rglob("*.safetensors")]
    assert kept.stat().st_size == latents.stat().st_size > 299_000_000


def test_what_lies_in_the_output_folder_never_runs(serve, browser) -> None:
    """An .html or .svg there was a page of ours: its script could start films and read everything. Films are still shown."""
    site = serve()
    out = site.engine.outputs
    out.mkdir()
    script = "<script>fetch('/pulse/stolen')</script>"
    (out / "page.html").write_text(f"<h1>here</h1>{script}")
    (out / "picture.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{script}</svg>')
    (out / "page.png").write_text(f"<h1>here</h1>{script}")
    write_film(out / "film.mp4", 8, 96, 64)
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    files = f"{site.url}/gradio_api/file={out.as_posix()}"
    try:
        for name in ("page.html", "picture.svg"):
            assert context.request.get(f"{files}/{name}").status == 403
        page.goto(f"{files}/page.png")
        page.goto(f"{files}/film.mp4")
        until_played(page)
    finally:
        context.close()
    assert any("page.png" in url for url in asked) and not any("stolen" in url for url in asked)


def test_another_sites_page_changes_nothing(serve, browser, monkeypatch, tmp_path) -> None:
    """Any page that the user has open sees localhost too. It could upload, start and stop; now it is told no."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    site = serve()
    tries = f"""<script>
const form = new FormData();
form.append('files', new Blob(['x']), 'x.png');
Promise.allSettled([
  fetch('{site.url}/gradio_api/upload', {{method: 'POST', mode: 'no-cors', body: form}}),
  fetch('{site.url}/gradio_api/queue/join', {{method: 'POST', mode: 'no-cors', body: '{{}}'}}),
  fetch('{site.url}/pulse/reverse').then(answer => answer.json()),
]).then(results => {{ document.title = results.map(result => result.status).join(); }});
</script>"""
    evil = Starlette(routes=[Route("/", lambda request: HTMLResponse(tries))])
    context = browser.new_context()
    page = context.new_page()
    try:
        with served(evil) as port:
            page.goto(f"http://localhost:{port}/")
            expect(page).to_have_title("rejected,rejected,rejected")
    finally:
        context.close()
    assert not [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]
