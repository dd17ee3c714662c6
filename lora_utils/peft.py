"""How PEFT and diffusers scale an adapter: in a file's metadata, or in adapter_config.json beside it. Needs no torch.

https://huggingface.co/docs/peft/package_reference/lora: lora_alpha, alpha_pattern, use_rslora.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_utils.files import Header, LoraError

# Names have some fifty characters: what so many of these can do to one is over at once, unless groups are repeated.
LONGEST_PATTERN, MOST_QUANTIFIERS = 200, 3
QUANTIFIER, AFTER_GROUP = re.compile(r"[*+?{]"), re.compile(r"\)[*+{]")
# What stands before a module's own name in a file, one after the other; PEFT's expressions are for that name.
PREFIXES = ("base_model.model.", "base_model.", "diffusion_model.", "transformer.", "unet.", "model.", "module.", "_orig_mod.")
KEY, CONFIG, MODEL = "lora_adapter_metadata", "adapter_config.json", "adapter_model.safetensors"


def config_beside(path: Path) -> Path | None:
    """PEFT writes an adapter's alpha into a file beside it; only beside a file of PEFT's own name it is that one's."""
    if path.name != MODEL:
        return None
    beside = path.with_name(CONFIG)
    return beside if beside.is_file() else None


def scaling_metadata(path: Path, header: Header) -> Mapping[str, str]:
    """The file's own metadata, and what stands beside it. Raises LoraError ("unreadable")."""
    beside = config_beside(path)
    if beside is None or KEY in header.metadata:
        return header.metadata
    try:
        return {KEY: beside.read_text(encoding="utf-8", errors="replace"), **header.metadata}
    except OSError as error:
        raise LoraError("unreadable", file=str(beside), reason=error.strerror or str(error)) from None


def config_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """lora_alpha, alpha_pattern and use_rslora of the transformer's adapter; empty if they are not said."""
    try:
        document = json.loads(metadata.get(KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    plain = {str(key).removeprefix("transformer."): value for key, value in document.items()}
    pattern = plain.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        return {}
    if not all(isinstance(value, (int, float)) for value in (plain.get("lora_alpha"), *pattern.values())):
        return {}
    return {"lora_alpha": plain["lora_alpha"], "alpha_pattern": pattern, "use_rslora": bool(plain.get("use_rslora"))}


def means(pattern: str, name: str) -> bool:
    """Whether a key of alpha_pattern speaks of the layer of this name in a file: its end, or a regular expression for it, as
    PEFT reads them. Of an expression that `first_unread` finds only the former is tried."""
    if f".{name}".endswith(f".{pattern}"):
        return True
    return _is_read(pattern) and any(re.match(rf"(.*\.)?({pattern})$", own) for own in _without_prefixes(name))


def first_unread(metadata: Mapping[str, str]) -> str | None:
    """The first expression of alpha_pattern that is none, or whose reading could take for ever."""
    config = config_of(metadata)
    return next((pattern for pattern in config.get("alpha_pattern", ()) if not _is_read(pattern)), None)


def _is_read(pattern: str) -> bool:
    if len(pattern) > LONGEST_PATTERN or len(QUANTIFIER.findall(pattern)) > MOST_QUANTIFIERS or AFTER_GROUP.search(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _without_prefixes(name: str) -> list[str]:
    names = [name]
    while prefix := next((one for one in PREFIXES if names[-1].startswith(one)), None):
        names.append(names[-1].removeprefix(prefix))
    return names


def first_alpha_not_finite(metadata: Mapping[str, str]) -> str | None:
    """JSON as Python writes it can hold NaN and Infinity, and integers that no float can hold."""
    config = config_of(metadata)
    if not config:
        return None
    named = {
        "lora_alpha": config["lora_alpha"],
        **{f"alpha_pattern.{name}": it for name, it in config["alpha_pattern"].items()},
    }
    return next((name for name, value in named.items() if not _is_finite(value)), None)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
