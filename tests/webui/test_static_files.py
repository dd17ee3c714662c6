"""Test the pages' scripts, styles and templates: separate files, which a browser gets in the version of its page."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from webui import static_files
from webui.http import page_build
from webui.static_files import ADDRESS, FOLDER, MAIN, PAGE_ELEMENT, PageHeads, call, page_head, version

ROOT = Path(__file__).parents[2]
PYTHON = sorted((ROOT / "webui").rglob("*.py"))
PAGE = "<html><head><title>x</title><script>first</script></head><body><script>second</script></body></html>"


def test_the_package_brings_every_file() -> None:
    """Package data named styles beside the modules only, so an installed program would have had pages without scripts."""
    # Python has it from 3.11 on; one version that looks is enough.
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["webui"]
    brought = {path for pattern in patterns for path in (ROOT / "webui").glob(pattern)}
    assert brought >= set(FOLDER.iterdir()) != set()


def test_no_script_is_built_of_strings() -> None:
    """Half of the pages' scripts lay in Python strings, put together by replacing words: nothing checked them."""
    wrong = {}
    for path in PYTHON:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found = [node.lineno for node in texts if re.search(r"=>|document\.|function\s*\(|addEventListener", node.value)]
        wrong[path.relative_to(ROOT).as_posix()] = found
    # `call` is the only arrow.
    (own,) = wrong.pop("webui/static_files.py")
    assert own and not any(wrong.values())


def exported() -> set[str]:
    """Return the functions that a browser finds below `eichi`, such as "timeline.setPrompt"."""
    main = (FOLDER / MAIN).read_text(encoding="utf-8")
    names = set(re.findall(r"^  (\w+),$", main.partition("window.eichi")[2], re.MULTILINE))
    found = set()
    for group, file in re.findall(r"import \* as (\w+) from '\./(\w+\.js)'", main):
        assert group in names
        functions = re.findall(r"^export (?:async )?(?:function|const) (\w+)", (FOLDER / file).read_text(), re.MULTILINE)
        found |= {f"{group}.{function}" for function in functions}
        names.remove(group)
    return found | names


def test_every_function_that_python_names_is_there() -> None:
    """A misspelt name is seen only in a browser, and there only where somebody clicks."""
    named = set()
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("call", "element"):
                named.add(node.args[0 if node.func.id == "call" else 2].value)
    assert len(named) > 20 and named <= exported()


def test_data_are_arguments() -> None:
    assert call("length.follow", [1, 2.5]) == "(...values) => eichi.length.follow([1, 2.5], ...values)"
    assert call("form.open") == "(...values) => eichi.form.open(...values)"


def changed_copy(folder: Path, name: str) -> None:
    """Copy the files; one of them has another byte."""
    for path in FOLDER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + (b"\n" if path.name == name else b""))


@pytest.mark.parametrize("name", ["viewer.js", "viewer.css", "viewer.html"])
def test_a_change_is_another_version_and_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A tab that was open over an update would run old scripts against new functions: it counts as a tab of another page."""
    before = version.__wrapped__(), page_build.sources.__wrapped__()
    changed_copy(tmp_path, name)
    monkeypatch.setattr(static_files, "FOLDER", tmp_path)
    after = version.__wrapped__()
    assert after != before[0]
    monkeypatch.setattr(static_files, "version", lambda: after)
    assert page_build.sources.__wrapped__() != before[1]


@pytest.fixture(params=["", "/eichi"])
def site(request: pytest.FixtureRequest) -> tuple[TestClient, str]:
    """Return a client of an application with two pages below a path, and that path."""
    root = request.param

    async def page(asked: Request) -> Response:
        # As gradio does, which packs its pages itself.
        assert "gzip" not in asked.headers.get("accept-encoding", "")
        return HTMLResponse(PAGE)

    async def other(asked: Request) -> Response:
        return JSONResponse({"said": "<script>", "encoding": asked.headers.get("accept-encoding")})

    async def gone(asked: Request) -> Response:
        return HTMLResponse("<script></script>", 404)

    heads = {"/": page_head(root, {"says": "</script><b>"}), "/f1/": page_head(root, {}), "/gone/": "never"}
    routes = [Route("/", page), Route("/f1/", page), Route("/gone/", gone), Route("/other", other), Route("/f1/other", other)]
    app = Starlette(routes=routes, middleware=[Middleware(PageHeads, heads=heads)])
    return TestClient(app, f"http://127.0.0.1{root}", root_path=root), root


def test_a_page_begins_with_its_data_and_its_scripts(site: tuple[TestClient, str]) -> None:
    """Scripts that gradio puts into the head come at some time after its own, without which events named no page."""
    client, root = site
    answer = client.get("/")
    before, _, after = answer.text.partition("<script>first")
    assert after and before.startswith("<html><head><title>x</title>")
    assert f'src="{root}{ADDRESS}/{version()}/{MAIN}"' in before
    data = before.partition(f'id="{PAGE_ELEMENT}">')[2].partition("</script>")[0]
    assert json.loads(data) == {"says": "</script><b>"} and "<b>" not in before
    assert answer.headers["content-type"].startswith("text/html")
    long = client.get("/f1/", headers={"accept-encoding": "identity"})
    assert int(long.headers["content-length"]) == len(long.content) and "content-encoding" not in long.headers


def test_other_answers_are_passed_on(site: tuple[TestClient, str]) -> None:
    client, _ = site
    for path in ("/other", "/f1/other"):
        assert client.get(path).json() == {"said": "<script>", "encoding": client.headers["accept-encoding"]}
    answer = client.get("/gone/")
    assert answer.status_code == 404 and "never" not in answer.text


def test_pages_are_packed(tmp_path: Path) -> None:
    """A page is 300 KB, a tenth of it packed; gradio's own packing leaves no place for a head."""

    async def page(asked: Request) -> Response:
        return HTMLResponse(PAGE + "x" * 100_000)

    app = Starlette(routes=[Route("/", page)], middleware=[Middleware(PageHeads, heads={"/": page_head("", {})})])
    answer = TestClient(app).get("/", headers={"accept-encoding": "br, gzip"})
    assert answer.headers["content-encoding"] == "gzip" and int(answer.headers["content-length"]) < 10_000
    assert MAIN in answer.text and answer.text.endswith("xxx")


def test_scripts_are_kept_for_good_by_their_version() -> None:
    """A file is served only under its own version, so that a browser does not keep it under another one's name."""
    from fastapi import FastAPI

    app = FastAPI()
    static_files.add_routes(app)
    client = TestClient(app)
    for path in FOLDER.glob("*.js"):
        answer = client.get(f"{ADDRESS}/{version()}/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].startswith("text/javascript") and "immutable" in answer.headers["cache-control"]
    for wrong in (f"{version()}/none.js", f"{version()}/style.css", f"{version()}/..%2Fapp.py", f"0{version()[1:]}x/{MAIN}"):
        answer = client.get(f"{ADDRESS}/{wrong}")
        assert answer.status_code == 404 and "immutable" not in answer.headers.get("cache-control", "")


def test_one_version_of_the_checker() -> None:
    """The check depends on the version's output; the file of its settings, the command and what we tell others agree."""
    settings = json.loads((ROOT / "biome.json").read_text(encoding="utf-8"))
    (wanted,) = re.findall(r"schemas/([\d.]+)/", settings["$schema"])
    for file in (".ci/run", "docs/contributing.md"):
        assert re.findall(r"@biomejs/biome@([\d.]+)", (ROOT / file).read_text(encoding="utf-8")) == [wanted]
