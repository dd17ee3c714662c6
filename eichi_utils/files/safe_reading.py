"""Read documents of unknown origin under limits: bytes, texts of any encoding, JSON and YAML.

Whatever a file holds, reading it ends soon, takes memory in proportion to the file, and gives values that can be stored and
written again: no endless nesting, no numbers of thousands of digits, no NaN, no lone surrogates.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from eichi_utils.files.encodings import likeliest

# Largest document in bytes. A request with a thousand prompts has half a megabyte; other programs' graphs have up to five.
MOST_BYTES = 16 * 2**20
# Deepest nesting. Python's own limit is a thousand calls, less what the caller has used.
DEEPEST = 64
# Largest number of an integer's digits: 64-bit numbers have up to 20. Python raises an error for thousands of them.
MOST_DIGITS = 20
# Largest number of YAML nodes, each of which takes 0.1 ms. A thousand sections with a prompt each have about 5,000.
MOST_NODES = 20_000
# Largest number of values in a JSON document, each of which takes 50 bytes or more. Other programs' graphs have some thousands.
MOST_VALUES = 300_000
# Longer marks come first: UTF-16's is the beginning of UTF-32's.
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Bytes in which UTF-16 without a mark is detected.
HEAD = 1024
# A string in a JSON document after its escapes were removed; the last may be unterminated.
QUOTED = re.compile(rb'"[^"]*"?')
# Placeholder of a value that cannot be stored.
UNSAFE = object()


class UnsafeError(ValueError):
    """Give the reason, in English, why a document is not read. It is a ValueError, as from any parser."""


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading in binary. Raises OSError as `open`, and UnsafeError for what is no regular file.

    Reading a pipe or a device might never end.
    """
    # O_NONBLOCK: opening a pipe without a writer would wait for ever. Windows has neither the flag nor such files.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeError("it is no regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return a regular file's content. Raises OSError, or UnsafeError if it has more than `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UnsafeError(f"it has more than {most // 2**20} MB")
    return data


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """Return a text file's content in any encoding; see `decode`. Raises OSError or UnsafeError."""
    return decode(read_bytes(path, most))


def decode(data: bytes) -> str:
    """Return the text of bytes: by byte order mark, else as UTF-8 or UTF-16, else in the likeliest encoding.

    Undecodable bytes become U+FFFD. Takes time in proportion to the bytes.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    # In UTF-16, every other byte of Western letters, digits and line ends is 0; other encodings have no 0.
    low, high = data[:HEAD:2].count(0), data[1:HEAD:2].count(0)
    if low != high and max(low, high) > min(len(data), HEAD) // 16:
        return data.decode("utf-16-le" if high > low else "utf-16-be", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode(likeliest(data), "replace")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON document. Bytes may have any encoding; see `decode`.

    Raises UnsafeError or another ValueError if it is no JSON, nested too deeply, has too many values, or a number or text that
    cannot be stored: NaN, 1e999, an integer of more than 20 digits, a lone surrogate.
    """
    value = _parsed(text, _integer, _finite)
    check_value(value)
    return value


def parse_json_parts(text: str | bytes) -> tuple[Any, bool]:
    """Return the value of a JSON document without the parts that `parse_json` refuses, and whether there were any.

    Raises UnsafeError or another ValueError if it is no JSON, too large, or nested so deeply that nothing is left.
    """
    value = _parsed(text, lambda digits: _or_unsafe(_integer, digits), lambda digits: _or_unsafe(_finite, digits))
    pruned = _pruned(value, DEEPEST)
    if pruned is UNSAFE:
        raise UnsafeError("nothing in it can be kept")
    return pruned, pruned != value


