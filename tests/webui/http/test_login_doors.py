"""Test logging in and out through the server, and accounts on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from locales import LANGUAGES, Translator
from tests.threads import in_a_loop
from tests.webui.doorstep import HERE, doors
from webui.app import read_flags
from webui.http import login as module
from webui.http.login import FREE, Login, account, accounts_of, hashed, main, matches

PAGE = {"accept": "text/html"}


@pytest.fixture
def visitor() -> Iterator[TestClient]:
    login = Login({"me": "secret"})
    with TestClient(doors(login, language="en"), HERE, client=("127.0.0.1", 50000)) as client:
        yield client


def give(visitor: TestClient, password: str = "secret", url: str = "/login", **headers: str) -> Any:
    form = {"username": "me", "password": password}
    return visitor.post(url, data=form, headers=PAGE | headers, follow_redirects=False)


def test_a_browser_is_shown_the_login_and_then_its_page(visitor: TestClient) -> None:
    asked = visitor.get("/f1/", headers=PAGE, follow_redirects=False)
    assert asked.status_code == 303 and asked.headers["location"] == "/login?next=/f1/"
    form = visitor.get(asked.headers["location"], headers=PAGE)
    assert form.status_code == 200 and 'action="/login?next=/f1/"' in form.text and "no-store" in form.headers["cache-control"]
    wrong = give(visitor, "wrong", "/login?next=/f1/")
    assert wrong.status_code == 401 and "Name or password is wrong." in wrong.text and 'action="/login?next=/f1/"' in wrong.text
    right = give(visitor, url="/login?next=/f1/")
    assert right.status_code == 303 and right.headers["location"] == "/f1/"
    assert visitor.get("/told").status_code == 200


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "/told", ""])
def test_the_way_on_is_to_a_page_of_ours(visitor: TestClient, target: str) -> None:
    assert give(visitor, url=f"/login?next={target}").headers["location"] == "/"


def test_cookies_are_the_servers_alone(visitor: TestClient) -> None:
    """Gradio's second cookie went over any connection, and its first to any site's requests."""
    cookies = give(visitor).headers.get_list("set-cookie")
    assert len(cookies) == 2 and len({cookie.partition("=")[0] for cookie in cookies}) == 2
    for cookie in cookies:
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/;" in cookie and "Secure" not in cookie
    secure = doors(Login({"me": "secret"}), proxies=("127.0.0.1",), root="/eichi")
    behind = TestClient(secure, HERE, client=("127.0.0.1", 50000), headers={"x-forwarded-proto": "https"})
    for cookie in give(behind).headers.get_list("set-cookie"):
        assert "Secure" in cookie and "Path=/eichi;" in cookie


def test_leaving(visitor: TestClient) -> None:
    """By the page's button only: any site's link to /logout ended the session."""
    give(visitor)
    token = next(cookie.value for cookie in visitor.cookies.jar if "session" in cookie.name)
    assert visitor.post("/logout", headers={"origin": "http://evil.example"}).status_code == 403
    assert visitor.get("/logout", follow_redirects=False).headers["location"] == "/"
    assert visitor.get("/told").status_code == 200
    assert visitor.post("/logout", follow_redirects=False).headers["location"] == "/login"
    name = next(cookie.name for cookie in visitor.cookies.jar if "known" in cookie.name).replace("known", "session")
    assert visitor.get("/told", cookies={name: token}).status_code == 401


def test_nobody_is_logged_in_by_another_site(visitor: TestClient) -> None:
    """A form elsewhere with its author's name and password made the visitor work under the author's eyes."""
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert give(visitor, **{key: value for key, value in headers.items()}).status_code == 403
    assert not visitor.cookies


def test_too_many_are_told_to_wait(visitor: TestClient) -> None:
    answers = [give(visitor, "wrong") for _ in range(FREE + 1)]
    assert [answer.status_code for answer in answers] == [401] * FREE + [429]
    assert int(answers[-1].headers["retry-after"]) >= 1 and "try again in" in answers[-1].text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_form_speaks_the_pages_language(language: str) -> None:
    form = TestClient(doors(Login({"me": "secret"}), language=language), HERE).get("/login", headers=PAGE).text
    assert f'<html lang="{language}">' in form and Translator(language)("page.login.password") in form
    assert not re.search(r"https?://", form)


def test_without_a_login_there_is_nothing_to_log_in_to() -> None:
    got = TestClient(doors(), HERE).get("/login", follow_redirects=False)
    assert got.status_code == 303 and got.headers["location"] == "/"


# On the command line


@pytest.fixture
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    monkeypatch.delenv("EICHI_AUTH", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as left:
        read_flags(list(flags))
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_passwords_in_a_file(tmp_path: Path, english: None, capsys: pytest.CaptureFixture[str]) -> None:
    """--auth stands in the list of processes, which every user of a machine can read."""
    kept = hashed("own")
    file = tmp_path / "who"
    file.write_bytes(f"\ufeff# us\n\nme:se:cret \r\nyou:{kept}\n".encode())
    options = read_flags(["--auth-file", str(file), "--server", "0.0.0.0"])
    assert options.accounts == {"me": "se:cret", "you": kept}
    assert in_a_loop(Login(options.accounts).enter("you", "own", "10.0.0.1", "")).token
    assert read_flags(["--auth-file", str(file), "--auth", "third:x"]).accounts.keys() == {"me", "you", "third"}
    assert "--auth-file" in refused(capsys, "--server", "0.0.0.0")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no line"),
        ("# only this\n", "has no line"),
        ("me:secret\nyou", "line 2"),
        (":x", "line 1"),
        ("me:", "line 1"),
        ("me:scrypt:abc", "line 1"),
        ("me:scrypt:AAAA:BBBB", "line 1"),
        ("x" * 100_000, "no text file"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, english: None, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    """Said before anything starts, and without what stands there."""
    file = tmp_path / "who"
    file.write_text(content)
    sentence = refused(capsys, "--auth-file", str(file))
    assert said in sentence and "who" in sentence and "secret" not in sentence


def test_no_file(tmp_path: Path, english: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refused(capsys, "--auth-file", str(tmp_path / "none"))
    assert "who" in refused(capsys, "--auth-file", str(tmp_path / "who" / "x"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "no text file" in refused(capsys, "--auth-file", str(tmp_path / "pipe"))


def test_a_password_in_the_environment(
    english: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts where the command line says nothing."""
    monkeypatch.setenv("EICHI_AUTH", "me:secret")
    assert read_flags(["--server", "0.0.0.0"]).accounts == {"me": "secret"}
    assert read_flags(["--auth", "you:x"]).accounts == {"you": "x"}
    monkeypatch.setenv("EICHI_AUTH", "secret")
    said = refused(capsys)
    assert "EICHI_AUTH" in said and "secret" not in said
    monkeypatch.setenv("EICHI_AUTH", "")
    assert read_flags([]).accounts is None


def test_a_line_for_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    typed = iter(["secret", "secret", "secret", "other"])
    monkeypatch.setattr(module.getpass, "getpass", lambda *_: next(typed))
    assert main(["me"]) == 0
    line = capsys.readouterr().out
    (tmp_path / "who").write_text(line)
    assert matches("secret", accounts_of(tmp_path / "who")["me"]) and account(line.strip())[0] == "me"
    assert main(["me"]) == 1 and main([]) == 2 and main(["a:b"]) == 2
    assert capsys.readouterr().out == ""
