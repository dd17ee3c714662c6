"""The launcher: what it decides, what it does when an installation fails, and the .bat files that call it."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import launch
from eichi_utils import environment, tool_run

ROOT = Path(launch.__file__).parent
REQUIREMENTS = "# pins\ntorch==2.13.0\neinops>=0.8\n-e .\n"
PINNED = "torch==2.13.0"

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


class FakeMachine:
    """Stands in for venv, pip, the environment's Python and the NVIDIA driver; keeps what was run."""

    def __init__(self, root):
        self.root = root
        self.commands = []
        self.failures = {}
        self.interrupt_at = None
        self.cuda = None

    def run_logged(self, command, root, log_path, title):
        self.commands.append(command)
        if "venv" in command:
            interpreter = environment.venv_python(self.root)
            interpreter.parent.mkdir(parents=True)
            interpreter.write_text("")
        if title == self.interrupt_at:
            raise KeyboardInterrupt
        for start, output in self.failures.items():
            if title.startswith(start):
                return 1, output.splitlines()
        return 0, []

    def probe_python(self, interpreter):
        return environment.OWN_VERSION if interpreter.is_file() else None

    def made(self):
        """Whether an environment was made since the last call, and how often pip ran."""
        made = any("venv" in command for command in self.commands)
        pip_runs = sum("pip" in command for command in self.commands)
        self.commands.clear()
        return made, pip_runs


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A repository of two files on a machine where nothing is installed and nothing is downloaded."""
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    fake = FakeMachine(tmp_path)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(tool_run, "run_logged", fake.run_logged)
    monkeypatch.setattr(environment, "probe_python", fake.probe_python)
    monkeypatch.setattr(environment, "detect_cuda", lambda: fake.cuda)
    monkeypatch.setattr(sys, "platform", "linux")
    return fake


def stamp(**changes):
    """A stamp like that of a finished CPU installation, with changes."""
    return environment.Stamp(**{"fingerprint": "a", "torch_build": "cpu", "root": "/here", "test": False, **changes})


# Python itself


STANDARD_LIBRARY_FILES = (
    "launch.py",
    "eichi_utils/__init__.py",
    "eichi_utils/environment.py",
    "eichi_utils/tool_run.py",
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
            own = node.module in ("eichi_utils", "eichi_utils.tool_run")
            names.update([] if own else [node.module])
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", STANDARD_LIBRARY_FILES)
def test_parses_on_python_3_7(file):
    """An old Python must get far enough to print the sentence about its age."""
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 7))


@pytest.mark.parametrize("version", [(3, 7, 16), (3, 9, 18)])
def test_old_python_is_named_and_refused(version, monkeypatch, capsys):
    """Too old a Python ends with exit code 1 and a message with both versions and the way out."""
    monkeypatch.setattr(sys, "version_info", version)
    assert launch.main(["setup"]) == 1
    message = capsys.readouterr().err
    assert "3.10" in message and f"3.{version[1]}" in message and "python.org" in message


def test_supported_pythons_pass_the_gate():
    """The version checks let every supported Python through."""
    for minor in range(10, 15):
        assert launch.version_problem((3, minor, 0)) is None
        assert environment.installation_problem((3, minor, 0)) is None


def test_too_new_python_cannot_make_an_environment(machine, monkeypatch, capsys):
    """Torch's exact pin has no build for a newer Python; that is said before anything is downloaded."""
    monkeypatch.setattr(sys, "version_info", (3, 15, 0, "final", 0))
    assert launch.main(["setup"]) == 1
    assert "3.15 is too new" in capsys.readouterr().err
    assert machine.made() == (False, 0)


# The state of the environment


def test_fingerprint_follows_each_input():
    """A change of requirements.txt, pyproject.toml or the Python version asks for an installation."""
    digests = {
        environment.fingerprint(*inputs)
        for inputs in [(b"a", b"b", "3.11"), (b"x", b"b", "3.11"), (b"a", b"x", "3.11"), (b"a", b"b", "3.12")]
    }
    assert len(digests) == 4
    assert environment.fingerprint(b"ab", b"", "3.11") != environment.fingerprint(b"a", b"b", "3.11")


