"""Test the launcher: what it decides, what it does when an installation fails, and the .bat files that call it."""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import launch
from eichi_utils.cli import main
from eichi_utils.setup import environment, tool_run
from locales import Translator

ROOT = Path(launch.__file__).parent

BATCH_FILES = {
    "run_endframe_ichi.bat": ("endframe", "ja"),
    "run_endframe_ichi_en.bat": ("endframe", "en"),
    "run_endframe_ichi_zh-tw.bat": ("endframe", "zh-tw"),
    "run_endframe_ichi_ru.bat": ("endframe", "ru"),
    "run_endframe_ichi_f1.bat": ("f1", "ja"),
    "run_endframe_ichi_en_f1.bat": ("f1", "en"),
    "run_endframe_ichi_zh-tw_f1.bat": ("f1", "zh-tw"),
    "run_endframe_ichi_f1_ru.bat": ("f1", "ru"),
    "run_oneframe_ichi.bat": ("oneframe", "ja"),
    "run_oneframe_ichi_en.bat": ("oneframe", "en"),
    "run_oneframe_ichi_zh-tw.bat": ("oneframe", "zh-tw"),
    "run_oneframe_ichi_ru.bat": ("oneframe", "ru"),
}


# Python itself


STANDARD_LIBRARY_FILES = (
    "launch.py",
    "eichi_utils/__init__.py",
    "eichi_utils/setup/__init__.py",
    "eichi_utils/setup/console.py",
    "eichi_utils/setup/environment.py",
    "eichi_utils/setup/install_plan.py",
    "eichi_utils/setup/tool_run.py",
)


@pytest.mark.parametrize("file", STANDARD_LIBRARY_FILES)
def test_imports_only_the_standard_library(file):
    """launch.py and what it imports run before anything is installed."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = node.module in ("eichi_utils.setup", "eichi_utils.setup.console", "eichi_utils.setup.tool_run")
            names.update([] if own else [node.module])
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", [*STANDARD_LIBRARY_FILES, "eichi_utils/setup/installed.py"])
def test_parses_on_python_3_7(file):
    """An old Python must get far enough to print the sentence about its age."""
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("version", [(3, 7, 16), (3, 9, 18)])
def test_old_python_is_named_and_refused(version, monkeypatch, capsys):
    """Too old a Python ends with exit code 1 and a message that names both versions and what to do."""
    monkeypatch.setattr(sys, "version_info", version)
    assert launch.main(["setup"]) == 1
    message = capsys.readouterr().err
    assert "3.10" in message and f"3.{version[1]}" in message and "python.org" in message


@pytest.mark.process
@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
def test_closed_streams_end_nothing():
    """The launcher runs without standard streams; it ended in a traceback at its first sentence."""
    command = ["/bin/sh", "-c", '"$0" "$@" >&- 2>&-', sys.executable, str(ROOT / "launch.py")]
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0
    assert subprocess.run([*command, "paint"], capture_output=True).returncode == 2


# Module that sends a signal to its own process as soon as a certain module is imported.
SENDER = """
import os, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))

