"""Test who may call the server: host names, other sites' pages, proxies, closed routes, and headers of every answer."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from urllib.parse import quote

import gradio
import pytest
from starlette.testclient import TestClient

from tests.webui.doorstep import HERE, answer, client, connect, doors, head, served, small_app
from webui.app import Site
from webui.http.login import Login


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("LOCALHOST:7861", True),
        ("localhost.", True),
        ("127.0.0.1:7861", True),
        ("127.8.9.10", True),
        ("[::1]:7861", True),
        ("[::ffff:127.0.0.1]", True),
        ("rebound.example", False),
        ("rebound.example:7861", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("192.168.1.5", False),
        ("0.0.0.0:7861", False),
        ("", False),
        ("localhost/x", False),
        ("me@localhost", False),
        ("localhost, rebound.example", False),
        ("127.0.0.1:port", False),
    ],
)
def test_names_on_loopback(host: str, answered: bool) -> None:
    """Every Host was served: a page whose name its owner lets mean 127.0.0.1 was of our origin, and could do everything."""
    got = client().get("/told", headers={"host": host})
    assert got.status_code == (200 if answered else 403)
    if not answered:
        assert "--allow-host" in got.json()["error"] and host in got.json()["error"]


@pytest.mark.parametrize("server", ["0.0.0.0", "::", "192.168.1.5", "my-pc.lan"])
def test_names_where_others_reach_us(server: str) -> None:
    """An address in numbers is no one's page; names have to be known, the one that is listened at among them."""

    def status(host: str, **rules) -> int:
        return client(server=server, **rules).get("/told", headers={"host": host}).status_code

    assert status("192.168.1.5:7861") == status("[fe80::1]:7861") == status("localhost") == 200
    assert status("my-pc.lan") == (200 if server == "my-pc.lan" else 403)
    assert status("my-pc.lan", names=("my-pc.lan",)) == status("My-PC.lan.:80", names=("my-pc.lan",)) == 200
    assert status("rebound.example") == status("rebound.example", names=("my-pc.lan",)) == 403


def test_a_host_is_named_once() -> None:
    """Two Host headers are refused, because two programs read them differently; so is a request before HTTP/1.1 without one."""
    with served(doors()) as port:
        two = connect(port, b"GET /told HTTP/1.0\r\nhost: localhost\r\nhost: rebound.example\r\n\r\n")
        none = connect(port, b"GET /told HTTP/1.0\r\n\r\n")
        assert b" 200 " not in answer(two) and b" 403 " in answer(none)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET", "OPTIONS"])
