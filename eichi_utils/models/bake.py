"""Write a checkpoint with LoRA merged into it, in the layout of the original one, tensor by tensor."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusers_helper.checkpoints import checkpoint
from diffusers_helper.checkpoints.files import read_headers, read_json, weight_files
from diffusers_helper.checkpoints.reading import Reader
from eichi_utils.files.paths import DISK_FULL, folder_problem
from eichi_utils.files.temporary import own_prefix, remove_abandoned
from eichi_utils.models.lora_binding import LoraMerge, shapes_of
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.loras import Lora
from lora_utils.files import Header, read_header, write_stream

STEM, INDEX = "diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"
# What `rename` and `rmdir` raise for a target folder that has files in it.
FULL_FOLDER = (errno.ENOTEMPTY, errno.EEXIST)
NARROW = ("F8_E4M3", "F8_E5M2")


def bake(loras: Sequence[Lora], source: Path, target: Path) -> Iterator[Path]:
    """Write the transformer in `source`, with LoRA files merged into it, to `target`; yield each finished file's path there.

    The folder gets its name only when it is complete: an interrupted bake leaves nothing, and if two run at once, the second to
    end raises UserError. Raises UserError, before anything is written, if a LoRA file does not fit, or the target is not empty
    or has too little room; and CheckpointError if the source is incomplete or damaged.
    """
    size = checkpoint.check_transformer(source)
    change = LoraMerge(loras, shapes_of(checkpoint.meta_transformer(source)))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError([Problem("out", "folder_not_empty", {"folder": str(target)})])
    if problem := folder_problem(target, size):
        raise UserError([problem])
    # A bake that was killed leaves up to 24 GB in whichever folder it wrote to, which only the next bake there can find.
    remove_abandoned([target.parent], 0)
    unfinished = target.with_name(f"{own_prefix()}{secrets.token_hex(4)}.part")
    unfinished.mkdir(parents=True)
    try:
        written = 0
        for file in weight_files(source, STEM):
            _write_merged(file, unfinished / file.name, change, loras)
            written += (unfinished / file.name).stat().st_size
            yield target / file.name
        if (source / INDEX).is_file():
            index = read_json(source / INDEX)
            kept = index.get("metadata")
            index["metadata"] = {**(kept if isinstance(kept, dict) else {}), "total_size": written}
            (unfinished / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(source / "config.json", unfinished / "config.json")
        # `rmdir` removes an empty folder only.
        if target.is_dir():
            target.rmdir()
        unfinished.rename(target)
        yield target / "config.json"
    except OSError as error:
        raise UserError([_unwritten(target, error)]) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unwritten(target: Path, error: OSError) -> Problem:
    """Return the problem that tells why a checkpoint could not be written into its folder."""
    if error.errno in FULL_FOLDER:
        return Problem("out", "folder_not_empty", {"folder": str(target)})
    if error.errno in DISK_FULL:
        return Problem("out", "disk_full")
    return Problem("out", "folder_not_writable", {"folder": str(target), "reason": error.strerror or str(error)})


def _write_merged(file: Path, target: Path, change: LoraMerge, loras: Sequence[Lora]) -> None:
    header = read_header(file)
    # A changed tensor that was stored as 8-bit floats is stored in 16 bits; see `lora_utils.factors.merged`.
    dtypes = {name: "BF16" if kept in NARROW and change.changes(name) else kept for name, kept in header.dtypes.items()}
    strengths = json.dumps([{"file": Path(lora.file).name, "strength": lora.strength} for lora in loras])
    # The file is read, not mapped: a mapped file that another program shortens crashes this one.
    with Reader(read_headers([file])) as reader:
        parts = (_bytes(change(name, reader.tensor(name))) for name in header.shapes)
        write_stream(target, Header(dtypes, header.shapes, {**header.metadata, "merged_loras": strengths}), parts)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
