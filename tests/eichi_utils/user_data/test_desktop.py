"""Test opening a folder: only for users at this machine, and only where it has a desktop."""

from __future__ import annotations

from pathlib import Path

import pytest

from eichi_utils.user_data import desktop


@pytest.mark.parametrize(
    ("address", "same"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("192.168.1.7", False), (None, False), ("testclient", False)],
)
def test_who_sits_at_the_machine(address: str | None, same: bool) -> None:
    """Folders are opened only for a user at the machine: a window on a server's desk helps nobody."""
    assert desktop.same_machine(address) is same


def test_each_systems_file_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux without a display has none."""
    monkeypatch.setattr(desktop.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert desktop.file_manager("win32", {}) == "explorer"
    assert desktop.file_manager("darwin", {}) == "/usr/bin/open"
    assert desktop.file_manager("linux", {"DISPLAY": ":0"}) == "/usr/bin/xdg-open"
    assert desktop.file_manager("linux", {"WAYLAND_DISPLAY": "w"}) == "/usr/bin/xdg-open"
    assert desktop.file_manager("linux", {}) is None


def test_the_folder_is_an_argument_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name is, no shell reads it; a file manager that does not start is no crash."""
    started = []
    monkeypatch.setattr(desktop, "file_manager", lambda platform, environment: "fm")
    monkeypatch.setattr(desktop.subprocess, "Popen", lambda command, **settings: started.append((command, settings)))
    folder = tmp_path / "a b; rm"
    assert desktop.open_folder(folder) is False
    folder.mkdir()
    assert desktop.open_folder(folder) is True
    ((command, settings),) = started
    assert command == ["fm", str(folder)] and "shell" not in settings

    def fail(command: list[str], **settings: object) -> None:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(desktop.subprocess, "Popen", fail)
    assert desktop.open_folder(folder) is False
