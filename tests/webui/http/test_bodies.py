"""Test the bodies of HTTP requests: how large, how slow, and what is left of a refused one."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace

import pytest

from eichi_utils.user_data.passing import LEAST_FREE
from tests.virtual_time import in_virtual_time
from tests.waiting import LONG, until
from tests.webui.doorstep import answer, client, connect, doors, head, lasted, lines_to, rest, served
from webui.http import doors as module
from webui.http.doors import Rules
from webui.http.login import Login

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_have_an_end(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB were read into memory whoever sent them, and stayed there. What comes in pieces, without a length, is counted."""
    monkeypatch.setattr(module, "BODY_BYTES", 1000)
    monkeypatch.setattr(module, "FRAME_BYTES", 100)
    visitor = client(upload_bytes=5000)

    def status(path: str, size: int, method: str = "POST") -> int:
        parts = [b"x" * size]
        return visitor.request(method, path, content=iter(parts) if chunked else parts[0]).status_code

    assert status("/length", 1000) == 200 and status("/length", 1001) == 413
    assert status("/gradio_api/upload", 5100) == 200 and status("/gradio_api/upload", 5101) == 413
    if not chunked:
        assert status("/ignoring", 1, "GET") == 413
    visitor = client(login=Login({"me": "secret"}))
    assert status("/login", 16_384) == 401 and status("/login", 16_385) == 413


def test_bodies_in_memory_have_an_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was small enough, and many at once filled the memory. What has been answered counts no more."""
    monkeypatch.setattr(module, "HELD_BYTES", 2500)
    app = doors()
    with served(app) as port:
        held = [connect(port, head("/length", "POST", content_length=1001, connection="close") + b"x" * 1000) for _ in range(2)]
        until(lambda: app.held == 2000)
        third = connect(port, head("/length", "POST", content_length=1000) + b"x" * 1000)
        assert b" 503 " in third.recv(1000).split(b"\r\n")[0]
        third.close()
        for connection in held:
            connection.sendall(b"x")
            assert answer(connection).endswith(b"1001")
        for _ in range(3):
            until(lambda: app.held == 0)
            assert b" 200 " in answer(
                connect(port, head("/length", "POST", content_length=2000, connection="close") + b"x" * 2000)
            )


def test_a_body_of_too_many_values() -> None:
    """It is as good as too large; an upload is not looked into."""
    visitor = client()
    assert visitor.post("/length", content=b"[" + b"[]," * 60_000 + b"1]").status_code == 413
    assert visitor.post("/gradio_api/upload", content=b"[" * 1000).status_code == 200


def test_a_refused_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to 200 MB without a login comes before them, and also who reads only after sending gets it."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", LONG)
    login = Login({"me": "secret"})
    with served(doors(login)) as port:
        with connect(port, head("/gradio_api/upload", "POST", content_length=200 << 20)) as first:
            assert b"401 Unauthorized" in first.recv(1000)
        patient = connect(port, head("/length", "POST", content_length=8_000_000))
        for _ in range(8):
            patient.sendall(b"x" * 1_000_000)
        assert b"401 Unauthorized" in answer(patient)
        with connect(port, head("/length", "POST", content_length=8_000_000, expect="100-continue")) as expecting:
            assert expecting.recv(1000).startswith(b"HTTP/1.1 401")


def test_an_upload_that_is_said_to_be_too_large_is_told_so() -> None:
    """Browsers read the answer after they have sent all; by then the connection had ended, and with it the answer."""
    asked = head("/gradio_api/upload", "POST", content_length=8_000_000)

    async def upload() -> None:
        line = lines_to(doors(upload_bytes=1000))
        patient = await line(asked)
        for _ in range(8):
            patient[1].write(b"x" * 1_000_000)
            await patient[1].drain()
            await asyncio.sleep(0.9 * module.DRAIN_SECONDS)
        assert b" 413 " in await rest(patient)
        # Nobody holds a connection by sending nothing.
        assert await lasted(await line(asked)) == pytest.approx(module.DRAIN_SECONDS)

    in_virtual_time(upload())


def test_what_is_left_of_a_body_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that answers without reading it left the rest to come, a byte a minute, and the connection with it."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.3)
    with served(doors()) as port:
        connection = connect(port, head("/ignoring", "POST", content_length=1000) + b"x")
        got = answer(connection)
        assert got.endswith(b"seen") and b"connection: close" in got.lower()


def test_a_get_in_pieces_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies send even GET in pieces. Its connection ended before the last piece was taken, which cut the answer off."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", 0.3)
    asked, end = head("/large?bytes=3000000", transfer_encoding="chunked"), b"0\r\n\r\n"
    with served(doors()) as port:
        with connect(port) as connection:
            for late in (False, True) * 3:
                connection.sendall(asked if late else asked + end)
                if late:
                    time.sleep(0.1)
                    connection.sendall(end)
                reply = HTTPResponse(connection)
                reply.begin()
                assert len(reply.read()) == 3_000_000 and not reply.will_close
        stream = head("/ticking", transfer_encoding="chunked", connection="close")
        assert answer(connect(port, stream + end)).count(b"\r\ndata: ") == 8
        assert b" 413 " in answer(connect(port, asked + b"1\r\nx\r\n"))
        monkeypatch.setattr(module, "BODY_SECONDS", 0.1)
        assert b" 408 " in answer(connect(port, asked))


def test_an_answer_without_a_look_at_the_body_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ended with bytes that nobody had taken: systems then throw away what was sent and not yet read."""
    monkeypatch.setattr(module, "DRAIN_SECONDS", LONG)
    with served(doors()) as port:
        for _ in range(20):
            connection = connect(port, head("/ignoring", "POST", content_length=500_000))
            for _ in range(5):
                connection.sendall(b"x" * 100_000)
            assert answer(connection).endswith(b"seen")


