"""Test flags, ports, paths and login of the server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode

import pytest

import webui
from eichi_utils.files.paths import MINIATURE
from eichi_utils.models.catalogue import Models
from webui.app import address, listen, read_flags
from webui.http.doors import Rules
from webui.http.server import is_loopback

pytestmark = pytest.mark.slow

WEBUI = Path(webui.__file__).parent


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")


@pytest.mark.parametrize("server", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_others_reach_needs_a_login(server, capsys):
    with pytest.raises(SystemExit) as left:
        read_flags(["--server", server])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert server in said and "--auth USER:PASSWORD" in said
    assert read_flags(["--server", server, "--auth", "me:secret"]).auth == ("me", "secret")


@pytest.mark.parametrize("auth", ["me", ":secret", "me:", ":"])
def test_a_login_has_name_and_password(auth, capsys):
    with pytest.raises(SystemExit) as left:
        read_flags(["--auth", auth])
    assert left.value.code == 2
    assert "USER:PASSWORD" in capsys.readouterr().err


def test_a_password_may_contain_colons():
    assert read_flags(["--auth", "me:a:b"]).auth == ("me", "a:b")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("flag", ["--out", "--allow-folder"])
@pytest.mark.parametrize("folder", ["loop", "loop/x", "/".join("d" * 2000)])
def test_folders_that_lead_nowhere_are_told_by_their_flag(flag, folder, tmp_path, monkeypatch, capsys):
    """A circle of links ended the start in a traceback, and a folder of 2,000 levels the first film."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(SystemExit) as left:
        read_flags([flag, folder])
    assert left.value.code == 2
    assert f"error: {flag}: " in capsys.readouterr().err


def test_defaults():
    options = read_flags([])
    assert (options.server, options.port, options.lang, options.plain) == ("127.0.0.1", 7861, "en", False)
    assert read_flags(["--lang", "ru"]).t.language == "ru"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--allow-host", "http://my-pc"), "--allow-host takes a name without http://"),
        (("--allow-host", "my-pc:7861"), "--allow-host"),
        (("--allow-host", "*"), "--allow-host"),
        (("--allow-host", "*.example.org"), "--allow-host"),
        (("--allow-host", ""), "--allow-host"),
        (("--allow-host", "a..b"), "--allow-host"),
        (("--allow-host", "x" * 300), "--allow-host"),
        (("--root-path", "eichi"), "--root-path takes a path such as /eichi"),
        (("--root-path", "//evil.example"), "--root-path"),
        (("--root-path", "/a/../b"), "--root-path"),
        (("--root-path", "/a b"), "--root-path"),
        (("--root-path", "/<script>"), "--root-path"),
        (("--root-path", "http://films.example/eichi"), "--root-path"),
        (("--trust-proxy", "my-proxy"), "--trust-proxy takes an address or a network in numbers"),
        (("--trust-proxy", "*"), "--trust-proxy"),
        (("--trust-proxy", "10.0.0.1/8"), "--trust-proxy"),
        (("--trust-proxy", "127.0.0.1,10.0.0.1"), "--trust-proxy"),
        (("--max-upload-mb", "0"), "--max-upload-mb must be 1 to"),
        (("--max-upload-mb", "-5"), "--max-upload-mb"),
        (("--max-upload-mb", "1e9"), "--max-upload-mb"),
        (("--max-upload-mb", "99999999999"), "--max-upload-mb"),
    ],
)
def test_what_doors_cannot_be_told(flags, said, capsys):
    """Wrong flags of the access checks end in a sentence, before anything starts."""
    with pytest.raises(SystemExit) as left:
        read_flags(flags)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_doors_are_told():
    options = read_flags(
        [
            "--allow-host",
            "My-PC.local.",
            "--allow-host",
            "例え.jp",
            "--root-path",
            "/eichi/",
            "--max-upload-mb",
            "2048",
            "--trust-proxy",
            "127.0.0.1",
            "--trust-proxy",
            "fd00::/8",
            "--allow-host",
            "192.168.1.5",
        ]
    )
    assert options.allow_host == ["my-pc.local", "xn--r8jz45g.jp", "192.168.1.5"] and options.root_path == "/eichi"
    assert options.trust_proxy == ["127.0.0.1", "fd00::/8"] and options.max_upload_mb == 2048
    assert read_flags(["--root-path", "/"]).root_path == "" and read_flags([]).max_upload_mb == 512