sys.meta_path.insert(0, Sender())
"""


@pytest.mark.process
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("command", "at", "name"),
    # One function listens to all three signals: each way to start it, and each signal at the launcher and at a page.
    [
        (["launch.py", "doctor"], "eichi_utils.setup.environment", "SIGINT"),
        (["launch.py", "doctor"], "eichi_utils.setup.environment", "SIGTERM"),
        (["launch.py", "doctor"], "eichi_utils.setup.environment", "SIGHUP"),
        (["eichi_utils/cli/__main__.py", "doctor"], "eichi_utils.cli.main", "SIGTERM"),
        (["-m", "eichi_utils.cli.main", "doctor"], "numpy", "SIGHUP"),
        (["-c", "from eichi_utils.cli.__main__ import main; main()", "doctor"], "av", "SIGINT"),
        (["webui/endframe_ichi.py"], "gradio", "SIGINT"),
        (["webui/endframe_ichi_f1.py"], "gradio", "SIGTERM"),
        (["webui/oneframe_ichi.py"], "gradio", "SIGHUP"),
    ],
)
def test_whoever_is_stopped_while_it_loads_ends_in_a_line(command, at, name, tmp_path):
    """Ctrl-C in the first second ended in a traceback, and SIGTERM or a closed terminal without a word."""
    (tmp_path / "sitecustomize.py").write_text(SENDER)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": path, "AT": at, "SIGNAL": str(int(getattr(signal, name)))}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nStopped.\n")


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_installation_that_is_told_to_end_says_so(machine, monkeypatch, capsys, name):
    """A closed terminal ended the launcher and left pip alone with the environment."""
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(tool_run, "run_logged", lambda *about: os.kill(os.getpid(), getattr(signal, name)))
    assert launch.main(["setup"]) == 130
    assert capsys.readouterr().err.endswith("\nStopped.\n")
    assert signal.getsignal(getattr(signal, name)) == before


def test_every_command_of_the_command_line_is_known():
    """`launch.py lora`, `cache`, `sections` and `tensors` were unknown commands."""
    parser = main.make_parser(Translator("en"))
    (commands,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    assert set(launch.CLI_COMMANDS) == set(commands)
    for name in commands:
        assert launch.parse((name, "--help")).child == ("eichi_utils/cli/__main__.py", name, "--help")
        assert f"\n  {name} " in launch.HELP


def test_supported_pythons_pass_the_gate():
    """The version checks let every supported Python through."""
    for minor in range(10, 15):
        assert launch.version_problem((3, minor)) is None
        assert environment.installation_problem((3, minor)) is None


def test_too_new_python_cannot_make_an_environment(machine, monkeypatch, capsys):
    """Torch's exact pin has no build for a newer Python; that is said before anything is downloaded."""
    monkeypatch.setattr(sys, "version_info", (3, 15, 0, "final", 0))
    assert launch.main(["setup"]) == 1
    assert "3.15 is too new" in capsys.readouterr().err
    assert machine.made() == (False, 0)


# Arguments, the menu and the child


@pytest.mark.parametrize(
    ("arguments", "child"),
    [
        ("endframe --lang ja --port 7861", "webui/endframe_ichi.py --lang ja --port 7861"),
        ("f1 --plain", "webui/endframe_ichi_f1.py --plain"),
        ("oneframe", "webui/oneframe_ichi.py"),
        ("demo --json", "eichi_utils/cli/__main__.py demo --json"),
        ("doctor", "eichi_utils/cli/__main__.py doctor"),
        ("render a.png --help", "eichi_utils/cli/__main__.py render a.png --help"),
        ("test -k plan", "-m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -k plan"),
        ("test", "-m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder"),
        ("setup", ""),
        ("setup --test", ""),
    ],
)
def test_commands(arguments, child):
    """Every command starts its own part and passes the rest on untouched."""
    invocation = launch.parse(tuple(arguments.split()))
    assert invocation.child == tuple(child.split())
    assert invocation.test == (arguments.startswith("test") or "--test" in arguments)


@pytest.mark.parametrize("arguments", [["nonsense"], ["--lang", "ja"], ["setup", "--tset"]])
def test_unknown_command_prints_help_and_ends_2(machine, capsys, arguments):
    """A typing mistake is answered with the help and installs nothing."""
    assert launch.main(arguments) == 2
    assert "usage: launch.py" in capsys.readouterr().err
    assert machine.made() == (False, 0)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(machine, capsys, flag):
    """The help lists all there is, and installs nothing."""
    assert launch.main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in [*launch.COMMANDS, "setup"])
    assert machine.made() == (False, 0)


def test_menu_is_complete():
    """The numbers are the documented ones and each leads to a command in its language."""
    table = launch.menu_table()
    numbers = [*range(1, 5), *range(10, 14), *range(20, 24), *range(50, 54), *range(60, 64)]
    assert list(table) == [str(number) for number in numbers]
    languages = ["ja", "en", "zh-tw", "ru"]
    for index, (_, arguments) in enumerate(table.values()):
        assert arguments[arguments.index("--lang") + 1] == languages[index % 4]
        launch.parse(arguments)
    assert table["3"][1][0] == table["62"][1][0] == "endframe"
    assert table["11"][1][0] == "f1" and table["22"][1][0] == "oneframe"
    assert table["50"][1][:2] == ("endframe", "--plain")


def test_menu_asks_again(capsys):
    """Unknown input is named and asked again; the links to both projects are shown."""
    answers = iter(["5", "x", "30", " 11 "])
    assert launch.ask_menu(lambda: next(answers)) == ("f1", "--lang", "en", "--inbrowser")
    message = capsys.readouterr().err
    assert message.count("There is no") == 3
    assert "github.com/lllyasviel/FramePack" in message
    assert "github.com/git-ai-code/FramePack-eichi" in message