@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"origin": HERE}, True),
        ({"origin": HERE, "sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://127.0.0.1:3000"}, False),
        ({"origin": "https://elsewhere.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://[broken"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": HERE, "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://elsewhere.example", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_other_sites_pages(method: str, headers: dict, own: bool) -> None:
    """Any site that a user visited could start films and delete presets; localhost:3000 is another site too."""
    got = client().request(method, "/length" if method != "GET" else "/told", headers=headers)
    assert (got.status_code != 403) is own
    assert not [name for name in got.headers if name.startswith("access-control-")]


def test_an_origin_is_named_once() -> None:
    """A request with two Origin headers is refused: only the first was looked at, and the next program may believe the
    other."""
    assert client().post("/length", headers=[("origin", HERE)]).status_code == 200
    for origins in ([HERE, "http://evil.example"], ["http://evil.example", HERE], [HERE, HERE]):
        assert client().post("/length", headers=[("origin", origin) for origin in origins]).status_code == 403


def test_a_link_from_elsewhere_shows_a_page() -> None:
    """A link is no danger, and a form or a picture's address is no link."""
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    visitor = client()
    assert visitor.get("/", headers=link).status_code == 200
    assert visitor.post("/length", headers=link).status_code == 403
    assert visitor.post("/logout", headers=link).status_code == 403
    assert visitor.get("/", headers=link | {"sec-fetch-dest": "iframe"}).status_code == 403
    assert visitor.get("/told", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403


def test_no_answer_may_be_read_by_others() -> None:
    """Gradio told every origin that it may read the answer, where the host was no local one; to preflights too."""
    for method in ("GET", "POST", "OPTIONS"):
        got = client().request(method, "/reflecting", headers={"origin": HERE})
        assert got.status_code == 200 and "access-control-allow-origin" not in got.headers


def test_every_answer_has_the_headers() -> None:
    """Pages, refusals and errors all have headers against guessed types, foreign frames and leaked addresses."""
    visitor = client()
    answers = [visitor.get(path) for path in ("/", "/nothing", "/broken", "/gradio_api/vibe-code")]
    answers += [visitor.get("/", headers={"host": "x"}), client(login=Login({"me": "secret"})).get("/login")]
    assert [got.status_code for got in answers] == [200, 404, 500, 404, 403, 200]
    for got in answers:
        assert got.headers["x-content-type-options"] == "nosniff" and got.headers["referrer-policy"] == "same-origin"
        policy = got.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "default-src 'self'" in policy and "http" not in policy


def test_what_browsers_would_complain_of() -> None:
    """Each page logged that a header was ignored, over plain HTTP from elsewhere; with a login, that a manifest was refused."""
    name = "cross-origin-opener-policy"
    assert name in client().get("/").headers and name in client("http://localhost:7861").get("/").headers
    assert name in client("http://[::1]:7861").get("/").headers
    assert name not in client("http://192.168.1.5:7861", server="0.0.0.0").get("/").headers
    secure = {"x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.9"}
    behind = client("http://films.example", names=("films.example",), proxies=("127.0.0.1",))
    assert name in behind.get("/", headers=secure).headers and name not in behind.get("/").headers
    got = client(login=Login({"me": "secret"})).get("/manifest.json")
    assert got.status_code == 200 and got.headers["content-type"] == "application/manifest+json"


def proxied(**headers: str) -> dict:
    """Return what the application sees of a request from a proxy at 10.0.0.2, and of one from elsewhere."""
    rules = {"names": ("films.example",), "proxies": ("10.0.0.0/24",), "root": "/eichi"}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        peer: client(f"http://{sent.pop('host', 'films.example')}", peer, **rules).get("/told", headers=sent).json()
        for peer in ("10.0.0.2", "10.0.1.2")
    }


def test_only_named_proxies_are_believed() -> None:
    """Gradio took its own address from X-Forwarded-Host and X-Gradio-Server of anybody; uvicorn believed all of 127.0.0.1."""
    told = proxied(
        x_forwarded_for="6.6.6.6, 203.0.113.7",
        x_forwarded_proto="https",
        x_forwarded_host="films.example",
        x_gradio_server="http://evil.example",
        forwarded="host=evil.example",
    )
    assert told["10.0.0.2"]["url"] == "https://films.example/eichi/told" and told["10.0.0.2"]["client"] == "203.0.113.7"
    assert told["10.0.1.2"]["url"] == "http://films.example/eichi/told" and told["10.0.1.2"]["client"] == "10.0.1.2"
    for one in told.values():
        assert one["headers"] == {} and one["root"] == "/eichi"


def test_a_proxy_may_cut_its_path_off_or_not() -> None:
    """nginx does either, by a slash in its configuration."""
    visitor = client(root="/eichi")
    for path in ("/told", "/eichi/told"):
        assert visitor.get(path).json()["url"] == f"{HERE}/eichi/told"
    assert visitor.get("/eichi", follow_redirects=False).headers["location"] == "/eichi/"
    assert visitor.get("/eichi/").text == "<h1>page</h1>" and visitor.get("/eichitold").status_code == 404


def test_a_proxy_that_says_nothing_of_the_name() -> None:
    """Behind a proxy that sends our address as Host, the Origin is the name that the browser knows: it counts if it was
    given for a proxy."""
    rules = {"names": ("films.example",), "proxies": ("127.0.0.1",)}
    for origin, peer, status in (
        ("https://films.example", "127.0.0.1", 200),
        ("https://films.example", "127.0.0.2", 403),
        ("https://films.example:9000", "127.0.0.1", 403),
        ("https://evil.example", "127.0.0.1", 403),
    ):
        assert client(peer=peer, **rules).post("/length", headers={"origin": origin}).status_code == status
    forwarded = {"x-forwarded-host": "evil.example", "origin": "http://evil.example"}
    assert client(peer="127.0.0.1", **rules).post("/length", headers=forwarded).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://x.hf.space/",
        "/gradio_api/file=https://elsewhere.example/x.png",
        "/gradio_api/file/HTTP://elsewhere.example/x.png",
        "/gradio_api/vibe-code",
        "/gradio_api/stream/1/2/3/playlist.m3u8",
        "/gradio_api/component_server",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/custom_component/a/client/b/c",
        "/gradio_api/runs",
        "/gradio_api/heartbeat/x",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/call/look/1",
        "/monitoring/summary",
        "/monitoring",
    ],
)
@pytest.mark.parametrize("page", ["", "/f1"])
def test_what_no_page_uses_is_closed(page: str, path: str) -> None:
    """Gradio fetches addresses for others, writes files and prints for whoever asks; nothing here needs it."""
    got = client().get(page + quote(path, safe="/:=?"))
    assert got.status_code == 404 and "error" in got.json()


