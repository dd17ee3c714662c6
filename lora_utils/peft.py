"""Read how PEFT and diffusers scale an adapter: from a file's metadata, or from adapter_config.json beside it.

https://huggingface.co/docs/peft/package_reference/lora: lora_alpha, alpha_pattern, use_rslora. Needs no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_utils.files import Header, LoraError

# Limits that keep matching one expression with one name quick: both are short, and few quantifiers repeat without an end.
LONGEST_PATTERN, LONGEST_NAME, MOST_QUANTIFIERS, MOST_ENDLESS = 200, 120, 3, 2
# A file needs few expressions: it uses them to name many layers at once.
MOST_EXPRESSIONS = 16
QUANTIFIER, ENDLESS = re.compile(r"[*+?{]"), re.compile(r"[*+]|\{\d*,\}")
# Expressions that are not tried: those with repeated groups, repetitions of three digits and more, references to groups, and
# extensions that begin with (? other than (?:.
UNREAD = re.compile(r"\)[*+{]|\{(?!\d{1,2}(?:,\d{0,2})?\})|\\[0-9]|\(\?(?!:)")
# A module's plain name rather than an expression; its dots may be written as underscores.
PLAIN = re.compile(r"[\w.-]+")
# Prefixes that may stand before a module's own name in a file, one after the other; PEFT's expressions are for the own name.
PREFIXES = ("base_model.model.", "base_model.", "diffusion_model.", "transformer.", "unet.", "model.", "module.", "_orig_mod.")
KEY, CONFIG, MODEL = "lora_adapter_metadata", "adapter_config.json", "adapter_model.safetensors"
# Bytes. PEFT writes half a kilobyte, and a line for each layer that has an alpha of its own.
LONGEST_CONFIG = 2**20


@dataclass(frozen=True)
class Scaling:
    """Hold what is said of an adapter's scale.

    alpha: one for all layers, or None. own: alphas of some layers, by name or expression, in the file's order. stabilised:
    alpha is divided by the root of the rank, not by the rank. dora: the file says that it is a DoRA.
    """

    alpha: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    dora: bool = False

    def alpha_of(self, name: str) -> float | None:
        """Return the alpha of a layer, by its name in the file: that of the first key of `own` that means it, else `alpha`."""
        places = [self._names[end] for end in _ends(name) if end in self._names]
        places += [place for place, pattern in self._expressions if means(pattern, name)]
        return list(self.own.values())[min(places)] if places else self.alpha

    @cached_property
    def _names(self) -> dict[str, int]:
        own = list(self.own)
        return {_flat(own[place]): place for place in reversed(range(len(own))) if PLAIN.fullmatch(own[place])}

    @cached_property
    def _expressions(self) -> list[tuple[int, str]]:
        return [(place, pattern) for place, pattern in enumerate(self.own) if not PLAIN.fullmatch(pattern)]


def config_beside(path: Path) -> Path | None:
    """Return the adapter_config.json beside a file, into which PEFT writes the adapter's alpha; None without one.

    Only beside a file of PEFT's own name does it belong to that file.
    """
    if path.name != MODEL:
        return None
    beside = path.with_name(CONFIG)
    return beside if beside.is_file() else None


def scaling_metadata(path: Path, header: Header) -> Mapping[str, str]:
    """Return the file's own metadata, with the adapter_config.json beside it where that is needed.

    Raises LoraError ("unreadable", "config").
    """
    beside = config_beside(path)
    if beside is None or KEY in header.metadata:
        return header.metadata
    try:
        with beside.open("rb") as stream:
            data = stream.read(LONGEST_CONFIG + 1)
        if len(data) > LONGEST_CONFIG:
            raise ValueError(f"it has more than {LONGEST_CONFIG // 2**20} MB")
        # `json.loads` reads UTF-8 and UTF-16, with a byte order mark or without.
        return {KEY: json.dumps(json.loads(data)), **header.metadata}
    except OSError as error:
        raise LoraError("unreadable", file=str(beside), reason=error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise LoraError("config", file=str(path), reason=_reason(error)) from None


def config_of(metadata: Mapping[str, str], file: str = "") -> Scaling:
    """Return what metadata say of the transformer's adapter; a plain `Scaling` where they say nothing.

    Raises LoraError ("config" or "not_finite"), naming `file`, for what is there and cannot be understood: a LoRA of another
    strength looks like a bad one.
    """
    try:
        document = json.loads(metadata.get(KEY) or "{}")
    except (ValueError, RecursionError) as error:
        raise LoraError("config", file=file, reason=_reason(error)) from None
    if not isinstance(document, dict):
        raise LoraError("config", file=file, reason="it is no JSON object")
    plain = {str(key).removeprefix("transformer."): value for key, value in document.items()}
    pattern = plain.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise LoraError("config", file=file, reason="alpha_pattern is no JSON object")
    named = {f"alpha_pattern.{name}": value for name, value in pattern.items()}
    for name, value in {"lora_alpha": plain.get("lora_alpha"), **named}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise LoraError("config", file=file, reason=f"{_shown(name)} is no number")
        if value is not None and not _is_finite(value):
            raise LoraError("not_finite", file=file, name=_shown(name))
    switches = {name: plain.get(name) or False for name in ("use_rslora", "use_dora")}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise LoraError("config", file=file, reason=f"{name} is neither true nor false")
    alpha = plain.get("lora_alpha")
    # null means that nothing is said of this layer.
    own = {name: float(value) for name, value in pattern.items() if value is not None}
    return Scaling(None if alpha is None else float(alpha), own, switches["use_rslora"], switches["use_dora"])


def means(pattern: str, name: str) -> bool:
    """Return whether a key of alpha_pattern means the layer of this name in a file.

    As PEFT reads it, a key is the end of the name or a regular expression for it. A key that `first_unread` would find is tried
    only as an end.
    """
    if f".{name}".endswith(f".{pattern}"):
        return True
    if len(name) > LONGEST_NAME or not _is_read(pattern):
        return False
    expression = re.compile(pattern)
    # PEFT matches "(.*\.)?({pattern})$" with the module's own name.
    starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    return any(expression.fullmatch(name, start) for start in starts) or any(map(expression.fullmatch, _without_prefixes(name)))


def first_unread(metadata: Mapping[str, str]) -> str | None:
    """Return the first expression of alpha_pattern that cannot be used, or None.

    It is no regular expression, matching it could take for ever, or it is one more than MOST_EXPRESSIONS.
    """
    expressions = [pattern for pattern in config_of(metadata).own if not PLAIN.fullmatch(pattern)]
    unread = (pattern for pattern in expressions if not _is_read(pattern))
    return next(unread, expressions[MOST_EXPRESSIONS] if len(expressions) > MOST_EXPRESSIONS else None)


def _is_read(pattern: str) -> bool:
    if len(pattern) > LONGEST_PATTERN or UNREAD.search(pattern):
        return False
    if len(QUANTIFIER.findall(pattern)) > MOST_QUANTIFIERS or len(ENDLESS.findall(pattern)) > MOST_ENDLESS:
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _ends(name: str) -> list[str]:
    """Return a name and what follows each of its dots, with underscores for dots."""
    return [_flat(name), *(_flat(name[dot.end() :]) for dot in re.finditer(r"\.", name))]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _without_prefixes(name: str) -> list[str]:
    names = [name]
    while prefix := next((one for one in PREFIXES if names[-1].startswith(one)), None):
        names.append(names[-1].removeprefix(prefix))
    return names


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _shown(name: str) -> str:
    return name[:80].encode(errors="replace").decode()
