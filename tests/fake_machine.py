"""Simulate a machine for the launcher's tests: nothing is installed or downloaded."""

import sys

import pytest

import launch
from eichi_utils.setup import environment, install_plan, tool_run

REQUIREMENTS = "# pins\ntorch==2.13.0\neinops>=0.8\n-e .\n"


class FakeMachine:
    """Stand in for venv, pip, the environment's Python and the NVIDIA driver, and keep the commands that were run.

    failures: beginning of a step's title -> output with which it fails. interrupt_at: title of the step that Ctrl-C ends.
    """

    def __init__(self, root):
        self.root = root
        self.commands = []
        self.failures = {}
        self.interrupt_at = None
        self.cuda = self.capability = self.report = None

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
        """Return whether an environment was made since the last call, and how often pip ran."""
        made = any("venv" in command for command in self.commands)
        pip_runs = sum("pip" in command for command in self.commands)
        self.commands.clear()
        return made, pip_runs


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a FakeMachine with a repository of two files, put in the place of the real tools."""
    (tmp_path / "requirements.txt").write_text(REQUIREMENTS)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    fake = FakeMachine(tmp_path)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(tool_run, "run_logged", fake.run_logged)
    monkeypatch.setattr(environment, "probe_python", fake.probe_python)
    monkeypatch.setattr(environment, "examine", lambda root: fake.report)
    monkeypatch.setattr(install_plan, "detect_cuda", lambda: fake.cuda)
    monkeypatch.setattr(install_plan, "detect_capability", lambda: fake.capability)
    monkeypatch.setattr(sys, "platform", "linux")
    return fake