def test_every_address_begins_where_the_proxy_has_us(serve):
    """Every address of links, news, previews, files and gradio begins with the proxy's path; without it one leads to another
    program."""
    site = serve(others=True, rules=Rules(root="/eichi", names=("films.example",), proxies=("127.0.0.1",)))
    said = {"Host": "films.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}

    def get(path: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(site.url + path, headers=said)) as answer:
            return answer.read().decode()

    for path in ("/", "/eichi/", "/eichi/f1/", "/oneframe/"):
        page = get(path)
        assert "https://films.example/eichi" in page and "http://films.example" not in page and "127.0.0.1" not in page
        assert 'href=\\"/eichi/f1/\\"' in page and 'href=\\"/f1/' not in page
        assert page.count("/pulse/") == page.count("/eichi/pulse/") > 0
    assert get("/eichi/pulse/reverse") and '"root":"https://films.example/eichi/f1"' in get("/f1/config")
    redirected = urllib.request.Request(f"{site.url}/eichi/f1", headers=said)
    with pytest.raises(urllib.error.HTTPError) as moved:
        urllib.request.build_opener(NoRedirects).open(redirected)
    assert moved.value.headers["Location"] in ("/eichi/f1/", "https://films.example/eichi/f1/")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


@pytest.mark.parametrize("server,loopback", [("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.1", False)])
def test_is_loopback(server, loopback):
    assert is_loopback(server) is loopback


def test_the_next_free_port_is_taken():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port
            assert address("127.0.0.1", second) == f"http://127.0.0.1:{second.getsockname()[1]}"


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError):
        listen("192.0.2.1", 0)


def test_every_mode_is_reachable_under_its_own_path(serve):
    site = serve("forward", others=True)
    for path, title in (("/", "F1"), ("/f1", "F1"), ("/endframe", "Standard"), ("/oneframe/", "One frame")):
        with urllib.request.urlopen(site.url + path) as answer:
            assert f"{title} - FramePack-eichi" in answer.read().decode()


def test_only_the_output_folder_and_examples_are_served(serve, tmp_path):
    site = serve(others=True)
    site.engine.outputs.mkdir()
    (site.engine.outputs / "film.txt").write_text("film")
    (tmp_path / "secret.txt").write_text("secret")

    def get(path: Path) -> int:
        try:
            with urllib.request.urlopen(f"{site.url}/gradio_api/file={path}") as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert get(site.engine.outputs / "film.txt") == 200
    assert get(tmp_path / "secret.txt") == 403
    assert get(Path(Models().examples("miniature")[0].picture)) == 200
    assert get(MINIATURE / "eichi.json") == 403
    assert get(site.engine.outputs / ".." / "secret.txt") in (403, 404)


def test_login_holds_for_every_page(serve):
    site = serve(others=True, auth=("me", "secret"))
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def status(path: str) -> int:
        try:
            return opener.open(site.url + path).status
        except urllib.error.HTTPError as error:
            return error.code

    assert [status(path + "config") for path in ("/", "/f1/", "/oneframe/")] == [401] * 3
    assert status(f"/gradio_api/file={site.engine.outputs}/film.mp4") == 401
    with pytest.raises(urllib.error.HTTPError):
        opener.open(f"{site.url}/login", urlencode({"username": "me", "password": "wrong"}).encode())
    assert [status(path) for path in ("/pulse/reverse", "/pulse/preview/x")] == [401] * 2
    opener.open(f"{site.url}/login", urlencode({"username": "me", "password": "secret"}).encode())
    # The browser sends the plain cookie over HTTP; the jar keeps the secure one back.
    assert [status(path + "config") for path in ("/", "/f1/", "/oneframe/")] == [200] * 3
    assert [status(path) for path in ("/pulse/reverse", "/pulse/preview/x")] == [200, 204]


@pytest.mark.process
def test_a_script_runs_from_any_folder_without_torch(tmp_path):
    """Every script has all three pages; that the others start: tests/test_launch.py."""
    command = [sys.executable, WEBUI / "oneframe_ichi.py", "--port", str(_free_port()), "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert urllib.request.urlopen(url).status == 200
        maps = Path(f"/proc/{process.pid}/maps")
        assert not maps.exists() or "torch" not in maps.read_text()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert not list(WEBUI.glob("*.pyi"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
