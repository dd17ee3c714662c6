"""Serve a small application behind the program's real access checks, and send raw bytes to a real server."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from locales import Translator
from tests.waiting import LONG, until
from webui.app import PAGES
from webui.http.connection import Patience
from webui.http.doors import Doors, Rules
from webui.http.gate import MOST, Gate
from webui.http.login import Login
from webui.http.server import Server, listen

HERE = "http://127.0.0.1:7861"
PLACES = {name: path + "/" for name, (path, _) in PAGES.items()} | {"reverse": "/"}


async def told(request: Request) -> Response:
    """Return what the application is told of a request."""
    headers = {name: value for name, value in request.headers.items() if "forwarded" in name or name.startswith("x-")}
    client = request.client.host if request.client else None
    return JSONResponse({"url": str(request.url), "root": request.scope["root_path"], "client": client, "headers": headers})


async def length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def ignoring(request: Request) -> Response:
    """Answer without a look at the body, as every error does."""
    return PlainTextResponse("seen")


async def ticking(request: Request) -> Response:
    async def ticks() -> Any:
        for number in range(8):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def lasting(request: Request) -> Response:
    """Streams until a test says that it is enough."""

    async def ticks() -> Any:
        while not request.app.state.enough:
            yield "data: \n\n"
            await asyncio.sleep(0.02)

    return StreamingResponse(ticks(), media_type="text/event-stream")


async def large(request: Request) -> Response:
    return Response(bytes(int(request.query_params["bytes"])), media_type="video/mp4")


async def broken(request: Request) -> Response:
    raise RuntimeError("of no use")


async def full(request: Request) -> Response:
    await request.body()
    raise OSError(errno.ENOSPC, "No space left on device")


async def reflecting(request: Request) -> Response:
    """Reflect the Origin as gradio's middleware does, so that any asking page may read the answer."""
    return PlainTextResponse("x", headers={"Access-Control-Allow-Origin": request.headers.get("origin", "*")})


def small_app() -> Starlette:
    routes = [
        Route("/", lambda request: HTMLResponse("<h1>page</h1>")),
        Route("/told", told),
        Route("/length", length, methods=["POST", "PUT", "DELETE"]),
        Route("/gradio_api/upload", length, methods=["POST"]),
        Route("/f1/gradio_api/upload", ignoring, methods=["POST"]),
        Route("/oneframe/gradio_api/upload", full, methods=["POST"]),
        Route("/ignoring", ignoring, methods=["GET", "POST"]),
        Route("/ticking", ticking),
        Route("/lasting", lasting),
        Route("/large", large),
        Route("/broken", broken),
        Route("/reflecting", reflecting, methods=["GET", "POST", "OPTIONS"]),
    ]
    app = Starlette(routes=routes)
    app.state.enough = False
    return app


def doors(login: Login | None = None, language: str = "en", **rules: Any) -> Doors:
    return Doors(small_app(), Rules(**rules), Translator(language), login, PLACES)


def client(base: str = HERE, peer: str = "127.0.0.1", login: Login | None = None, **rules) -> TestClient:
    return TestClient(doors(login, **rules), base, client=(peer, 50000), raise_server_exceptions=False)


@contextmanager
def served(app: Any, patience: Patience | None = None, most: int = MOST) -> Iterator[int]:
    """Run a server while the context is open, and yield its port."""
    with listen("127.0.0.1", 0) as listener:
        server = Server(app, Gate(most), patience=patience)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(LONG)


class Watched:
    """Pass requests on to an application, and note the header "number" of each."""

    def __init__(self, app: Any):
        self.app = app
        self.numbers: set[bytes | None] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.numbers.add(dict(scope.get("headers", ())).get(b"number"))
        await self.app(scope, receive, send)

    def has_seen(self, number: bytes) -> bool:
        return number in self.numbers


def connect(port: int, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), LONG)
    connection.sendall(said)
    return connection


def head(path: str = "/ignoring", method: str = "GET", **headers: Any) -> bytes:
    """Return the head of a request; names of headers have _ for -."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    lines += [] if "host" in headers else ["host: localhost"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def answer(connection: socket.socket) -> bytes:
    """Read until the server ends the connection or cuts it off, and return the bytes."""
    got = bytearray()
    with connection, suppress(ConnectionError):
        while part := connection.recv(65536):
            got += part
    return bytes(got)


Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def lines_to(app: Any, patience: Patience | None = None) -> Callable[[bytes], Awaitable[Line]]:
    """Return what connects to a server in the running event loop, which may be one of virtual time, and sends some bytes."""
    server = Server(app, Gate(MOST), patience=patience)
    server.config.load()

    def connection() -> Any:
        return server.config.http_protocol_class(config=server.config, server_state=server.server_state, app_state={})

    async def line(said: bytes) -> Line:
        here, there = socket.socketpair()
        for end in (here, there):
            end.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(connection, there)
        reader, writer = await asyncio.open_connection(sock=here)
        writer.write(said)
        return reader, writer

    return line


async def rest(line: Line) -> bytes:
    """Read until the server ends the connection or cuts it off, and return the bytes."""
    reader, writer = line
    got = bytearray()
    with suppress(ConnectionError):
        while part := await reader.read(65536):
            got += part
    writer.close()
    return bytes(got)


async def lasted(line: Line) -> float:
    """Return the seconds until the server ends the connection."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await rest(line)
    return loop.time() - began
