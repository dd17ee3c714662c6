"""Names of files and folders: how long one may be, and one that is harmless on every system made of somebody else's."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import PurePosixPath

# Of one name, on every common file system: bytes, on Windows units of UTF-16.
MOST_NAME = 255
# Of a name that we make, in bytes of UTF-8, so that others can be put before and behind it.
MOST_KEPT = 200
# Not allowed on Windows.
REFUSED = re.compile(r'[<>:"|?*]')
# Unicode's kinds of characters that nobody sees, and that turn around or hide what is seen; half a surrogate pair; line breaks.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Of these, those that Persian, the scripts of India and emoji are written with.
JOINERS = "\u200c\u200d"


def name_length(name: str) -> int:
    """Return how much of `MOST_NAME` a name takes on this system."""
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(name.encode(errors="surrogatepass"))


def harmless_name(name: str, most: int = MOST_KEPT) -> str:
    """Return the last part of a path of any system as a name for a file here, in the same letters of any script.

    What has more than `most` bytes of UTF-8 loses its beginning. "" if nothing is left.
    """
    base = PurePosixPath(name.replace("\\", "/")).name
    seen = "".join(character for character in base if unicodedata.category(character) not in UNSEEN)
    short = REFUSED.sub("_", seen).encode()[-most:].decode(errors="ignore")
    return short.strip().rstrip(". ")


def visible_name(name: str) -> str:
    """Return a name that a user gave without what nobody sees and what turns text around. What joins letters, which some
    scripts cannot be written without, stays."""
    return "".join(character for character in name if character in JOINERS or unicodedata.category(character) != "Cf")