@pytest.mark.parametrize(
    "path", ["/gradio_api/file=C:/films/x.mp4", "/gradio_api/file=/films/a:b.mp4", "/gradio_api/run/predict"]
)
def test_what_pages_use_is_open(path: str) -> None:
    """The doors let through what pages use: the small application answers in its own words that it has none of it."""
    assert client().get(path).text == "Not Found"


@pytest.mark.parametrize("page", ["", "/f1"])
def test_addresses_have_an_end(page: str) -> None:
    """A name of 5000 letters was an error of the system's, deep in gradio: 500, and kilobytes of the log for each."""
    visitor = client()

    def status(path: str) -> int:
        got = visitor.get(f"{page}{path}")
        assert got.status_code in (200, 404) or "error" in got.json()
        return got.status_code

    assert [status(f"/static/{'a' * size}") for size in (255, 256, 1015, 1016, 60_000)] == [404, 404, 404, 414, 414]
    assert visitor.get(f"{page}/static/{'a' * 255}").text == "Not Found"
    assert "nothing here" in visitor.get(f"{page}/static/{quote('あ' * 86)}").json()["error"]
    assert [status(f"/told?{'a' * size}") for size in (2048, 2049)] == [404 if page else 200, 414]
    # A picture of the user's may lie deep, and be called by three bytes a letter.
    assert visitor.get(f"{page}/gradio_api/file=/{quote('あ' * 1300)}").text == "Not Found"
    assert status(f"/gradio_api/file=/{'a' * 4096}") == 414


def test_the_way_to_the_login_is_short() -> None:
    """The address of the login repeated the requested one in three signs for each byte. It leads back to pages alone: back
    to a file led nowhere."""
    visitor = client(login=Login({"me": "secret"}))
    for path, back in (("/f1", "?next=/f1"), (f"/gradio_api/file=/{quote('あ' * 1300)}", ""), ("/config", "")):
        got = visitor.get(path, headers={"accept": "text/html"}, follow_redirects=False)
        assert got.status_code == 303 and got.headers["location"] == f"/login{back}"


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/f1/gradio_api/upload", "/f1/gradio_api/upload/", "/gradio_api/upload_progress"]
)
def test_uploads_are_called_by_short_words(path: str) -> None:
    """Gradio keeps each name that it was asked for: 60 kB of each request stayed for ever."""
    for name in ("x" * 65, "x" * 60_000, "", "a b", "%F0%9F%98%80", "x/y", "good&upload_id=a+b", "x%00"):
        got = client().request("POST" if path.endswith(("upload", "/")) else "GET", f"{path}?upload_id={name}")
        assert got.status_code in (400, 414) and "error" in got.json()
    for name in ("upload_id=gk2j4l5h6j", "upload_id=x-1_Y", "", "upload=a+b"):
        got = client().request("POST" if path.endswith(("upload", "/")) else "GET", f"{path}?{name}")
        assert got.status_code in (200, 404) and "error" not in got.text


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_length_is_said_once(method: str) -> None:
    """A body with Content-Length and Transfer-Encoding was read in chunks and the connection went on, so that a proxy's body
    became a request here."""
    said = head("/length", method, content_length=5, transfer_encoding="chunked") + b"0\r\n\r\n" + head("/told")
    with served(doors()) as port:
        got = answer(connect(port, said))
        assert got.startswith(b"HTTP/1.1 400 ") and b"connection: close" in got.lower() and got.count(b"HTTP/1.1") == 1
        assert b"Transfer-Encoding" in got


