"""What the user's own desktop does for us: showing a folder in its file manager."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def same_machine(address: str | None) -> bool:
    """Whether a browser at this address runs on the machine that the program runs on."""
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return address == "localhost"


def file_manager(platform: str, environment: Mapping[str, str]) -> str | None:
    """The command that shows a folder, or None where there is no desktop to show it on."""
    if platform == "win32":
        return "explorer"
    if platform == "darwin":
        return shutil.which("open")
    desktop = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return shutil.which("xdg-open") if desktop else None


def open_folder(folder: Path) -> bool:
    """Show the folder; False where that is not possible. Does not wait for the file manager."""
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
