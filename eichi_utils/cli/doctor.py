"""Report what this machine has and what the program would use; users attach this to bug reports."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from diffusers_helper.memory.device import Device
from diffusers_helper.memory.slabs import Arena
from eichi_utils.cli.cache import MB, NAMES
from eichi_utils.files.disk_cache import open_caches
from eichi_utils.files.paths import WEBUI
from eichi_utils.models.catalogue import Models
from eichi_utils.models.disk_space import gib
from eichi_utils.models.gpus import cards
from eichi_utils.models.host_memory import host_memory
from eichi_utils.models.pool import USUAL_TOKENS, ModelPool
from eichi_utils.models.requirements import EIGHT_BITS, FLOAT8_CAPABILITY, Machine, choose, needs
from eichi_utils.models.sizes import ModelSize, model_size
from eichi_utils.problems import Translate, UserError

PACKAGES = (
    "torch", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors", "huggingface_hub",
    "gradio", "av", "pillow", "numpy", "sageattention", "xformers", "flash-attn", "fa3-fwd",
)  # fmt: skip
GIB = 2**30
# Bytes that are locked and unlocked again, to see whether the system allows it.
PROBE_BYTES = 4 * 2**20


def examine(
    models: Models, device: str = "auto", attention: str = "auto", compiler: str = "auto", card: Device | None = None
) -> dict[str, Any]:
    """Return the findings as plain data. Raises UserError for a missing device, kernel or folder. card: as in `ModelPool`."""
    pool = ModelPool(models.folder, device=device, attention=attention, compiler=compiler, card=card)
    precision, memory = _precision(pool), host_memory()
    states = {name: _state(pool, name) for name in ("framepack", "framepack_f1")}
    if "miniature" in models.names:
        pool.use(models.files("miniature"))
        states["miniature"] = _state(pool, "framepack")
    else:
        states["miniature"] = {"complete": False, "missing": [str(models.miniature)]}
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "memory_gib": round(memory.total / GIB, 1),
        "memory_free_gib": round(memory.available / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(WEBUI).free / GIB, 1),
        "cards": _cards(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": str(pool.placement.device),
        "transformer_dtype": str(pool.placement.transformer).removeprefix("torch."),
        **precision,
        "locks_memory": _locks_memory(pool.card),
        "attention": pool.attention.name,
        "attention_rejected": dict(pool.attention.rejected),
        "compiled": not pool.passes.reason,
        "compiled_rejected": pool.passes.reason,
        "cached_bytes": {kind: getattr(open_caches(0), kind).usage()[1] for kind in NAMES},
        "models": states,
    }


def report_lines(findings: dict[str, Any], t: Translate) -> list[str]:
    """Return the findings as lines of text, one per finding."""
    cards = [t("doctor.card", **card) for card in findings["cards"]]
    locking = {True: t("doctor.yes"), False: t("doctor.no_locking"), None: t("doctor.no_card")}[findings["locks_memory"]]
    rows = [
        (t("doctor.system"), findings["system"]),
        ("Python", findings["python"]),
        (t("doctor.memory"), t("doctor.free_of", free=findings["memory_free_gib"], total=findings["memory_gib"])),
        (t("doctor.disk"), f"{findings['disk_free_gib']} GiB"),
        (t("doctor.cards"), "; ".join(cards) or t("doctor.none")),
        (t("doctor.device"), f"{findings['device']} ({findings['transformer_dtype']})"),
        ("CUDA", f"{findings['cuda'] or t('doctor.none')}, cuDNN {findings['cudnn'] or t('doctor.none')}"),
        (t("doctor.locking"), locking),
        (t("doctor.precision"), findings["precision"] or _no_precision(findings["precision_rejected"], t)),
    ]
    for name, reason in findings["precision_rejected"].items():
        rows.append((t("doctor.not_used", name=name), t(f"doctor.why.{reason['key']}", **reason["values"])))
    rows.append((t("doctor.attention"), findings["attention"]))
    rows += [(t("doctor.not_used", name=name), reason) for name, reason in findings["attention_rejected"].items()]
    compiled = t("doctor.compiled") if findings["compiled"] else t("doctor.eager", reason=findings["compiled_rejected"])
    rows.append((t("doctor.passes"), compiled))
    for name, state in findings["models"].items():
        found = t("doctor.complete") if state["complete"] else t("doctor.missing", names=", ".join(state["missing"]))
        rows.append((t("doctor.models", name=name), found))
    rows += [
        (t("doctor.cached", name=t(NAMES[kind])), f"{size / MB:.1f} MB") for kind, size in findings["cached_bytes"].items()
    ]
    rows += list(findings["packages"].items())
    return [f"{label}: {value}" for label, value in rows]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cards() -> list[dict[str, Any]]:
    """Return the cards as the driver describes them, or as torch does if the driver does not answer."""
    described: list[tuple[str, str | None, tuple[int, int], int, int]] = [
        (card.name, card.driver, card.capability, card.total, card.free) for card in cards()
    ]
    if not described:
        for index in range(torch.cuda.device_count()):
            card, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
            described.append((card.name, None, (card.major, card.minor), total, free))
    return [
        {
            "name": name,
            "driver": driver,
            "capability": "{}.{}".format(*capability),
            "memory_gib": round(total / GIB, 1),
            "memory_free_gib": round(free / GIB, 1),
        }
        for name, driver, capability, total, free in described
    ]


def _no_precision(rejected: Mapping[str, Any], t: Translate) -> str:
    """Return the text for a machine on which "auto" finds no precision; without a card others may fit if they are chosen."""
    others = ", ".join(name for name, reason in rejected.items() if reason["key"] == "only_asked_for")
    return t("doctor.only_chosen", names=others) if others else t("doctor.nothing_fits")


def _precision(pool: ModelPool) -> dict[str, Any]:
    """Return what "auto" means here for a section of the usual size (None if nothing fits), and why the others are not used."""
    size, machine = model_size(pool.files, "framepack"), pool.machine()
    try:
        chosen = choose(size, "auto", USUAL_TOKENS, machine).precision
    except UserError:
        chosen = None
    names = ("bfloat16", *EIGHT_BITS)
    rejected = {name: _why_not(name, chosen, size, machine) for name in names if name != chosen}
    if machine.card is None:
        # Without a card, "auto" is the format that the processor computes in.
        own = str(pool.placement.transformer).removeprefix("torch.")
        rejected = rejected if chosen else {own: _why_not("auto", chosen, size, machine), **rejected}
        chosen = own if chosen else None
    return {"precision": chosen, "precision_rejected": rejected}


def _why_not(name: str, chosen: str | None, size: ModelSize, machine: Machine) -> dict[str, Any]:
    """Return why a precision is not used: the key of a sentence below `doctor.why.`, and its values."""
    if machine.card is None:
        needed = needs(size, name, USUAL_TOKENS, on_card=False)
        if needed.host > machine.host:
            return {"key": "too_large_memory", "values": {"memory": gib(needed.host), "memory_free": gib(machine.host)}}
        return {"key": "only_asked_for", "values": {}}
    if name in EIGHT_BITS and name != machine.narrow:
        if name == "float8":
            return {"key": "no_units", "values": {"capability": "{}.{}".format(*FLOAT8_CAPABILITY)}}
        return {"key": "other_format", "values": {"other": machine.narrow}}
    needed = needs(size, name, USUAL_TOKENS, on_card=True)
    if name in EIGHT_BITS and chosen is not None:
        return {"key": "not_needed", "values": {}}
    figures = {"memory": gib(needed.host), "card": gib(needed.card)}
    there = {"memory_free": gib(machine.host), "card_free": gib(max(0, machine.card))}
    return {"key": "too_large", "values": figures | there}


def _locks_memory(card: Device | None) -> bool | None:
    """Say whether the system allows locking memory for fast copies; None without a card."""
    if card is None:
        return None
    memory = Arena([{"probe": (torch.uint8, (PROBE_BYTES,))}]).buffer
    if not card.lock(memory):
        return False
    card.unlock(memory)
    return True


def _state(pool: ModelPool, checkpoint: str) -> dict[str, Any]:
    missing = [f"{place.repository}/{place.folder}".rstrip("/") for place in pool.missing(checkpoint)]
    if not missing:
        try:
            pool.check(checkpoint)
            pool.files.describe()
        except UserError as error:
            values = (p.values for p in error.problems)
            missing = [str(v.get("file") or v.get("tensor") or v.get("folder")) for v in values]
    return {"complete": not missing, "missing": missing}
