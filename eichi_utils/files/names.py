"""Measure names of files and folders, and turn a foreign name into one that is harmless on every system."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePosixPath

# Longest name on every common file system, in bytes (on Windows in UTF-16 units).
MOST_NAME = 255
# Longest name that we make, in bytes of UTF-8; room is left for a prefix and an ending.
MOST_KEPT = 200
# Characters that Windows does not allow.
REFUSED = re.compile(r'[<>:"|?*]')
# Unicode categories that are invisible or change the order of text: control and format characters, lone surrogates, line and
# paragraph separators.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Format characters that Persian, the scripts of India and emoji need.
JOINERS = "\u200c\u200d"


def name_length(name: str) -> int:
    """Return the length of a name in the units of `MOST_NAME` on this system."""
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(name.encode(errors="surrogatepass"))


def harmless_name(name: str, most: int = MOST_KEPT) -> str:
    """Return the last part of a path of any system as a name for a file here, in the letters of any script.

    A name of more than `most` bytes of UTF-8 loses its beginning. "" if nothing is left.
    """
    base = PurePosixPath(name.replace("\\", "/")).name
    seen = "".join(character for character in base if unicodedata.category(character) not in UNSEEN)
    short = REFUSED.sub("_", seen).encode()[-most:].decode(errors="ignore")
    return short.strip().rstrip(". ")


def visible_name(name: str) -> str:
    """Return a user's name for a file without invisible characters and those that change the order of text.

    The joiners (`JOINERS`) stay, as some scripts cannot be written without them.
    """
    return "".join(character for character in name if character in JOINERS or unicodedata.category(character) != "Cf")
