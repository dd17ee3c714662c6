"""Change good files: their bytes, or their content in its own format, so that the change passes a reader's first check."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

# Values as they stand in a JSON document; most of them could not be written by Python's json module.
NASTY = (
    *("null", "true", "-1", "0", "1.5", "1e999", "-1e999", "1e-400", "NaN", "Infinity", "7" * 400, "-" + "7" * 5000, "9" * 19),
    *('""', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"a\\u001b[2J\\nb"', '"../../../etc/passwd"', '"/dev/zero"', '"/"'),
    *('"C:\\\\x"', '"猫"', '"\u0660\u0661"', '"\u00b2"', '"NaN"', '"1e999"', '"%s%n{0}{x}"', '{"\\ud800": 1}', '{"-1": "a"}'),
    *('"' + text + '"' for text in ("n" * 5000, "7" * 5000, "(" * 200, "a+" * 50, "\\n" * 20000)),
    *("[]", "{}", "[[]]", '[{"a": 1}]', '{"": ""}', '{"7": "a", "07": "b", "\u0667": "c"}', '[1, "a", null, {}]'),
    *("[" * 100 + "]" * 100, '{"a":' * 300 + "1" + "}" * 300, "[" * 5000, "[" + "1," * 3000 + "1]"),
    *('{"mode": "reverse"}', '"reverse"', "9223372036854775808"),
)
YAML = ("1:2:3", "2001-01-01", "!!timestamp x", "&a x", "*a", "0x1F", "? ", "|", "- - - -", "1:" * 3000 + "1")
LINES = ("Steps: 20, Seed: 5", "Negative prompt: x", "Seed: 7", "Section Prompt: a", "Section Number: 3", "a cat", "\n" * 5000)
MEMBERS = ("../x.png", "start.png", "000.png", "猫.png", "x" * 300, "a\nb.png", "sections.yaml", "append.safetensors")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
MOST = 4 * 2**20


def mutated(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return a changed file of at most MOST bytes. others: files of which parts may be inserted."""
    shaped = _shaped(data)
    if shaped and random.random() < 0.7:
        with suppress(ValueError, KeyError, struct.error, zipfile.BadZipFile, UnicodeError, RecursionError, OverflowError):
            data = shaped(data, random)
        if random.random() < 0.7:
            return data[:MOST]
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        data = _bytes_changed(data, others, random)
    return data[:MOST]


def _shaped(data: bytes) -> Callable[[bytes, Random], bytes] | None:
    if data.startswith(b"\x89PNG"):
        return _png
    if data.startswith(b"PK"):
        return _zip
    if data.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"{", b"[")):
        return lambda data, random: json_changed(data, random)
    if data[8:9] == b"{":
        return _safetensors
    if data[4:8] == b"ftyp":
        return _boxes
    return None