def test_slow_bodies() -> None:
    """A body that comes a byte now and then is given up; one that is slow but comes is not."""

    async def send(size: int, part: bytes, each_seconds: float) -> tuple[bytes, float]:
        """Send parts of a body until there is an answer; return it, and how long it took."""
        reader, writer = await lines_to(doors())(head("/length", "POST", content_length=size, connection="close"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        got = asyncio.create_task(rest((reader, writer)))
        for _ in range(size // len(part)):
            writer.write(part)
            await asyncio.wait([got], timeout=each_seconds)
            if got.done():
                break
        return await got, loop.time() - began

    seldom, seconds = in_virtual_time(send(1000, b"x", 0.2 * module.BODY_SECONDS))
    assert b" 408 " in seldom and module.BODY_SECONDS <= seconds <= module.BODY_SECONDS + module.DRAIN_SECONDS + 1
    steady, seconds = in_virtual_time(send(100_000, b"x" * 2000, 1.0))
    assert steady.endswith(b"100000") and seconds > module.BODY_SECONDS + module.DRAIN_SECONDS


def test_gradio_forgets_an_upload_that_is_given_up(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It knows its own errors only: of an upload that ended early, or grew too large in pieces, a file stayed for ever."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    site = serve(rules=Rules(upload_bytes=100_000))
    port = int(site.url.rpartition(":")[2])
    monkeypatch.setattr(module, "FRAME_BYTES", 0)

    def upload(*sizes: int, end: bool = True) -> bytes:
        kind = "multipart/form-data; boundary=b"
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n'.encode() + bytes(size)
            for number, size in enumerate(sizes)
        ]
        first = head("/gradio_api/upload", "POST", content_type=kind, transfer_encoding="chunked")
        with connect(port, first) as connection:
            for part in (b"\r\n".join(parts), b"\r\n--b--\r\n"):
                connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if end:
                connection.sendall(b"0\r\n\r\n")
                return connection.recv(10_000)
            return b""

    def files() -> list[Path]:
        return [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]

    assert upload(90_000).startswith(b"HTTP/1.1 200") and len(files()) == 1
    assert upload(110_000).startswith(b"HTTP/1.1 413")
    assert upload(60_000, 60_000).startswith(b"HTTP/1.1 413")
    upload(50_000, end=False)
    fields = b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\nx\r\n--b--\r\n'
    kept_in_memory = urllib.request.Request(
        site.url + "/gradio_api/upload", fields, {"Content-Type": "multipart/form-data; boundary=b"}
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(kept_in_memory)
    # The next answer comes after what became of the last one.
    urllib.request.urlopen(site.url + "/config").read()
    assert len(files()) == 1


def test_an_upload_leaves_room_for_films(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Uploads filled the disk to its last byte, and the running film with them."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    visitor = client()
    assert visitor.post("/gradio_api/upload", content=b"x").status_code == 200
    full = shutil.disk_usage(tmp_path)._replace(free=LEAST_FREE - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    got = visitor.post("/gradio_api/upload", content=b"x" * 100_000)
    assert got.status_code == 507 and "1999 MB" in got.json()["error"]


def test_an_upload_that_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk was "Internal Server Error" and 58 lines of the log for each upload."""
    got = client().post("/oneframe/gradio_api/upload", content=b"x" * 1000)
    assert got.status_code == 507 and "No space left" in got.json()["error"] and "content-security-policy" in got.headers
    assert [record.exc_info for record in caplog.records if record.levelname != "INFO"] == [None]


def test_an_upload_that_takes_the_last_room_is_ended(serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Six uploads at once, each of which found room when it began, left 768 KB of the disk and the film without its end."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    site = serve("reverse", "en")
    free = iter([2 * LEAST_FREE, 2 * LEAST_FREE])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, LEAST_FREE - 1)))
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    upload = urllib.request.Request(
        site.url + "/gradio_api/upload",
        head + bytes(5 << 20) + b"\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(upload)
    assert refused.value.code == 507 and "1999 MB" in json.loads(refused.value.read())["error"]
    assert not [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]
