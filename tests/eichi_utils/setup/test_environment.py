"""Test making and updating .venv: its state, what is installed, and recovery from failures."""

import os
import re
import sys
import venv
from pathlib import Path

import pytest

import launch
from eichi_utils.setup import environment, install_plan, installed
from tests.fake_machine import REQUIREMENTS

PINNED = "torch==2.13.0"


def stamp(**changes):
    """Return a stamp like that of a finished CPU installation, with changes."""
    return environment.Stamp(**{"fingerprint": "a", "torch_build": "cpu", "root": "/here", "test": False, **changes})


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
        (stamp(), "3.11", stamp(speed_ups=False), "outdated"),
        (stamp(speed_ups=False), "3.11", stamp(), "outdated"),
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
    """A stamp that is written and read again is equal to the first."""
    assert environment.Stamp.from_json(stamp(test=True).to_json()) == stamp(test=True)


@pytest.mark.process
def test_probe_refuses_what_is_no_python(tmp_path):
    """A missing or damaged interpreter is reported as such, not raised."""
    assert environment.probe_python(tmp_path / "missing") is None
    damaged = tmp_path / "python"
    damaged.write_text("no program")
    damaged.chmod(0o755)
    assert environment.probe_python(damaged) is None


# Setting up


def test_installs_once(machine):
    """The first start installs, and the second does nothing."""
    assert launch.main(["setup"]) == 0
    made, pip_runs = machine.made()
    assert made and pip_runs
    assert launch.main(["setup"]) == 0
    assert machine.made() == (False, 0)


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_changed_requirements_install_into_the_environment(machine, name):
    """After an update with changed requirements only pip runs; the environment itself stays."""
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
    machine.interrupt_at = install_plan.plan_install("linux", "cpu", REQUIREMENTS, False)[-1].title
    assert launch.main(["setup"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not environment.stamp_path(machine.root).exists()
    machine.interrupt_at = None
    machine.made()
    assert launch.main(["setup"]) == 0
    assert machine.made()[0]


def report(machine, **changes):
    """Return the report of a complete environment without a card, with changes."""
    usual = {"python": environment.OWN_VERSION, "prefix": str(machine.root / ".venv"), "torch": "2.13.0+cpu"}
    return {**usual, "complete": True, "pip": True, "test": False, "speed_ups": False, **changes}


def made_by_hand(machine):
    """Make an environment with an interpreter and no stamp."""
    interpreter = environment.venv_python(machine.root)
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("")


@pytest.mark.parametrize("test", [False, True])
def test_a_complete_environment_without_a_stamp_is_taken_as_it_is(machine, test):
    """`launch.py render --help` deleted an environment that had everything, test tools too, and installed it again without
    them, because it had no stamp."""
    made_by_hand(machine)
    machine.report = report(machine, test=test)
    assert launch.main(["setup"]) == 0
    assert machine.made() == (False, 0)
    assert environment.read_stamp(environment.stamp_path(machine.root)).test is test
    machine.report = None
    assert launch.main(["setup"]) == 0
    assert machine.made() == (False, 0)
    assert launch.main(["setup", "--test"]) == 0
    assert machine.made() == (False, 0 if test else 3)


def test_an_incomplete_environment_without_a_stamp_is_added_to(machine):
    """An incomplete environment without a stamp, made by hand or by a version with another stamp, is completed."""
    made_by_hand(machine)
    environment.stamp_path(machine.root).write_text('{"unknown": 1}')
    machine.report = report(machine, complete=False, test=True)
    machine.failures = {"2 packages": "NewConnectionError"}
    assert launch.main(["setup"]) == 1
    machine.failures = {}
    assert launch.main(["setup"]) == 0
    assert any(".[test]" in command for command in machine.commands)
    assert not machine.made()[0]


@pytest.mark.parametrize("changes", [{"torch": None}, {"prefix": "/elsewhere"}, {"complete": False, "pip": False}])
def test_what_is_of_no_use_is_made_anew(machine, changes):
    """An environment without torch or pip, or with another environment's Python, is made anew."""
    made_by_hand(machine)
    machine.report = report(machine, **changes)
    assert launch.main(["setup"]) == 0
    assert machine.made()[0]


@pytest.mark.parametrize("begun", ["anew", "into the old one"])
def test_an_installation_that_was_killed_is_made_anew_with_what_was_wanted(machine, begun):
    """A killed installation is made anew with all that was wanted; a plain start after a killed `setup --test` left the test
    tools out."""
    if begun == "into the old one":
        launch.main(["setup"])
    machine.interrupt_at = "the test tools"
    assert launch.main(["setup", "--test", "--no-speed-ups"]) == 130
    machine.interrupt_at, machine.report = None, report(machine)
    machine.made()
    assert launch.main(["setup"]) == 0
    assert any(".[test]" in command for command in machine.commands)
    assert machine.made()[0]
    stamp = environment.read_stamp(environment.stamp_path(machine.root))
    assert stamp.test and not stamp.speed_ups
    assert launch.main(["setup"]) == 0
    assert machine.made() == (False, 0)


@pytest.mark.parametrize(
    ("version", "platform", "build"),
    [
        ("2.13.0+cpu", "linux", "cpu"),
        ("2.13.0+cu126", "win32", "cu126"),
        ("2.13.0", "linux", "cu130"),
        ("2.13.0", "win32", "cpu"),
        ("2.13.0", "darwin", "cpu"),
    ],
)
def test_an_installed_torch_says_its_build(version, platform, build):
    """A CPU build must not pass for one that uses a card, nor the other way round."""
    assert environment.installed_build(version, platform) == build


def test_what_is_installed_is_found_out(tmp_path):
    """The environment's Python reports what is installed: versions, conditions, and whether our packages are those of this
    folder."""
    requirements = "# pins\ntorch>=2  # the networks\npillow\nnothing-like-it; python_version < '3'\n-e .\n"
    (tmp_path / "requirements.txt").write_text(requirements)
    found = installed.report(tmp_path)
    assert found["python"] == environment.OWN_VERSION and found["prefix"] == sys.prefix
    assert found["torch"].startswith("2.") and found["test"]
    assert not found["complete"]
    for line in ("torch>=2", "nothing-like-it; python_version < '3'", "-e ."):
        assert installed.is_satisfied(line, launch.ROOT), line
    for line in ("torch>=99", "nothing-like-it", "-r other.txt", ""):
        assert not installed.is_satisfied(line, launch.ROOT), line
    assert not installed.is_satisfied("-e .", tmp_path)
    (tmp_path / "requirements.txt").write_text(requirements.replace("-e .\n", ""))
    assert installed.report(tmp_path)["complete"]


@pytest.mark.process
def test_an_environment_is_asked_by_its_own_python(tmp_path):
    """An environment whose Python does not run, or answers nothing that can be read, counts as empty."""
    assert environment.examine(tmp_path) is None
    venv.create(tmp_path / ".venv", symlinks=os.name != "nt")
    assert environment.examine(tmp_path) is None
    (tmp_path / "requirements.txt").write_text("torch\n")
    found = environment.examine(tmp_path)
    assert Path(found["prefix"]) == tmp_path / ".venv"
    assert (found["complete"], found["pip"], found["torch"]) == (False, False, None)


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
    """If an update fails without a network, the next start repeats the update and not the whole download."""
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


def named(machine):
    """Return the packages that pip was asked for since the last call, without versions."""
    names = [command[-1] for command in machine.commands if "pip" in command]
    machine.commands.clear()
    return [re.split("[<>=]", name)[0] for name in names]


def test_what_is_optional_fits_the_card_and_can_be_left_out(machine, capsys):
    """Optional packages fit the card, and once refused they stay away at every later update until they are asked for again."""
    machine.cuda, machine.capability = (13, 0), (9, 0)
    launch.main(["setup"])
    assert named(machine)[-1] == "fa3-fwd"
    assert "--no-speed-ups" in capsys.readouterr().err
    launch.main(["setup", "--no-speed-ups"])
    assert "fa3-fwd" not in named(machine)
    launch.main(["setup"])
    assert machine.made() == (False, 0)
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    launch.main(["setup"])
    assert named(machine) and "fa3-fwd" not in named(machine)
    launch.main(["setup", "--speed-ups", "--test"])
    assert "fa3-fwd" in named(machine)


def test_both_at_once_are_refused(machine, capsys):
    assert launch.main(["setup", "--speed-ups", "--no-speed-ups"]) == 2
    assert machine.made() == (False, 0)


def test_a_stamp_from_before_counts_as_with_speed_ups():
    """An update of the program alone must not reinstall anything."""
    text = stamp().to_json().replace(',\n "speed_ups": true', "")
    assert "speed_ups" not in text and environment.Stamp.from_json(text) == stamp()


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