def _bytes_changed(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    size = len(data)
    # Half of the changes are among the first 400 bytes, which describe the rest.
    at = random.randrange(size + 1) if random.random() < 0.5 else random.randrange(min(size, 400) + 1)
    length = random.choice((1, 2, 4, 8, 64, 1000))
    kind = random.randrange(9)
    if kind == 0 and at < size:
        return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
    if kind == 1 and at < size:
        return data[:at] + random.choice((b"\0", b"\xff", b"\x80", b"\x7f", b"%", b'"')) + data[at + 1 :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[: at + length] + data[at : at + length] * random.choice((1, 2, 50)) + data[at + length :]
    if kind == 5 and others:
        other = random.choice(others)
        return data[:at] + other[random.randrange(len(other) + 1) :]
    if kind == 6:
        code = random.choice("<>") + random.choice("HIQ")
        number = random.choice(NUMBERS) & (2 ** (8 * struct.calcsize(code)) - 1)
        return data[:at] + struct.pack(code, number) + data[at + struct.calcsize(code) :]
    if kind == 7:
        return data[:at] + random.randbytes(length) + data[at + length :]
    return data[:at] + random.randbytes(length) + data[at:]


def json_changed(data: bytes, random: Random) -> bytes:
    """Change some values and keys of a JSON document, and encode it in one of several encodings."""
    document = json.loads(data.decode("utf-8-sig"))
    holes: list[str] = []
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        document = _document_changed(document, random, holes)
    text = json.dumps(document, ensure_ascii=random.random() < 0.5)
    for number, raw in enumerate(holes):
        text = text.replace(f'"@hole{number}@"', raw)
    coding = random.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp932", "cp1251"))
    return text.encode(coding, "replace")


def _document_changed(value: Any, random: Random, holes: list[str]) -> Any:
    """Change one place of a document. Values from NASTY are put in as numbered holes, to be filled in the text."""
    inside = isinstance(value, (dict, list)) and value and random.random() < 0.85
    if not inside:
        holes.append(random.choice(NASTY))
        hole = f"@hole{len(holes) - 1}@"
        return {**value, hole: 1} if isinstance(value, dict) and holes[-1].startswith('"') and random.random() < 0.3 else hole
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    if random.random() < 0.1:
        return {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else value[:key] + value[key + 1 :]
    if isinstance(value, list):
        copies = random.choice((1, 1, 1, 2, 200)) if random.random() < 0.2 else 1
        return value[:key] + [_document_changed(value[key], random, holes)] * copies + value[key + 1 :]
    changed = {**value, key: _document_changed(value[key], random, holes)}
    if random.random() < 0.1:
        # Take another field's value, which often has another type.
        changed[key] = value[random.choice(keys)]
    return changed


def _safetensors(data: bytes, random: Random) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], data[8 + length :]
    header = json_changed(header, random)
    header += b" " * (-len(header) % 8)
    length = len(header) if random.random() < 0.9 else random.choice(NUMBERS)
    return struct.pack("<Q", length) + header + (body if random.random() < 0.9 else body[: random.randrange(len(body) + 1)])


def _png(data: bytes, random: Random) -> bytes:
    """Change the chunks of a PNG and keep their checksums right: other content, repeated, shuffled, removed, or new texts."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = random.randrange(len(chunks))
    name, content = chunks[number]
    kind = random.randrange(6)
    if kind == 0:
        chunks[number] = (name, _bytes_changed(content, [c for _, c in chunks], random))
    elif kind == 1:
        at = random.randrange(len(chunks))
        chunks[at:at] = [chunks[number]] * random.choice((1, 1, 1, 200))
    elif kind == 2:
        random.shuffle(chunks)
    elif kind == 3:
        del chunks[number]
    elif kind == 4 and name in (b"tEXt", b"iTXt") and b"{" in content:
        at = content.index(b"{")
        chunks[number] = (name, content[:at] + json_changed(content[at:], random))
    else:
        chunks.insert(1, _text_chunk(random))
    return data[:8] + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _text_chunk(random: Random) -> tuple[bytes, bytes]:
    key = random.choice((b"parameters", b"eichi", b"prompt", b"seed", b"XML:com.adobe.xmp", b"section_number", b"Comment"))
    text = "\n".join(random.choice((*LINES, *NASTY)) for _ in range(random.choice((1, 3, 30)))).encode(errors="replace")
    if random.random() < 0.5:
        return b"tEXt", key + b"\0" + text
    packed = random.random() < 0.5
    big = text + bytes(random.choice((0, 0, 3_000_000))) if packed else text
    return b"iTXt", key + b"\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(big) if packed else text)


def _zip(data: bytes, random: Random) -> bytes:
    """Change the members of a ZIP and keep their checksums right: other contents, names and kinds of compression."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    number = random.randrange(len(members))
    name, content = members[number]
    kind = random.randrange(5)
    if kind == 0:
        members[number] = (name, mutated(content, [c for _, c in members], random))
    elif kind == 1:
        members[number] = (random.choice(MEMBERS), content)
    elif kind == 2:
        members.append(members[number])
    elif kind == 3 and not name.endswith((".yaml", ".yml")):
        # Much content that takes few bytes when it is compressed.
        members[number] = (name, content + bytes(random.choice((2**18, 2**24))))
    else:
        texts = [number for number, (name, _) in enumerate(members) if name.endswith((".yaml", ".yml"))]
        for number in texts:
            members[number] = (members[number][0], _yaml(members[number][1], random))
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", random.choice(METHODS)) as written:
        warnings.simplefilter("ignore")
        for name, content in members:
            written.writestr(name, content)
    return target.getvalue()


def _yaml(data: bytes, random: Random) -> bytes:
    """Change one line of a YAML document: its value, the whole line, a repeated line, or a line that is cut off."""
    lines = data.decode(errors="replace").splitlines()
    number = random.randrange(len(lines))
    nasty = random.choice((*NASTY, *YAML))
    kind = random.randrange(4)
    if kind == 0:
        lines[number] = re.sub(r":.*", lambda found: f": {nasty}", lines[number])
    elif kind == 1:
        lines.insert(number, random.choice(lines))
    elif kind == 2:
        lines[number] = re.sub(r"\S.*", lambda found: nasty, lines[number])
    else:
        lines[number] = lines[number][: random.randrange(len(lines[number]) + 1)]
    return "\n".join(lines).encode()


def _boxes(data: bytes, random: Random) -> bytes:
    """Change the size of an MP4 box, or one of the first numbers in it."""
    places = [found.start() - 4 for found in re.finditer(rb"[a-z]{3}[a-z0-9 ]", data) if found.start() >= 4]
    at = random.choice(places)
    sizes = (*NUMBERS[:10], random.randrange(2**16), struct.unpack_from(">I", data, at)[0] + random.choice((-8, -1, 1, 8)))
    if random.random() < 0.5:
        at += 8 + 4 * random.randrange(6)
    return data[:at] + struct.pack(">I", random.choice(sizes) % 2**32) + data[at + 4 :]