def _parsed(text: str | bytes, integer: Callable[[str], Any], number: Callable[[str], Any]) -> Any:
    text = decode(text) if isinstance(text, bytes) else text
    text = text.removeprefix("\ufeff")
    structure = text.encode(errors="surrogatepass").replace(rb"\\", b"").replace(rb"\"", b"")
    texts = structure.count(b'"') // 2
    if texts > MOST_VALUES or sum(map(QUOTED.sub(b"", structure).count, (b"[", b"{", b",", b":"))) > MOST_VALUES:
        raise UnsafeError(f"it has more than {MOST_VALUES} values")
    del structure
    try:
        return json.loads(text, parse_int=integer, parse_float=number, parse_constant=number)
    except RecursionError:
        raise UnsafeError(f"it is nested more than {DEEPEST} levels deep") from None


def _or_unsafe(read: Callable[[str], Any], digits: str) -> Any:
    try:
        return read(digits)
    except UnsafeError:
        return UNSAFE


def _pruned(value: Any, depth: int) -> Any:
    """Return a parsed value without its unsafe parts, or UNSAFE."""
    if isinstance(value, (dict, list)) and depth == 0:
        return UNSAFE
    if isinstance(value, dict):
        parts = ((_pruned(key, depth), _pruned(part, depth - 1)) for key, part in value.items())
        return {key: part for key, part in parts if key is not UNSAFE and part is not UNSAFE}
    if isinstance(value, list):
        return [part for one in value if (part := _pruned(one, depth - 1)) is not UNSAFE]
    return value if not isinstance(value, str) or _is_whole(value) else UNSAFE


def read_json(path: str | Path, most: int = MOST_BYTES) -> Any:
    """Return the value of a JSON file; see `parse_json`. Raises OSError or ValueError."""
    return parse_json(read_bytes(path, most))


def parse_yaml(data: str | bytes) -> Any:
    """Return the value of a YAML document that holds plain data: texts, decimal numbers, true and false, null.

    Bytes may have any encoding; see `decode`. Aliases, anchors and tags are refused; dates and numbers in base 60 are texts.
    Raises UnsafeError.
    """
    text = decode(data) if isinstance(data, bytes) else data
    try:
        value = PlainLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UnsafeError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Raise UnsafeError if a document is nested too deeply, or holds a lone surrogate, NaN, infinity or too long an integer."""
    level = [value]
    for _ in range(DEEPEST + 1):
        for one in level:
            _check_scalar(one)
        level = [part for one in level for part in _parts(one)]
        if not level:
            return
    raise UnsafeError(f"it is nested more than {DEEPEST} levels deep")


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if not _is_whole(value):
            raise UnsafeError("a text in it has half a surrogate pair")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UnsafeError(f"{value} is no number")
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise UnsafeError(f"a number of more than {MOST_DIGITS} digits")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > MOST_DIGITS:
        raise UnsafeError(f"a number of {count} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise UnsafeError(f"{digits[:20]} is no number")
    return number


# libyaml's parser is fifty times as fast; PyYAML's own is used if PyYAML was built without it.
_PARSERS = (
    (yaml.cyaml.CParser,)  # pyright: ignore[reportAttributeAccessIssue] (PyYAML's stubs leave it out)
    if yaml.__with_libyaml__
    else (Reader, Scanner, Parser)
)


class PlainLoader(Composer, *_PARSERS, SafeConstructor, Resolver):
    """Load plain data only, and no more than was written: with aliases, a few lines can be a document of any size."""

    def __init__(self, text: str):
        Composer.__init__(self)
        _PARSERS[0].__init__(self, text)
        for part in (*_PARSERS[1:], SafeConstructor, Resolver):
            part.__init__(self)
        self.nodes = self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next value as PyYAML's node. Raises YAMLError for an alias, a tag, or a value over the limits."""
        self.nodes += 1
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise yaml.YAMLError("anchors (&) and aliases (*) are not read")
        if self.nodes > MOST_NODES:
            raise yaml.YAMLError(f"more than {MOST_NODES} values")
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        if event.tag:
            raise yaml.YAMLError(f"tags ({event.tag[:60]}) are not read")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


# PyYAML reads these from the class. Left out are the rules for dates, base 60, other bases and merged mappings.
PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("null", r"(?:~|null|Null|NULL|)$", ("~", "n", "N", "")),
    ("int", rf"[-+]?(?:0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}})$", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,2})?$", "-+.0123456789"),
):
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
