"""What this machine has and what the program would use: the first thing to attach to a report."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from eichi_utils.catalogue import Models
from eichi_utils.models import ModelPool, host_memory
from eichi_utils.paths import WEBUI
from eichi_utils.problems import Translate, UserError

PACKAGES = (
    "torch", "diffusers", "transformers", "tokenizers", "accelerate", "safetensors", "huggingface_hub",
    "gradio", "av", "pillow", "numpy", "sageattention", "xformers", "flash-attn", "fa3-fwd",
)  # fmt: skip
GIB = 2**30


def examine(models: Models, device: str = "auto", attention: str = "auto", compiler: str = "auto") -> dict[str, Any]:
    """Findings as plain data. Raises UserError for a device, kernel or folder that is not there."""
    pool = ModelPool(models.folder, device=device, attention=attention, compiler=compiler)
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
        "memory_gib": round(host_memory() / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(WEBUI).free / GIB, 1),
        "cards": [_card(index) for index in range(torch.cuda.device_count())],
        "device": str(pool.placement.device),
        "transformer_dtype": str(pool.placement.transformer).removeprefix("torch."),
        "attention": pool.attention.name,
        "attention_rejected": dict(pool.attention.rejected),
        "compiled": not pool.passes.reason,
        "compiled_rejected": pool.passes.reason,
        "models": states,
    }


def report_lines(findings: dict[str, Any], t: Translate) -> list[str]:
    """The findings for reading."""
    cards = [f"{card['name']}, {card['memory_gib']} GiB, {card['capability']}" for card in findings["cards"]]
    rows = [
        (t("doctor.system"), findings["system"]),
        ("Python", findings["python"]),
        (t("doctor.memory"), f"{findings['memory_gib']} GiB"),
        (t("doctor.disk"), f"{findings['disk_free_gib']} GiB"),
        (t("doctor.cards"), "; ".join(cards) or t("doctor.none")),
        (t("doctor.device"), f"{findings['device']} ({findings['transformer_dtype']})"),
        (t("doctor.attention"), findings["attention"]),
    ]
    rows += [(t("doctor.not_used", name=name), reason) for name, reason in findings["attention_rejected"].items()]
    compiled = t("doctor.compiled") if findings["compiled"] else t("doctor.eager", reason=findings["compiled_rejected"])
    rows.append((t("doctor.passes"), compiled))
    for name, state in findings["models"].items():
        found = t("doctor.complete") if state["complete"] else t("doctor.missing", names=", ".join(state["missing"]))
        rows.append((t("doctor.models", name=name), found))
    rows += list(findings["packages"].items())
    return [f"{label}: {value}" for label, value in rows]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _card(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / GIB, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }


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
