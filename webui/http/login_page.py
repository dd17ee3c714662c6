"""Serve the login page and the logout: plain HTML without gradio, the same for all pages of the program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from http import HTTPStatus
from string import Template
from urllib.parse import parse_qs, quote

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from locales import Translator
from webui import static_files
from webui.http.login import LONGEST_SESSION, Login

LOGIN, LOGOUT = "/login", "/logout"
# The most bytes of a form with a name and a password.
FORM_BYTES = 16 << 10


class LoginPage:
    """Answer requests to `LOGIN` and `LOGOUT`, and find the user of a request by its cookies.

    root: the path at which a proxy serves the program. pages: the paths to which a browser may go after the login.
    """

    def __init__(self, login: Login | None, t: Translator, root: str, pages: frozenset[str]):
        self.login, self.t, self.root, self.pages = login, t, root, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the form, check what it sends, or end the session."""
        request = Request(scope, receive)
        login, leaving = self.login, request.url.path == self.root + LOGOUT
        # Only a POST ends a session: any site's page could link to this address.
        if login is None or (leaving and request.method != "POST"):
            response: Response = RedirectResponse(f"{self.root}/", HTTPStatus.SEE_OTHER)
        elif leaving:
            response = self._leave(login, request)
        elif request.method == "POST":
            response = await self._enter(login, request)
        else:
            response = self._form(request)
        # The answer depends on the cookie, so it must not be cached.
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    def user(self, headers: Headers, scope: Scope) -> str | None:
        """Return the user whose session a request's cookies name; None without a session or where no login is required."""
        return self.login and self.login.user(_cookies(headers).get(_name("session", scope), ""))

    async def _enter(self, login: Login, request: Request) -> Response:
        form = {key: values[0] for key, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
        address = request.client.host if request.client else ""
        known = request.cookies.get(_name("known", request.scope), "")
        answer = await login.enter(form.get("username", "").strip(), form.get("password", ""), address, known)
        if answer.wait:
            seconds = math.ceil(answer.wait)
            response = self._form(request, HTTPStatus.TOO_MANY_REQUESTS, self.t("page.login.wait", seconds=seconds))
            response.headers["retry-after"] = str(seconds)
            return response
        if not answer.token:
            return self._form(request, HTTPStatus.UNAUTHORIZED, self.t("page.login.wrong"))
        response = RedirectResponse(self.root + self._next(request), HTTPStatus.SEE_OTHER)
        if not _is_browser(request):
            response = JSONResponse({"success": True})
        for name, token in (("session", answer.token), ("known", answer.known)):
            self._keep(response, request, name, token)
        return response

    def _leave(self, login: Login, request: Request) -> Response:
        login.leave(request.cookies.get(_name("session", request.scope), ""))
        response = RedirectResponse(self.root + LOGIN, HTTPStatus.SEE_OTHER)
        response.delete_cookie(_name("session", request.scope), path=self.root or "/")
        return response

    def _keep(self, response: Response, request: Request, name: str, token: str) -> None:
        response.set_cookie(
            _name(name, request.scope),
            token,
            max_age=int(LONGEST_SESSION),
            path=self.root or "/",
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )

    def _form(self, request: Request, status: int = HTTPStatus.OK, said: str = "") -> Response:
        if said and not _is_browser(request):
            return JSONResponse({"detail": said, "error": said}, status)
        words: Mapping[str, str] = {
            "language": self.t.language,
            "action": f"{self.root}{LOGIN}?next={quote(self._next(request))}",
            "said": said,
            "user": self.t("page.login.user"),
            "password": self.t("page.login.password"),
            "enter": self.t("page.login.enter"),
        }
        page = Template(static_files.text("login.html"))
        return HTMLResponse(page.substitute({key: escape(text) for key, text in words.items()}), status)

    def _next(self, request: Request) -> str:
        """Return the path of the page to go to after the login: the one asked for if it is one of `pages`, else "/"."""
        asked = request.query_params.get("next", "/").rstrip("/") + "/"
        return asked if asked in self.pages else "/"


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _cookies(headers: Headers) -> dict[str, str]:
    return cookie_parser(headers.get("cookie", ""))


def _name(what: str, scope: Scope) -> str:
    """Return a cookie's name, with the port: browsers keep cookies by host, and another port may have another program."""
    return f"eichi-{what}-{(scope.get('server') or ('', 0))[1]}"
