"""Check every request before a page or a route of gradio's sees it, and set the headers of every answer.

In order: headers of proxies, the Host header, the Origin of the asking page, the login, the size of the body.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from eichi_utils.problems import UserError
from eichi_utils.user_data.passing import need_room
from locales import Translator
from webui.forms.words import problem_sentence
from webui.gradio_compat import replace_parts, upload_folder
from webui.http.addresses import FILE, UPLOAD, fault, is_range, place_of
from webui.http.answer_headers import outgoing
from webui.http.connection import LET_IN
from webui.http.json_body import Values
from webui.http.login import Login
from webui.http.login_page import FORM_BYTES, LOGIN, LOGOUT, LoginPage
from webui.http.server import is_loopback

# The most bytes of a request other than an upload: a form with a hundred sections of long Japanese prompts has 1.5 million.
BODY_BYTES = 2 << 20
# The most bytes of all such requests at the same time.
HELD_BYTES = 32 << 20
# Bytes that an upload's multipart lines may add to its files.
FRAME_BYTES = 1 << 20
# Seconds to wait for a body, plus one second for each BODY_RATE bytes that came. Only waiting counts, not the server's work.
BODY_SECONDS, BODY_RATE = 30.0, 2048
# The same for a login's body, whose sender is unknown: one packet, which a bad connection has sent three times by then.
LOGIN_SECONDS = 8.0
# Seconds to read and discard the rest of a refused body, so that the client reads the answer before the connection closes.
DRAIN_SECONDS = 2.0
# The same for an upload that is too large, whose sender was let in, as long as bytes keep coming.
LARGE_DRAIN_SECONDS = 30.0

HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")
# Headers that a proxy adds to a request it forwards. Gradio trusts all of them, whoever sent them.
SAID_BY_PROXIES = re.compile(rb"forwarded|x-forwarded-.*|x-real-ip|x-gradio-server")
# Browsers ask for it without their cookies, so it needs no login. It reveals nothing that the login page does not.
MANIFEST = "/manifest.json"

logger = logging.getLogger(__name__)


class Cut(HTTPException, MultiPartException):
    """Report a request body that is not read to its end.

    It is a MultiPartException too, so that gradio's parser of uploads deletes the parts that it has stored.
    """

    def __init__(self, status: int, message: str):
        super().__init__(status, message)
        # Gradio recognises a file that is too large by these words.
        self.message = f"{message} (maximum allowed size)" if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else message


@dataclass(frozen=True)
class Rules:
    """Hold what the doors let in.

    server: the address that is listened at. names: further host names by which it may be called. proxies: addresses or
    networks of trusted proxies. root: the path at which a proxy serves the program, "" or "/eichi". upload_bytes: the most
    bytes of one upload.
    """

    server: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    root: str = ""
    upload_bytes: int = 512 << 20

    def is_called(self, name: str) -> bool:
        """Tell whether a request's Host header may have this name.

        DNS rebinding: a foreign page reaches this server by a name of its own that it points at this address. So host names
        have to be known, while a numeric address belongs to no foreign page; a server at a loopback address takes only
        loopback addresses.
        """
        name = name.lower().rstrip(".")
        if name in (*self.names, "localhost", self.server.lower()):
            return True
        try:
            ip = ipaddress.ip_address(name)
        except ValueError:
            return False
        return not is_loopback(self.server) or (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


class Doors:
    """Pass to `app` the requests that may come in, and answer the others.

    login: None where no login is required. t: the language of the sentences. pages: mode -> path of its page, without `root`.
    """

    def __init__(self, app: ASGIApp, rules: Rules, t: Translator, login: Login | None, pages: Mapping[str, str]):
        self.app, self.rules, self.t = app, rules, t
        self.login = login
        self.pages = frozenset(pages.values())
        self.page = LoginPage(login, t, rules.root, self.pages)
        # Bytes of the bodies of requests that are not answered yet.
        self.held = 0
        replace_parts()
        # Any: uvicorn's own ASGI types differ from starlette's.
        proxied: Any = ProxyHeadersMiddleware
        self._proxied = proxied(self._open, list(rules.proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have `app` answer it; there are no websockets here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._proxied(self._without_hearsay(scope), receive, send)

    def _without_hearsay(self, scope: Scope) -> Scope:
        """Return the request's scope without forwarding headers, except those set by a trusted proxy."""
        client = (scope.get("client") or ("",))[0]
        headers = list(scope["headers"])
        if client in self._proxied.trusted_hosts:
            told = Headers(raw=headers).get("x-forwarded-host", "").split(",")[0].strip()
            if told:
                headers = [(key, told.encode("latin-1") if key == b"host" else value) for key, value in headers]
            kept = {b"x-forwarded-for", b"x-forwarded-proto"}
        else:
            kept = set()
        headers = [(key, value) for key, value in headers if key in kept or not SAID_BY_PROXIES.fullmatch(key)]
        return {**scope, "headers": headers, "root_path": self.rules.root, "peer": client}

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"] = [pair for pair in scope["headers"] if not SAID_BY_PROXIES.fullmatch(pair[0])]
        root, path = self.rules.root, scope["path"]
        # A proxy may or may not have removed its own path.
        if root and not f"{path}/".startswith(f"{root}/"):
            scope["path"] = root + path
            scope["raw_path"] = root.encode() + scope.get("raw_path", path.encode())
        visit = _Visit(self, scope, receive, send)
        try:
            await self._pass(visit)
        finally:
            self.held -= visit.held

    async def _pass(self, visit: _Visit) -> None:
        scope = visit.scope
        if "range" in visit.headers and not is_range(", ".join(visit.headers.getlist("range"))):
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        refusal = self._refusal(scope, visit.headers, visit.local)
        if refusal is not None:
            await visit.refuse(refusal)
            return
        try:
            await visit.take_empty_body()
            if visit.local in (LOGIN, LOGOUT):
                await self.page(scope, visit.receive, visit.send)
                return
        except Cut as cut:
            await visit.refuse(self._say(visit.headers, cut.status_code, cut.detail))
            return
        if self.is_upload(visit.local):
            await self._upload(visit)
        else:
            await self.app(scope, visit.receive, visit.send)

    async def _upload(self, visit: _Visit) -> None:
        """Pass an upload to the application; answer with a sentence if it cannot be stored, as on a full disk."""
        try:
            need_room(upload_folder())
            await self.app(visit.scope, visit.receive, visit.send_unless_broken)
        except UserError as error:
            sentence = problem_sentence(self.t, error.problems[0])
        except OSError as error:
            sentence = self.t("page.door.kept", reason=error.strerror or str(error))
        else:
            return
        logger.warning("an upload could not be kept: %s", sentence)
        await visit.refuse(self._say(visit.headers, HTTPStatus.INSUFFICIENT_STORAGE, sentence))

    def _refusal(self, scope: Scope, headers: Headers, local: str) -> Response | None:
        """Return the answer to a request that is refused or redirected, None if it may come in. local: path without `root`."""
        hosts = [HOST.fullmatch(host) for host in headers.getlist("host")]
        if len(hosts) != 1 or not hosts[0] or not self.rules.is_called(hosts[0]["six"] or hosts[0]["name"]):
            host = ", ".join(headers.getlist("host"))[:100]
            return self._say(headers, HTTPStatus.FORBIDDEN, self.t("page.door.host", host=host))
        wrong = fault(self.inner(local), scope["query_string"], headers)
        # Which routes exist is not revealed before the login.
        if wrong and wrong[0] != HTTPStatus.NOT_FOUND:
            return self._say(headers, wrong[0], self.t(f"page.door.{wrong[1]}"))
        if not self._is_own(scope, headers):
            return self._say(headers, HTTPStatus.FORBIDDEN, self.t("page.door.origin"))
        if local == MANIFEST and scope["method"] == "GET":
            return JSONResponse({"name": "FramePack-eichi", "display": "browser"}, media_type="application/manifest+json")
        if self.login and local != LOGIN and self.page.user(headers, scope) is None:
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                back = f"?next={quote(local)}" if f"{local.rstrip('/')}/" in self.pages else ""
                return RedirectResponse(f"{self.rules.root}{LOGIN}{back}", HTTPStatus.SEE_OTHER)
            return self._say(headers, HTTPStatus.UNAUTHORIZED, self.t("page.door.login"))
        if LET_IN in scope and not (self.login and local == LOGIN):
            scope[LET_IN](known=self.login is not None)
        if scope["path"] == self.rules.root:
            return RedirectResponse(f"{self.rules.root}/")
        if wrong:
            return self._say(headers, wrong[0], self.t(f"page.door.{wrong[1]}"))
        if int(headers.get("content-length", 0)) > (most := self.most(scope["method"], local)):
            return self._say(headers, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.too_large(most))
        return None

    def _is_own(self, scope: Scope, headers: Headers) -> bool:
        """Tell whether the request does not come from another site's page (by Origin and Sec-Fetch-Site).

        From other sites only links (a GET that opens a document) are allowed, because they change nothing. Clients that are
        no browser send neither header.
        """
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "none")
        if len(origins) > 1 or not all(self._is_origin(origin, scope, headers) for origin in origins):
            return False
        if site in ("same-origin", "none"):
            return True
        link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return link and scope["method"] == "GET"

    def _is_origin(self, origin: str, scope: Scope, headers: Headers) -> bool:
        place = place_of(origin)
        if place == place_of(f"http://{headers['host']}"):
            return True
        # The proxy does not forward its host name; then only the names given on the command line count.
        return scope["peer"] in self._proxied.trusted_hosts and place in [(name, None) for name in self.rules.names]

    def inner(self, local: str) -> str:
        """Return a path below its page's own path: "/f1/gradio_api/upload" becomes "/gradio_api/upload"."""
        for page in self.pages - {"/"}:
            if local.startswith(page):
                return local[len(page) - 1 :]
        return local

    def most(self, method: str, local: str) -> int:
        """Return the most bytes that the body of a request may have."""
        if method in ("GET", "HEAD"):
            return 0
        if local == LOGIN:
            return FORM_BYTES
        return self.rules.upload_bytes + FRAME_BYTES if self.is_upload(local) else BODY_BYTES

    def is_upload(self, local: str) -> bool:
        """Tell whether a path is that of gradio's uploads."""
        return self.inner(local).rstrip("/") == UPLOAD

    def too_large(self, most: int) -> str:
        """Return the sentence for a body of more than `most` bytes."""
        if most < self.rules.upload_bytes:
            return self.t("page.door.body")
        return self.t("page.door.upload", most=self.rules.upload_bytes >> 20)

    def _say(self, headers: Headers, status: int, sentence: str) -> Response:
        if "text/html" in headers.get("accept", ""):
            return PlainTextResponse(sentence, status)
        # Gradio's pages show what stands at "error".
        return JSONResponse({"detail": sentence, "error": sentence}, status)


