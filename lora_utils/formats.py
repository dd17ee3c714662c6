"""Find out what a LoRA file holds, and what of it fits a network, by names and shapes alone.

Families: kohya and musubi-tuner (`lora_unet_`, FramePack's or HunyuanVideo's names), diffusers and PEFT (`lora_A`, `lora_B`,
also `.default.` and `base_model.model.`), diffusion-pipe, `diffusion_model.` and `transformer.` before either naming, ComfyUI's
names, dotted `lora_down`/`lora_up`; LoHa and LoKr of LyCORIS (https://github.com/KohakuBlueleaf/LyCORIS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from lora_utils.files import Header, LoraError
from lora_utils.names import Names, is_text_encoder

Shapes = Mapping[str, tuple[int, ...]]

# The end of a key says which part of a layer's update it is. `lora_A.default.weight`: an adapter's name may stand between.
ENDS = (
    (re.compile(r"\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight$"), "down"),
    (re.compile(r"\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight$"), "up"),
    (re.compile(r"\.lora_A(?P<adapter>\.[^.]+)?\.weight$"), "down"),
    (re.compile(r"\.lora_B(?P<adapter>\.[^.]+)?\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.(?=(?:hada|lokr)_w[12](?:_[ab])?$)"), ""),
    (re.compile(r"\.(?:lora_mid\.weight|hada_t[12]|lokr_t[12])$"), "tucker"),
)
# Keys of a DoRA's magnitudes (https://arxiv.org/abs/2402.09353), to which the rows of weight plus update are rescaled, so that
# it cannot be added: `dora_scale` of LyCORIS and kohya's trainers, `lora_magnitude_vector` of PEFT, `dora_layer.weight` of a
# branch of musubi-tuner, and whatever else is called so.
DORA = re.compile(r"(?:^|[._])(?:dora|magnitude)(?:[._]|$)", re.IGNORECASE)
# Tensors of one number for the whole file, which that branch writes: whether its alphas are divided by the root of the rank,
# and whether it is a DoRA.
STABILISED_FLAG, DORA_FLAG = "use_rslora_flag", "use_dora_flag"
# Dtypes that factors may have.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
KINDS = {"up": "LoRA", "down": "LoRA", "hada": "LoHa", "lokr": "LoKr"}
COMPLETE = (
    ("LoRA", {"up", "down"}),
    ("LoHa", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
    ("LoKr", {"lokr_w1", "lokr_w2"}),
    ("LoKr", {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    ("LoKr", {"lokr_w1_a", "lokr_w1_b", "lokr_w2"}),
    ("LoKr", {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
)

# Ends of keys of biases: PEFT's with `bias="lora_only"` or `lora_bias`, and LyCORIS's difference.
BIASES = (".bias", ".diff_b")


@dataclass(frozen=True)
class Part:
    """Hold the rows (first, end) of an update's output that belong to one layer of the network."""

    layer: str
    rows: tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """Hold one layer's update as it stands in the file.

    keys: by part ("up", "down", "alpha", "hada_w1_a", ...). shape: of the whole update, (rows, columns). rank: 0 where the
    update has none (a LoKr of two whole matrices). swapped: the halves of the rows change places.
    """

    name: str
    kind: str
    keys: Mapping[str, str]
    shape: tuple[int, int]
    rank: int
    parts: tuple[Part, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Report:
    """Hold what there is to say about a file before it is used.

    found: layers that the file wants to change, used: those known here. applied: layers of the network that change, of layers.
    unknown, text_encoder: keys without a place here, and keys of text encoders, which are passed over.
    """

    format: str
    ranks: tuple[int, ...]
    found: int
    used: int
    applied: int
    layers: int
    unknown: tuple[str, ...] = ()
    text_encoder: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Return whether something that was meant for the network finds no place in it."""
        return bool(self.unknown)

    @property
    def only_biases(self) -> bool:
        """Return whether all that finds no place are biases, which are added to layers and not to their weights."""
        return all(key.endswith(BIASES) for key in self.unknown)


@dataclass(frozen=True)
class Layout:
    """Hold which update of a file goes where.

    flags: keys of what is said of the whole file (STABILISED_FLAG, DORA_FLAG).
    """

    entries: tuple[Entry, ...]
    report: Report
    flags: frozenset[str] = frozenset()


def analyse(header: Header, layers: Shapes, file: str = "") -> Layout:
    """Find out which update of the file goes where.

    layers: shapes of the network's weights of two dimensions and more, by layer. Raises LoraError, naming `file`, if nothing
    fits, a shape is wrong, or the updates need more than adding: a file is used as it was made, or not at all.
    """
    names = Names(layers)
    # By layer and adapter, because a file may have several adapters for one layer.
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    alphas: dict[str, str] = {}
    flags: set[str] = set()
    unknown, text_encoder = [], []
    for key in header.shapes:
        if is_text_encoder(key):
            text_encoder.append(key)
            continue
        if key in (STABILISED_FLAG, DORA_FLAG):
            flags.add(key)
            _check_one(header, key, file)
            continue
        if DORA.search(key):
            raise LoraError("dora", file=file, example=key)
        name, role, adapter = _split(key)
        if role == "tucker":
            raise LoraError("tucker", file=file, example=key)
        if role is None:
            unknown.append(key)
        elif role == "alpha":
            alphas[name] = key
            _check_one(header, key, file)
        else:
            grouped.setdefault((name, adapter), {})[role] = key
    known = {name for name, _ in grouped}
    unknown += [key for name, key in alphas.items() if name not in known]
    entries = []
    for (name, _), keys in grouped.items():
        keys |= {"alpha": alphas[name]} if name in alphas else {}
        target, kind = names.find(name), _kind(keys)
        if target is None or kind is None:
            unknown += keys.values()
            continue
        rows = [layers[layer][0] for layer in target.layers]
        wanted = sum(rows), prod(layers[target.layers[0]][1:])
        sides = {role: header.shapes[key] for role, key in keys.items()}
        for key in (key for role, key in keys.items() if role != "alpha" and header.dtypes[key] not in FLOATS):
            raise LoraError("dtype", file=file, name=key, dtype=header.dtypes[key])
        if any(0 in side for side in sides.values()):
            raise LoraError("rank_zero", file=file, layer=name)
        shape, rank = _shape(kind, sides)
        if shape == (0, 0):
            factors = ", ".join(f"{role} {_times(side)}" for role, side in sides.items() if role != "alpha")
            raise LoraError("factors", file=file, layer=name, factors=factors)
        if shape != wanted:
            raise LoraError("shape", file=file, layer=name, expected=_times(wanted), actual=_times(shape))
        ends = tuple(accumulate(rows))
        parts = tuple(Part(layer, (end - count, end)) for layer, count, end in zip(target.layers, rows, ends, strict=True))
        entries.append(Entry(name, kind, keys, shape, rank, parts, target.swapped))
    if not entries:
        raise _useless(file, list(grouped.values()), unknown, text_encoder)
    report = Report(
        format=_format(entries, names),
        ranks=tuple(sorted({entry.rank for entry in entries if entry.rank})),
        found=len(grouped),
        used=len(entries),
        applied=len({part.layer for entry in entries for part in entry.parts}),
        layers=len(layers),
        unknown=tuple(unknown),
        text_encoder=tuple(text_encoder),
    )
    return Layout(tuple(entries), report, frozenset(flags))


def _check_one(header: Header, key: str, file: str) -> None:
    if prod(header.shapes[key]) != 1:
        raise LoraError("alpha", file=file, layer=key, actual=_times(header.shapes[key]))


def _useless(file: str, groups: list[dict[str, str]], unknown: list[str], text_encoder: list[str]) -> LoraError:
    """Return the error that says why a file of which nothing fits cannot be used.

    groups: keys by part, of each update that is not for a text encoder.
    """
    if not unknown:
        return LoraError("text_encoder", file=file, count=len(text_encoder)) if text_encoder else LoraError("empty", file=file)
    if not groups:
        return LoraError("no_factors", file=file, example=unknown[0])
    if not any(map(_kind, groups)) and (absent := _absent(groups[0])):
        return LoraError("incomplete", file=file, example=next(iter(groups[0].values())), absent=absent)
    return LoraError("no_modules", file=file, example=unknown[0])


def _absent(keys: Mapping[str, str]) -> str:
    """Return the first key that an update lacks to be whole; "" if it lacks none."""
    parts = set(keys) - {"alpha"}
    lacking = min((complete - parts for _, complete in COMPLETE if parts <= complete), key=len, default=set())
    if not lacking:
        return ""
    role, key = min(lacking), next(iter(keys.values()))
    for halves in (("lora_A", "lora_B"), ("down", "up")) if role in ("up", "down") else ():
        one, other = halves if role == "up" else halves[::-1]
        head, found, tail = key.rpartition(one)
        if found:
            return f"{head}{other}{tail}"
    return f"{_split(key)[0]}.{role}"


def factor_numbers(layout: Layout, shapes: Shapes) -> Iterator[tuple[str, int]]:
    """Yield (layer, how many numbers its factors have beside the weights) for every update.

    shapes: of the file's tensors.
    """
    for entry in layout.entries:
        for part in entry.parts:
            first, end = part.rows
            if entry.kind == "LoKr" and entry.swapped:
                yield part.layer, prod(entry.shape) + 1
            elif entry.kind == "LoKr":
                yield part.layer, sum(prod(side) for side in _sides({role: shapes[key] for role, key in entry.keys.items()})[0])
            else:
                downs = ("hada_w1_b", "hada_w2_b") if entry.kind == "LoHa" else ("down",)
                rank = sum(shapes[entry.keys[role]][0] for role in downs)
                yield part.layer, rank * (end - first + entry.shape[1])


def _split(key: str) -> tuple[str, str | None, str]:
    """Split a key into layer, part and adapter; the part is None where it is none that we know.

    The adapter keeps factors of PEFT's and of kohya's kind apart, which never belong together.
    """
    for pattern, role in ENDS:
        if match := pattern.search(key):
            adapter = f"PEFT{match['adapter'] or ''}" if "adapter" in pattern.groupindex else ""
            return key[: match.start()], role or key[match.end() :], adapter
    return key, None, ""


def _kind(keys: Mapping[str, str]) -> str | None:
    parts = set(keys) - {"alpha"}
    return next((kind for kind, complete in COMPLETE if parts == complete), None)


def _shape(kind: str, shapes: Shapes) -> tuple[tuple[int, int], int]:
    """Return (rows, columns) of the whole update, and its rank; a convolution kernel's sides count as columns.

    The result is (0, 0), which no layer has, where the factors do not fit each other.
    """
    if kind == "LoRA":
        return _product(shapes["up"], shapes["down"])
    if kind == "LoHa":
        one, two = (_product(shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"]) for n in (1, 2))
        return one if one == two else ((0, 0), 0)
    ((a, b), (c, d)), rank = _sides(shapes)
    return (a * c, b * d), rank


def _sides(shapes: Shapes) -> tuple[list[tuple[int, int]], int]:
    """Return (rows, columns) of both matrices of a LoKr, multiplied out, and the rank."""
    sides, rank = [], 0
    for name in ("lokr_w1", "lokr_w2"):
        if name in shapes:
            sides.append(_matrix(shapes[name]))
        else:
            side, rank = _product(shapes[f"{name}_a"], shapes[f"{name}_b"])
            sides.append(side)
    return sides, rank


def _product(up: tuple[int, ...], down: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    (rows, inner), (rank, columns) = _matrix(up), _matrix(down)
    return ((rows, columns), rank) if inner == rank and rank else ((0, 0), 0)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (0, 0)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _format(entries: list[Entry], names: Names) -> str:
    """Return how the first update is written, and whose names it uses, such as "kohya, HunyuanVideo".

    The text is the same in all languages.
    """
    first = entries[0]
    key = next(key for role, key in first.keys.items() if role != "alpha")
    if first.kind != "LoRA":
        style = first.kind
    elif "lora_A" in key or "lora_B" in key:
        style = "diffusion_model" if key.startswith("diffusion_model.") else "PEFT"
    else:
        style = "lora_down/lora_up" if "." in first.name else "kohya"
    return f"{style}, {names.naming(first.name)}"
