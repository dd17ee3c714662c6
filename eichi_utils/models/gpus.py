"""NVIDIA cards as their driver describes them: for what has to answer before torch is there."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from dataclasses import dataclass

QUERY = "name,driver_version,compute_cap,memory.total,memory.free"
MIB = 2**20
SECONDS = 60


@dataclass(frozen=True)
class Card:
    """total, free: bytes. capability: of computing, such as (8, 9)."""

    name: str
    driver: str
    capability: tuple[int, int]
    total: int
    free: int


def cards() -> tuple[Card, ...]:
    """The cards that a program may use here, in its order; empty without a working driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return visible(read(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES")) if done.returncode == 0 else ()


def read(text: str) -> tuple[Card, ...]:
    """The driver's lines; those with values it does not know ("[N/A]") are left out."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        try:
            name, driver, capability, total, free = row
            major, minor = map(int, capability.split("."))
            found.append(Card(name, driver, (major, minor), int(total) * MIB, int(free) * MIB))
        except ValueError:
            continue
    return tuple(found)


def visible(found: tuple[Card, ...], wanted: str | None) -> tuple[Card, ...]:
    """Those that the variable CUDA_VISIBLE_DEVICES leaves; names it may hold instead of numbers are left to torch."""
    numbers = None if wanted is None else [number.strip() for number in wanted.split(",") if number.strip()]
    if numbers is None or not all(number.lstrip("-").isdecimal() for number in numbers):
        return found
    chosen = []
    for number in map(int, numbers):
        # The first number that is none ends the list.
        if not 0 <= number < len(found):
            break
        chosen.append(found[number])
    return tuple(chosen)