@pytest.mark.parametrize(
    ("found", "version", "wanted", "state"),
    [
        (stamp(), "3.11", stamp(), "ready"),
        (stamp(test=True), "3.11", stamp(), "ready"),
        (stamp(), "3.11", stamp(test=True), "outdated"),
        (stamp(), "3.11", stamp(fingerprint="b"), "outdated"),
        (None, "3.11", stamp(), "broken"),
        (stamp(), None, stamp(), "broken"),
        (stamp(), "3.11", stamp(root="/moved"), "broken"),
        (stamp(), "3.11", stamp(torch_build="cu130"), "broken"),
        (stamp(torch_build="cu126"), "3.11", stamp(torch_build="cu130"), "ready"),
    ],
)
def test_assess(found, version, wanted, state):
    """Each way an environment can be wrong leads to the smallest repair that is safe."""
    assert environment.assess(found, version, wanted) == state


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"fingerprint": "a"}'])
def test_torn_stamp_counts_as_none(text):
    """A stamp file cut short by a crash must not stop the launcher or pass as a finished installation."""
    assert environment.Stamp.from_json(text) is None


def test_stamp_survives_its_file():
    """What is written is what is read."""
    assert environment.Stamp.from_json(stamp(test=True).to_json()) == stamp(test=True)


def test_probe_refuses_what_is_no_python(tmp_path):
    """A missing or damaged interpreter is reported as such, not raised."""
    assert environment.probe_python(tmp_path / "missing") is None
    damaged = tmp_path / "python"
    damaged.write_text("no program")
    damaged.chmod(0o755)
    assert environment.probe_python(damaged) is None


# Setting up


def test_installs_once(machine):
    """The second start does nothing at all."""
    assert launch.main(["setup"]) == 0
    made, pip_runs = machine.made()
    assert made and pip_runs
    assert launch.main(["setup"]) == 0
    assert machine.made() == (False, 0)


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_install_into_the_environment(machine, name):
    """After an update of the program only pip runs; the environment itself stays."""
    launch.main(["setup"])
    machine.made()
    with (machine.root / name).open("a") as file:
        file.write("# more\n")
    assert launch.main(["setup"]) == 0
    made, pip_runs = machine.made()
    assert not made and pip_runs
    launch.main(["setup"])
    assert machine.made() == (False, 0)


def test_test_tools_are_added_and_stay_wanted(machine):
    """`setup --test` adds to a plain installation, and a plain start afterwards does not reinstall."""
    launch.main(["setup"])
    machine.made()
    assert launch.main(["setup", "--test"]) == 0
    assert any(".[test]" in command for command in machine.commands)
    machine.made()
    launch.main(["setup"])
    assert machine.made() == (False, 0)
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    launch.main(["setup"])
    assert any(".[test]" in command for command in machine.commands)


def test_lost_interpreter_is_recovered(machine):
    """An environment whose Python went away (uninstalled, replaced) is made anew."""
    launch.main(["setup"])
    machine.made()
    environment.venv_python(machine.root).unlink()
    assert launch.main(["setup"]) == 0
    assert machine.made()[0]


def test_moved_folder_is_recovered(machine, monkeypatch):
    """An environment holds absolute paths, so it is made anew where the folder was moved to."""
    launch.main(["setup"])
    machine.made()
    moved = machine.root.with_name("moved folder")
    machine.root.rename(moved)
    machine.root = moved
    monkeypatch.setattr(launch, "ROOT", moved)
    assert launch.main(["setup"]) == 0
    assert machine.made()[0]


def test_environment_that_is_a_file_is_replaced(machine):
    """Whatever lies in the place of .venv is no obstacle."""
    (machine.root / ".venv").write_text("")
    assert launch.main(["setup"]) == 0
    assert environment.stamp_path(machine.root).is_file()


def test_new_graphics_card_replaces_the_cpu_build(machine):
    """A driver installed after the first start must not leave the user on the CPU for good."""
    launch.main(["setup"])
    machine.made()
    machine.cuda = (13, 0)
    launch.main(["setup"])
    assert machine.made()[0]
    machine.cuda = None
    launch.main(["setup"])
    assert machine.made() == (False, 0)


