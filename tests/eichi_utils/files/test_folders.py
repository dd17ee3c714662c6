"""Test output folders: names, paths, and what pages may not reach."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from eichi_utils.files.folders import OutputFolders
from eichi_utils.files.paths import MOST_LEVELS, Outputs, resolved
from eichi_utils.jobs.queue import Jobs, Stop
from eichi_utils.models.catalogue import Models
from eichi_utils.models.pool import ModelPool
from eichi_utils.problems import UserError
from eichi_utils.render.engine import Engine
from tests.eichi_utils.helpers import found, names_in, request, say_everything
from tests.eichi_utils.jobs.fakes import ending


def test_a_name_and_a_path(tmp_path: Path) -> None:
    """A name is a folder of the program's, a path is itself; nothing is made by asking."""
    folders = OutputFolders(tmp_path / "out")
    assert folders.of("") == tmp_path / "out"
    assert folders.of(" cats/tom ") == tmp_path / "out" / "cats" / "tom"
    assert folders.of(str(tmp_path / "else")) == tmp_path / "else"
    assert [folders.problem(name) for name in ("", "cats", "猫", str(tmp_path / "else"))] == [None] * 4
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "..\\x", "a\\..\\x", "/tmp/../etc"])
def test_no_way_upwards(name: str, tmp_path: Path, pictures: list[str]) -> None:
    """A request cannot name a file above its folder, in any system's way of writing paths."""
    assert found(request("reverse", pictures[0], output_folder=name).check()) == {("output_folder", "folder_upwards")}
    assert found([OutputFolders(tmp_path).problem(name)]) == {("output_folder", "folder_upwards")}


def test_names_that_are_none(pictures: list[str]) -> None:
    """Names of folders with control characters or without end are refused; two dots inside of a name are harmless."""
    assert request("single", pictures[0], output_folder="a..b/...c").check() == ()
    for name in ("a\0b", "a\nb", "x" * 6000, "\ud800"):
        problems = say_everything(request("single", pictures[0], output_folder=name).check())
        assert {problem.field for problem in problems} == {"output_folder"}, name


def test_pages_reach_only_what_they_were_given(tmp_path: Path) -> None:
    """Pages reach only the folders that they were given, not others through links, which a remote user could have used."""
    folders = OutputFolders(tmp_path / "out", (tmp_path / "films",))
    (tmp_path / "out").mkdir()
    assert folders.problem("cats") is None and folders.problem(str(tmp_path / "films" / "new")) is None
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "films2"), "link/else", "~"):
        assert found([folders.problem(name)]) == {("output_folder", "folder_not_allowed")}, name


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way is said beside the field."""
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below"):
        assert found([OutputFolders(tmp_path).problem(name)]) == {("output_folder", "folder_not_writable")}


DEEP, LONG = "/".join("d" * 2000), "/".join(["x" * 200] * 22)


@pytest.mark.parametrize(
    ("name", "key"),
    [(DEEP, "folder_too_deep"), ("new/" + "x" * 256, "folder_name_too_long"), ("猫" * 86, "folder_name_too_long"),
     (LONG, "folder_path_too_long")],
)  # fmt: skip
def test_what_no_system_takes_is_found_before_anything_is_made(
    name: str, key: str, tmp_path: Path, pictures: list[str]
) -> None:
    """A folder of 2,000 levels passed the dry run and ended the run in a RecursionError; below a folder that was not there yet
    a name of 256 bytes passed too, since the system looks at the first missing folder only. A name that is too long was a
    crash of the page."""
    assert found(request("single", pictures[0], output_folder=name).check()) == {("output_folder", key)}
    assert found([OutputFolders(tmp_path).problem(name)]) == {("output_folder", key)}
    assert found([OutputFolders(tmp_path / name).problem("")]) == {("out", key)}
    assert found([OutputFolders(tmp_path, field="log_folder").problem(str(tmp_path / name))]) == {("log_folder", key)}
    assert names_in(tmp_path) == set()


def test_as_deep_and_long_as_folders_may_be(tmp_path: Path) -> None:
    """Folders as deep and names as long as the system allows are accepted by the limits."""
    deep = "/".join("d" * (MOST_LEVELS - len(tmp_path.parts)))
    for name in (deep, "x" * 255, "猫" * 85):
        assert OutputFolders(tmp_path).problem(name) is None
        Outputs(tmp_path / name, "job").make()


def test_a_folder_that_cannot_be_made_is_told_by_its_field(tmp_path: Path) -> None:
    """A folder that cannot be made is told at its own field; it was always told at `--out`, even if the request's file named
    it."""
    (tmp_path / "file").write_text("x")
    for field in ("out", "output_folder"):
        for outputs in (Outputs(tmp_path / "file" / "below", "job", field), Outputs(tmp_path / DEEP, "job", field)):
            with pytest.raises(UserError) as error:
                outputs.make()
            assert found(error.value.problems) == {(field, "folder_not_writable")}
    assert found([OutputFolders(tmp_path / "file").problem("cats")]) == {("out", "folder_not_writable")}
    assert found([OutputFolders(tmp_path / "file").problem(str(tmp_path / "file"))]) == {("out", "folder_not_writable")}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    """A circle of links passed for a folder that may be made; a link to a folder that was not there yet ended the run."""
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "new").symlink_to("missing/deep")
    for name in ("circle", "circle/below"):
        assert found([OutputFolders(tmp_path).problem(name)]) == {("output_folder", "folder_not_writable")}
        with pytest.raises(UserError) as error:
            resolved("out", tmp_path / name)
        assert found(error.value.problems) == {("out", "folder_not_writable")}
        assert str(error.value.problems[0].values["reason"]) == os.strerror(errno.ELOOP)
    assert OutputFolders(tmp_path).problem("new") is None
    Outputs(tmp_path / "new", "job").make()
    assert (tmp_path / "missing" / "deep").is_dir() and resolved("out", tmp_path / "new") == tmp_path / "missing" / "deep"


def test_the_engine_writes_there_and_nowhere_else(
    pool: ModelPool, pictures: list[str], tmp_path: Path, cheap_decode: None
) -> None:
    """The worker checks the folder again, because a request may come past the page."""
    engine = Engine(Models(pool.files.models), tmp_path / "out", allowed=())
    engine.__dict__["pool"] = pool
    jobs = Jobs(engine)
    try:
        job = jobs.submit(request("single", pictures[0], output_folder="cats"))
        assert ending(jobs, job).state == "finished"
        assert names_in(tmp_path / "out") == {"cats", f"cats/{job.id}_oneframe.png", f"cats/{job.id}_input.png"}
        with pytest.raises(UserError) as error:
            list(engine(request("single", pictures[0], output_folder=str(tmp_path)), "j", Stop()))
        assert found(error.value.problems) == {("output_folder", "folder_not_allowed")}
    finally:
        jobs.close(30)