@pytest.mark.parametrize("answer", ["", "q", None])
def test_menu_can_be_left(machine, monkeypatch, answer):
    """Enter alone, q and the end of input quit without installing."""

    def read():
        if answer is None:
            raise EOFError
        return answer

    assert launch.ask_menu(read) is None
    monkeypatch.setattr(launch, "ask_menu", lambda: None)
    assert launch.main([]) == 0
    assert machine.made() == (False, 0)


def test_child_environment_keeps_what_is_set():
    """The defaults do not override the user's own settings."""
    variables = tool_run.child_environment({"PYTHONUTF8": "0", "PATH": "x"})
    assert variables["PYTHONUTF8"] == "0" and variables["PATH"] == "x"
    assert variables["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert variables["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "place"),
    [("endframe", "webui/endframe_ichi.py"), ("render", "eichi_utils/cli/__main__.py"), ("test", "pytest.py")],
)
def test_child_gets_arguments_folder_and_environment(tmp_path, command, place):
    """A finished installation starts its part from any folder: arguments in, stdout and exit code out. Paths in the arguments
    are relative to the user's folder, and were taken for those of the program's; the tests are found in their own."""
    root = tmp_path / "a folder"
    (root / "webui").mkdir(parents=True)
    (root / "eichi_utils" / "setup").mkdir(parents=True)
    (root / "eichi_utils" / "cli").mkdir()
    for name in (*STANDARD_LIBRARY_FILES, "requirements.txt", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / place).write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['PYTHONUTF8'], sys.prefix]))\n"
        "sys.exit(7)\n"
    )
    venv.create(root / ".venv", symlinks=os.name != "nt")
    site = sysconfig.get_path("purelib", vars={"base": str(root / ".venv")})
    (Path(site) / "pip.py").write_text("")
    finished = environment.wanted_stamp(root.resolve(), "cu130", False, environment.OWN_VERSION)
    environment.stamp_path(root).write_text(finished.to_json())

    variables = {key: value for key, value in os.environ.items() if key != "PYTHONUTF8"}
    result = subprocess.run(
        [sys.executable, str(root / "launch.py"), command, "--lang", "ru", "two words"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 7, result.stderr
    arguments, folder, utf8, prefix = json.loads(result.stdout.splitlines()[-1])
    assert arguments[-3:] == ["--lang", "ru", "two words"]
    assert Path(folder) == (root if command == "test" else tmp_path).resolve() and Path(prefix).name == ".venv"
    assert utf8 == "1"


# The .bat files


def batch_lines(name):
    """Return the lines of a .bat file, which must be CRLF and ASCII throughout, because cmd.exe misreads anything else."""
    content = (ROOT / name).read_bytes()
    assert content.endswith(b"\r\n") and content.count(b"\n") == content.count(b"\r\n")
    return content.decode("ascii").split("\r\n")


def test_no_batch_file_is_forgotten():
    """Every .bat in the root is one of those checked here."""
    expected = {*BATCH_FILES, "eichi.bat", "Language_FramePack-eichi.bat"}
    assert {path.name for path in ROOT.glob("*.bat")} == expected


@pytest.mark.parametrize("name", BATCH_FILES)
def test_batch_file_starts_its_mode(name):
    """Each starter calls its mode in its language from any folder and forwards further arguments."""
    command, language = BATCH_FILES[name]
    assert f'call "%~dp0eichi.bat" {command} --lang {language} --inbrowser %*' in batch_lines(name)
    launch.parse((command, "--lang", language))


def test_menu_batch_file_leaves_the_menu_to_the_launcher():
    """The menu's batch file only starts the launcher, so that there is one menu."""
    assert 'call "%~dp0eichi.bat" %*' in batch_lines("Language_FramePack-eichi.bat")


def test_batch_helper_finds_python_and_reports_failure():
    """The helper tries `py -3`, then `python`, says so when there is neither and stays open on failure."""
    text = "\n".join(batch_lines("eichi.bat"))
    assert text.index("py -3") < text.index('set "EICHI_PYTHON=python"') < text.index("Python was not found")
    assert '%EICHI_PYTHON% "%~dp0launch.py" %*' in text
    assert text.count("pause") == 2