def test_interrupted_installation_ends_130_and_is_made_anew(machine, capsys):
    """Ctrl-C ends without a traceback, and the half-made environment is not taken for a whole one."""
    machine.interrupt_at = environment.plan_install("linux", "cpu", REQUIREMENTS, False)[-1].title
    assert launch.main(["setup"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not environment.stamp_path(machine.root).exists()
    machine.interrupt_at = None
    machine.made()
    assert launch.main(["setup"]) == 0
    assert machine.made()[0]


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("WARNING: Retrying: NewConnectionError\nERROR: No matching distribution found for torch", "network"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no version for this Python"),
        ("The virtual environment was not created because ensurepip is not available.", "python3-venv"),
        ("ERROR: [WinError 5] Access is denied: 'x.dll'", "Close other windows"),
        ("something never seen", "log"),
    ],
)
def test_failed_installation_says_what_to_do(machine, capsys, output, advice):
    """A failure gives advice, pip's last lines, the log's place and exit code 1, and leaves no stamp."""
    machine.failures = {"2 packages": output}
    assert launch.main(["endframe"]) == 1
    message = capsys.readouterr().err
    assert advice in message and output.splitlines()[-1] in message
    assert str(machine.root / "webui" / "logs" / "install.log") in message
    assert not environment.stamp_path(machine.root).exists()
    machine.failures = {}
    assert launch.main(["setup"]) == 0


def test_failed_update_keeps_the_environment_and_tries_again(machine):
    """Without a network after an update, the next start repeats the update, not the whole download."""
    launch.main(["setup"])
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    machine.failures = {"2 packages": "NewConnectionError"}
    assert launch.main(["setup"]) == 1
    machine.failures = {}
    machine.made()
    assert launch.main(["setup"]) == 0
    made, pip_runs = machine.made()
    assert not made and pip_runs


def test_missing_venv_module_is_explained(machine, capsys):
    """Debian splits venv off; the message names the package."""
    machine.failures = {"venv": "No module named ensurepip"}
    assert launch.main(["setup"]) == 1
    assert "apt install python3-venv" in capsys.readouterr().err


def test_speed_ups_fail_softly(machine, capsys):
    """No ready-built xformers or sageattention is no reason to refuse to start."""
    machine.cuda = (13, 0)
    machine.failures = {"xformers": "No matching distribution", "sageattention": "No matching distribution"}
    assert launch.main(["setup"]) == 0
    assert capsys.readouterr().err.count("the program works without") == 2
    assert environment.stamp_path(machine.root).is_file()


def test_progress_is_numbered_and_leaves_stdout_alone(machine, capsys):
    """The stages count to their announced end, on stderr: stdout belongs to the child."""
    launch.main(["setup"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line[:5] for line in captured.err.splitlines() if line.startswith("[")] == [
        "[1/3]",
        "[2/3]",
        "[3/3]",
    ]
    assert "[3/3] Installing 2 packages (about 1 GB on the first start) ..." in captured.err


# The install plan


def arguments_of(platform, build, test=False):
    """The plan's pip arguments only."""
    return [step.arguments for step in environment.plan_install(platform, build, REQUIREMENTS, test)]


def test_plan_without_a_card():
    """Linux saves the CUDA download if it can; Windows and macOS take the default index as it is."""
    linux = environment.plan_install("linux", "cpu", REQUIREMENTS, False)
    assert [bool(step.without) for step in linux] == [True, False]
    assert linux[0].arguments[0] == PINNED and linux[0].arguments[-1].endswith("/cpu")
    assert arguments_of("win32", "cpu") == arguments_of("darwin", "cpu") == [("-r", "requirements.txt")]


@pytest.mark.parametrize(
    ("platform", "build", "torch"),
    [
        ("linux", "cu130", (PINNED,)),
        ("linux", "cu126", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu126")),
        ("win32", "cu130", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu130")),
        ("win32", "cu126", (PINNED, "--index-url", "https://download.pytorch.org/whl/cu126")),
    ],
)
def test_plan_with_a_card(platform, build, torch):
    """The CUDA build of torch comes first and from where it is; the speed-ups cannot replace it."""
    steps = environment.plan_install(platform, build, REQUIREMENTS, False)
    assert steps[0].arguments == torch and not steps[0].without
    assert steps[1].arguments == ("-r", "requirements.txt")
    names = [step.title.split()[0] for step in steps[2:]]
    assert names == ["triton-windows"] * (platform == "win32") + ["xformers", "sageattention"]
    assert all(step.without and "--no-deps" in step.arguments for step in steps[2:])


def test_plan_with_the_test_tools():
    """The test extra is one more step and not optional."""
    steps = environment.plan_install("win32", "cpu", REQUIREMENTS, True)
    assert steps[-1].arguments == ("-e", ".[test]") and not steps[-1].without


@pytest.mark.parametrize(
    ("platform", "cuda", "build"),
    [
        ("linux", None, "cpu"),
        ("linux", (13, 1), "cu130"),
        ("linux", (12, 8), "cu126"),
        ("win32", (13, 0), "cu130"),
        ("win32", (12, 4), "cu126"),
        ("darwin", (13, 0), "cpu"),
    ],
)
def test_torch_build_follows_the_driver(platform, cuda, build):
    """A CUDA 13 build does not run on an older driver."""
    assert environment.torch_build(platform, cuda) == build


def test_cuda_version_is_read_from_nvidia_smi():
    """The heading's CUDA version decides, not the driver's own number."""
    heading = "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |"
    assert environment.cuda_version(heading) == (13, 0)
    assert environment.cuda_version("NVIDIA-SMI has failed because it couldn't communicate with the driver.") is None


def test_requirements_pin_torch():
    """The launcher takes torch's version from requirements.txt, its only source."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert environment.torch_requirement(text) == PINNED
    assert text.rstrip().splitlines()[-1] == "-e ."
    with pytest.raises(environment.SetupError):
        environment.torch_requirement("torch>=2\n")


def test_pip_progress_counts():
    """pip's own lines become one short line."""
    progress = tool_run.PipProgress()
    for line in (
        "Collecting torch==2.13.0 (from -r requirements.txt (line 2))",
        "  Downloading torch-2.13.0-cp311-none-any.whl.metadata (29 kB)",
        "Collecting einops>=0.8",
        "Using cached einops-0.8.2-py3-none-any.whl (65 kB)",
        "Downloading torch-2.13.0-cp311-none-any.whl (812.3 MB)",
        "",
    ):
        progress.feed(line)
    expected = "1:05, 2 packages found, 2 fetched, torch-2.13.0-cp311-none-any.whl (812.3 MB)"
    assert progress.text(65.4) == expected
    progress.feed("Installing collected packages: einops, torch")
    assert progress.text(7).endswith("unpacking 2 packages")


def test_run_logged_keeps_output_and_code(tmp_path):
    """The log holds all that the tool printed, and the tool's exit code is not lost."""
    log = tmp_path / "install.log"
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    result, output = tool_run.run_logged([sys.executable, "-c", code], tmp_path, log, "a title")
    assert result == 3 and sorted(output) == ["one", "two"]
    assert "== a title" in log.read_text() and "two" in log.read_text()


def test_lock_admits_one(tmp_path):
    """Two double-clicks do not install into the same folder at once."""
    path = tmp_path / "lock"
    with tool_run.setup_lock(path), path.open("a+b") as other:
        assert not tool_run.try_lock(other.fileno())
    with path.open("a+b") as other:
        assert tool_run.try_lock(other.fileno())


# Arguments, the menu and the child


@pytest.mark.parametrize(
    ("arguments", "child"),
    [
        ("endframe --lang ja --port 7861", "webui/endframe_ichi.py --lang ja --port 7861"),
        ("f1 --plain", "webui/endframe_ichi_f1.py --plain"),
        ("oneframe", "webui/oneframe_ichi.py"),
        ("demo --json", "-m eichi_utils.cli demo --json"),
        ("doctor", "-m eichi_utils.cli doctor"),
        ("render a.png --help", "-m eichi_utils.cli render a.png --help"),
        ("test -k plan", "-m pytest -k plan"),
        ("test", "-m pytest"),
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


def test_child_gets_arguments_folder_and_environment(tmp_path):
    """A finished installation starts its part from any folder: arguments in, stdout and exit code out."""
    root = tmp_path / "a folder"
    (root / "webui").mkdir(parents=True)
    (root / "eichi_utils").mkdir()
    for name in (*STANDARD_LIBRARY_FILES, "requirements.txt", "pyproject.toml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    (root / "webui" / "endframe_ichi.py").write_text(
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
        [sys.executable, str(root / "launch.py"), "endframe", "--lang", "ru", "two words"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 7, result.stderr
    arguments, folder, utf8, prefix = json.loads(result.stdout.splitlines()[-1])
    assert arguments == ["--lang", "ru", "two words"]
    assert Path(folder) == root.resolve() and Path(prefix).name == ".venv"
    assert utf8 == "1"


# The .bat files


def batch_lines(name):
    """The lines of a .bat file, which must be CRLF and ASCII throughout: cmd.exe trips over anything else."""
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
    """There is one menu only."""
    assert 'call "%~dp0eichi.bat" %*' in batch_lines("Language_FramePack-eichi.bat")


def test_batch_helper_finds_python_and_reports_failure():
    """The helper tries `py -3`, then `python`, says so when there is neither and stays open on failure."""
    text = "\n".join(batch_lines("eichi.bat"))
    assert text.index("py -3") < text.index('set "EICHI_PYTHON=python"') < text.index("Python was not found")
    assert '%EICHI_PYTHON% "%~dp0launch.py" %*' in text
    assert text.count("pause") == 2
