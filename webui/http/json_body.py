"""How much a JSON body would become, counted by its signs while it comes: reading it stops everything else meanwhile."""

from __future__ import annotations

import re

# Signs outside of strings: brackets, commas, and quotes that begin one. Each value has one to three of them, and the largest
# form, with a hundred sections, some thousand. And levels of one body.
SIGNS, LEVELS = 100_000, 64

STRUCTURE = re.compile(rb'["\[\]{},]')
IN_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class Values:
    """Counts signs and levels of a JSON text that comes in pieces. Whether it is JSON at all is for who reads it to find."""

    def __init__(self) -> None:
        self.signs, self.level = 0, 0
        self._in_string = False
        self._before = b""

    def are_too_many(self, piece: bytes) -> bool:
        """Take the next piece. Whether there are more than anybody needs, or bytes that no UTF-8 JSON has.

        Other encodings have a zero in each of the signs that are counted here.
        """
        piece, at = self._before + piece, 0
        self._before = b""
        if b"\0" in piece:
            return True
        while at < len(piece):
            if self._in_string:
                # It matches nothing at least.
                at = text.end() if (text := IN_STRING.match(piece, at)) else at
                if piece[at : at + 1] == b'"':
                    self._in_string = False
                    at += 1
                else:
                    # Nothing more, or a backslash without what it stands before.
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