def test_files_are_saved_and_never_run(serve) -> None:
    """An output folder's .html and .svg were shown as pages of ours: whatever lay there could do what its reader can.

    Now what runs in a browser is not served, and what is no medium is saved.
    """
    site = serve()
    site.engine.outputs.mkdir()
    kinds = {
        "film.mp4": ("inline", "video/mp4"),
        "picture.png": ("inline", "image/png"),
        "picture.webp": ("inline", "image/webp"),
        "page.html": (None, None),
        "page.xhtml": (None, None),
        "picture.svg": (None, None),
        "data.json": ("attachment", None),
        "text.txt": ("attachment", None),
        "film.safetensors": ("attachment", None),
        "nothing": ("attachment", None),
    }
    for name, (shown, kind) in kinds.items():
        (site.engine.outputs / name).write_bytes(b"<script>alert(1)</script>" * 10)
        for bounds in (None, "bytes=2-9"):
            headers = {"Range": bounds, "Cookie": "eichi-session-1=secret"} if bounds else {}
            request = urllib.request.Request(f"{site.url}/gradio_api/file={site.engine.outputs / name}", headers=headers)
            if shown is None:
                with pytest.raises(urllib.error.HTTPError, match="403"):
                    urllib.request.urlopen(request)
                continue
            with urllib.request.urlopen(request) as got:
                assert got.headers["Content-Disposition"].startswith(shown), name
                assert kind is None or got.headers["Content-Type"] == kind
                policy = got.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy and ("sandbox" in policy) is (shown == "attachment")
                assert "secret" not in str(got.headers) and got.headers["X-Content-Type-Options"] == "nosniff"
                assert got.status == (206 if bounds else 200)


def test_ranges(serve) -> None:
    """Two ranges at once were an error inside, with a traceback; what is no single range is answered with the whole."""
    site = serve()
    site.engine.outputs.mkdir()
    film = site.engine.outputs / "film.mp4"
    film.write_bytes(bytes(range(100)))
    whole = film.read_bytes()
    many = ",".join(f"{at}-{at}" for at in range(2000))
    odd = ["bytes=0-0,2-2", f"bytes={many}", "bytes=\xb2-\xb3", f"bytes={'9' * 5000}-", "bytes=0-0-0", "bytes=9-2", "lines=1-2"]
    single = {"bytes=5-": whole[5:], "bytes=-5": whole[-5:], "bytes=0-4": whole[:5], "bytes=7-": whole[7:]}
    for bounds, expected in {**dict.fromkeys(odd, whole), **single}.items():
        request = urllib.request.Request(f"{site.url}/gradio_api/file={film}", headers={"Range": bounds})
        with urllib.request.urlopen(request) as got:
            assert (got.status, got.read()) == (206 if bounds in single else 200, expected), bounds[:50]


def paths(app, front: str = "") -> list[tuple[str, str]]:
    """Return (method, path) of every route of an application and of those mounted in it."""
    found = []
    for route in app.routes:
        inner = getattr(route, "app", None)
        if isinstance(inner, gradio.routes.App):
            found += paths(inner, front + route.path)
        elif hasattr(route, "original_router"):
            found += paths(route.original_router, front)
        elif hasattr(route, "path"):
            path = front + re.sub(r"\{[^}]*\}", "1", route.path)
            found += [(method, path) for method in getattr(route, "methods", None) or ()]
    return found


def test_every_route_asks_for_the_login(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's own login left many routes open: cancelling, streams, heartbeats, tokens, static files."""
    built, real = [], Site.build_middleware_stack
    monkeypatch.setattr(Site, "build_middleware_stack", lambda site: built.append(site) or real(site))
    site = serve(auth=("me", "secret"))
    routes = paths(built[0])
    assert len(routes) > 150 and ("POST", "/f1/gradio_api/cancel") in routes and ("POST", "/gradio_api/upload") in routes
    assert ("GET", "/pulse/1") in routes
    for method, path in routes:
        # A browser asks for the second without its cookies.
        if path.rstrip("/") in ("/login", "/manifest.json"):
            continue
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(site.url + path, method=method))
        assert refused.value.code == 401, (method, path)


def test_the_small_application_is_open_without_doors() -> None:
    """Without the doors the small application answers everything; otherwise the tests above could pass without testing the
    doors."""
    bare = TestClient(small_app(), HERE, raise_server_exceptions=False)
    evil = {"host": "rebound.example", "origin": "http://evil.example"}
    assert bare.post("/length", headers=evil, content=b"x" * 9_000_000).text == "9000000"
    assert bare.get("/reflecting", headers=evil).headers["access-control-allow-origin"] == "http://evil.example"
