"""Look for NaN and infinity in a file's tensors, a piece at a time: a large file is never in memory as a whole.

One such number makes a whole film black, which shows only when it is computed. Numbers are judged by their bits, so that
formats that numpy does not know need no conversion; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy

from lora_utils.files import Header, LoraError

# Bytes that are read at a time.
PIECE = 2**22
# By dtype: an unsigned integer of the same width, the mask of all bits but the sign's, and the least masked value that is not
# finite. Factors are computed with in float32 at most, so for F64 that is what rounds to infinity there: 2**128 - 2**103.
# E4M3 has no infinity, and NaN in its last code alone (https://arxiv.org/abs/2209.05433).
FORMATS = {
    "F64": ("<u8", 0x7FFFFFFFFFFFFFFF, 0x47EFFFFFF0000000),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E5M2": ("u1", 0x7F, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
}


def first_not_finite(path: Path, header: Header, keys: Iterable[str]) -> str | None:
    """Return the name of the first of these tensors, by their places in the file, with NaN or infinity in it.

    None where all are finite. Raises LoraError ("unreadable").
    """
    buffer = bytearray(PIECE)
    try:
        with path.open("rb") as stream:
            for key in sorted(keys, key=header.places.__getitem__):
                if header.dtypes[key] in FORMATS and not _finite(stream, header, key, buffer):
                    return key
    except OSError as error:
        raise LoraError("unreadable", file=str(path), reason=error.strerror or str(error)) from None
    return None


def _finite(stream, header: Header, key: str, buffer: bytearray) -> bool:
    kind, magnitude, least = FORMATS[header.dtypes[key]]
    begin, end = header.places[key]
    stream.seek(begin)
    while begin < end:
        count = stream.readinto(memoryview(buffer)[: min(PIECE, end - begin)])
        if not count:
            # The file became shorter meanwhile; loading it reports that.
            return True
        numbers = numpy.frombuffer(buffer, kind, count // numpy.dtype(kind).itemsize)
        if len(numbers) and (numbers & numbers.dtype.type(magnitude)).max() >= least:
            return False
        begin += count
    return True
