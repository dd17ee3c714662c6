"""Limit the number of values in a JSON body while its bytes come in, because parsing a huge one blocks the event loop."""

from __future__ import annotations

import re

# The most structural characters outside of strings (brackets, commas, opening quotes), and the deepest nesting. A value has one
# to three such characters; the largest form, with a hundred sections, has some thousand.
SIGNS, LEVELS = 100_000, 64

STRUCTURE = re.compile(rb'["\[\]{},]')
IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class Values:
    """Count structural characters and nesting levels of a JSON text that comes in pieces. The syntax is not checked here."""

    def __init__(self) -> None:
        self.signs, self.level = 0, 0
        self._in_string = False
        self._before = b""

    def are_too_many(self, piece: bytes) -> bool:
        """Count the next piece; return True if there are too many, or a zero byte, which JSON in UTF-8 never has.

        Other encodings of JSON (UTF-16, UTF-32) have a zero byte in each structural character.
        """
        piece, at = self._before + piece, 0
        self._before = b""
        if b"\0" in piece:
            return True
        while at < len(piece):
            if self._in_string:
                # The pattern always matches, at least the empty string.
                at = text.end() if (text := IN_STRING.match(piece, at)) else at
                if piece[at : at + 1] == b'"':
                    self._in_string = False
                    at += 1
                else:
                    # The piece ends, perhaps with a backslash whose next character is still to come.
                    self._before = piece[at:]
                    break
            found = STRUCTURE.search(piece, at)
            if not found:
                break
            at = found.end()
            sign = found[0]
            self._in_string = sign == b'"'
            self.signs += 1
            self.level += (sign in b"[{") - (sign in b"]}")
            if self.signs > SIGNS or self.level > LEVELS:
                return True
        return False
