"""Show a folder in the file manager of the user's desktop."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def same_machine(address: str | None) -> bool:
    """Say whether a browser at this address runs on the same machine as the program."""
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return address == "localhost"


def file_manager(platform: str, environment: Mapping[str, str]) -> str | None:
    """Return the command that shows a folder, or None if there is no desktop."""
    if platform == "win32":
        return "explorer"
    if platform == "darwin":
        return shutil.which("open")
    desktop = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return shutil.which("xdg-open") if desktop else None


def open_folder(folder: Path) -> bool:
    """Show the folder, without waiting for the file manager. Returns False if that is not possible."""
    command = file_manager(sys.platform, os.environ)
    if command is None or not folder.is_dir():
        return False
    nowhere = subprocess.DEVNULL
    try:
        subprocess.Popen(
            [command, str(folder.resolve())], start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
    except OSError:
        return False
    return True