class _Visit:
    """Read one request's body under limits of size and time, and send its answer with the security headers."""

    def __init__(self, doors: Doors, scope: Scope, receive: Receive, send: Send):
        self.doors, self.scope = doors, scope
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        self.local = scope["path"][len(doors.rules.root) :] or "/"
        self.most = doors.most(scope["method"], self.local)
        # The body of anything but an upload is in memory until the answer is complete, so its JSON values are counted.
        self.values = None if doors.is_upload(self.local) else Values()
        self.held = 0
        self._all_read = int(self.headers.get("content-length", 0)) == 0 and "transfer-encoding" not in self.headers
        self._bytes, self._waited, self._begun, self._refused = 0, 0.0, False, False
        self._drain_seconds = DRAIN_SECONDS
        # A message that was received before the application asked for it.
        self._taken: Message | None = None

    async def take_empty_body(self) -> None:
        """Read the empty body of a request that may have none, such as a GET that a proxy sends in chunks. Raises Cut.

        Closing a connection with unread bytes would cut the answer off.
        """
        if self.most == 0:
            while not self._all_read:
                self._taken = await self.receive()

    async def receive(self) -> Message:
        if self._taken:
            taken, self._taken = self._taken, None
            return taken
        if self._all_read:
            return await self._receive()
        if self._begun:
            return await self._rest()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            patience = LOGIN_SECONDS if self.local == LOGIN else BODY_SECONDS
            left = patience + self._bytes / BODY_RATE - self._waited
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            if self._begun:
                return await self._rest()
            raise Cut(HTTPStatus.REQUEST_TIMEOUT, self.doors.t("page.door.slow")) from None
        self._waited += loop.time() - began
        if message["type"] == "http.disconnect":
            # The answer has begun meanwhile, so the application did not need the body.
            if self._begun:
                return message
            raise Cut(HTTPStatus.BAD_REQUEST, "disconnected")
        self._all_read = not message.get("more_body", False)
        self._bytes += len(message.get("body", b""))
        if self._bytes > self.most:
            raise Cut(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.doors.too_large(self.most))
        if self.values:
            self._hold(self.values, message.get("body", b""))
        return message

    def _hold(self, values: Values, body: bytes) -> None:
        if values.are_too_many(body):
            raise Cut(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self.doors.t("page.door.body"))
        self.held += len(body)
        self.doors.held += len(body)
        if self.doors.held > HELD_BYTES:
            raise Cut(HTTPStatus.SERVICE_UNAVAILABLE, self.doors.t("page.door.busy"))

    async def _rest(self) -> Message:
        """Return the next message of a body that the application answered without; a disconnect if it is too large."""
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._all_read = not message.get("more_body", False)
        return message if self._bytes <= self.most else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            of_file = not self._refused and FILE.match(self.doors.inner(self.local)) is not None
            headers = outgoing(message.get("headers", ()), of_file, self._is_trusted())
            if not self._all_read:
                # Otherwise the rest of the body would keep the connection open for as long as it comes.
                headers["connection"] = "close"
            message = {**message, "headers": headers.raw}
        elif not self._all_read and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _is_trusted(self) -> bool:
        """Tell whether browsers take the address for a trustworthy origin: https or loopback."""
        host = HOST.fullmatch(self.headers.get("host", ""))
        return self.scope["scheme"] == "https" or (host is not None and is_loopback(host["six"] or host["name"].lower()))

    async def send_unless_broken(self, message: Message) -> None:
        """Send a message, except an answer with status 500: the caller of the application handles the error itself."""
        begins_well = message["type"] == "http.response.start" and message["status"] != HTTPStatus.INTERNAL_SERVER_ERROR
        if self._begun or begins_well:
            await self.send(message)

    async def refuse(self, response: Response) -> None:
        """Send an answer without reading the rest of the request's body."""
        self._refused = True
        if response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and self.doors.is_upload(self.local):
            self._drain_seconds = LARGE_DRAIN_SECONDS
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        body = b"" if self.scope["method"] == "HEAD" else response.body
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _drain(self) -> None:
        """Discard the rest of the body for a limited time: many clients send all of it before they read the answer."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_on(), self._drain_seconds)

    async def _read_on(self) -> None:
        """Read the body to its end. Raises TimeoutError when nothing comes for DRAIN_SECONDS."""
        while not self._all_read:
            message = await asyncio.wait_for(self._receive(), DRAIN_SECONDS)
            self._all_read = not message.get("more_body", False)
