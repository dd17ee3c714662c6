"""Determine how strongly a file's updates act at strength 1.

Needs no torch, so that a file is refused before anything is loaded.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from lora_utils.files import Header, LoraError
from lora_utils.formats import DORA_FLAG, STABILISED_FLAG, Entry, Layout
from lora_utils.peft import Scaling, config_of, first_unread, scaling_metadata

# The largest number of float16. Trainers' scales are between 0.01 and 100; with 1e308 every number would become infinite.
LARGEST_SCALE = 65504.0
# struct's format of one number of each dtype; `read_number` widens the dtypes that struct does not know.
NUMBERS = {
    "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
    "U64": "<Q", "U32": "<I", "U16": "<H", "U8": "<B", "BOOL": "<?",
}  # fmt: skip


def scale_of(entry: Entry, alpha: float | None, said: Scaling, stabilised: bool) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) where the file says that it is rank-stabilised; 1 without an alpha.

    Rank-stabilised: https://arxiv.org/abs/2312.03732. alpha: that of the file's own tensors, None without one. stabilised: what
    the flag beside them says; it speaks of LoRA alone, because its trainer ignores it for other kinds. LyCORIS' `rs_lora` in a
    file's metadata changes nothing: the alpha that it writes has been multiplied by sqrt(rank), so that alpha / rank is right.

    Two whole matrices have no rank, and LyCORIS ignores their alpha: their scale is 1.
    """
    if not entry.rank:
        return 1.0
    if alpha is not None:
        return alpha / (math.sqrt(entry.rank) if stabilised and entry.kind == "LoRA" else entry.rank)
    if (alpha := said.alpha_of(entry.name)) is None:
        return 1.0
    return alpha / (math.sqrt(entry.rank) if said.stabilised else entry.rank)


def check_alphas(path: Path, header: Header, layout: Layout) -> None:
    """Check how strongly a file says that it acts.

    Raises LoraError if it is not understood or far too strong, and for a file that says it is a DoRA.
    """
    scaling = scaling_metadata(path, header)
    said = config_of(scaling, str(path))
    if pattern := first_unread(scaling):
        raise LoraError("pattern", file=str(path), pattern=pattern[:80].encode(errors="replace").decode())
    if said.dora:
        raise LoraError("dora", file=str(path), example="use_dora")
    if DORA_FLAG in layout.flags and read_number(path, header, DORA_FLAG):
        raise LoraError("dora", file=str(path), example=DORA_FLAG)
    stabilised = STABILISED_FLAG in layout.flags and bool(read_number(path, header, STABILISED_FLAG))
    for entry in layout.entries:
        key = entry.keys.get("alpha")
        scale = scale_of(entry, read_number(path, header, key) if key else None, said, stabilised)
        # Written with `not`, so that NaN, which compares false with every number, is refused too.
        if not abs(scale) <= LARGEST_SCALE:
            name = key or f"lora_alpha ({entry.name})"
            if not math.isfinite(scale):
                raise LoraError("not_finite", file=str(path), name=name)
            raise LoraError("scale", file=str(path), name=name, scale=f"{scale:g}")


def read_number(path: Path, header: Header, key: str) -> float:
    """Return the value of a tensor of one number. Raises LoraError ("unreadable", "damaged", "dtype")."""
    begin, end = header.places[key]
    try:
        with path.open("rb") as stream:
            stream.seek(begin)
            data = stream.read(end - begin)
    except OSError as error:
        raise LoraError("unreadable", file=str(path), reason=error.strerror or str(error)) from None
    if len(data) < end - begin:
        raise LoraError("damaged", file=str(path), expected=end, actual=begin + len(data))
    dtype = header.dtypes[key]
    if dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    if dtype == "F8_E5M2":
        return struct.unpack("<e", b"\0" + data)[0]
    if dtype == "F8_E4M3":
        # Its exponent is biased by 7, half precision's by 15.
        wide = (data[0] & 0x80) << 8 | (data[0] & 0x7F) << 7
        return math.nan if data[0] & 0x7F == 0x7F else struct.unpack("<e", wide.to_bytes(2, "little"))[0] * 2.0**8
    if dtype not in NUMBERS:
        raise LoraError("dtype", file=str(path), name=key, dtype=dtype)
    return float(struct.unpack(NUMBERS[dtype], data)[0])
