"""Judge whether LoRA files fit a model, which of their updates do, and how much memory they take; without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from diffusers_helper.checkpoints.files import CheckpointError, read_headers, weight_files
from eichi_utils.models.hub import STEMS, ModelFiles
from eichi_utils.models.sizes import ModelSize, TransformerSize, part_of
from eichi_utils.problems import Problem, Remark, UserError
from eichi_utils.requests.loras import Lora, file_state, layout_of, layouts, lora_problem
from lora_utils.files import Header, LoraError, read_header
from lora_utils.formats import Layout, Report, Shapes, factor_numbers

# Sizes of the published transformers: width, numbers of blocks, and the layers of each kind of block as (rows, columns) in
# multiples of the width; from "HunyuanVideo", table 2, and the hub's checkpoints, which are both alike.
WIDTH, DUAL_BLOCKS, SINGLE_BLOCKS, REFINER_BLOCKS = 3072, 20, 40, 2
ATTENTION = dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), (1, 1))
DUAL = {
    "norm1.linear": (6, 1), "norm1_context.linear": (6, 1), **ATTENTION, "attn.to_out.0": (1, 1), "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1), "attn.add_v_proj": (1, 1), "attn.to_add_out": (1, 1), "ff.net.0.proj": (4, 1),
    "ff.net.2": (1, 4), "ff_context.net.0.proj": (4, 1), "ff_context.net.2": (1, 4),
}  # fmt: skip
SINGLE = {"norm.linear": (3, 1), **ATTENTION, "proj_mlp": (4, 1), "proj_out": (1, 5)}
REFINER = {**ATTENTION, "attn.to_out.0": (1, 1), "ff.net.0.proj": (4, 1), "ff.net.2": (1, 4), "norm_out.linear": (2, 1)}
REFINED, EMBEDDED = "context_embedder.time_text_embed", "time_text_embed"
# Shapes of the layers outside of blocks.
REST = {
    "x_embedder.proj": (WIDTH, 16, 1, 2, 2),
    "context_embedder.proj_in": (WIDTH, 4096),
    f"{REFINED}.timestep_embedder.linear_1": (WIDTH, 256),
    f"{REFINED}.timestep_embedder.linear_2": (WIDTH, WIDTH),
    f"{REFINED}.text_embedder.linear_1": (WIDTH, 4096),
    f"{REFINED}.text_embedder.linear_2": (WIDTH, WIDTH),
    f"{EMBEDDED}.timestep_embedder.linear_1": (WIDTH, 256),
    f"{EMBEDDED}.timestep_embedder.linear_2": (WIDTH, WIDTH),
    f"{EMBEDDED}.guidance_embedder.linear_1": (WIDTH, 256),
    f"{EMBEDDED}.guidance_embedder.linear_2": (WIDTH, WIDTH),
    f"{EMBEDDED}.text_embedder.linear_1": (WIDTH, 768),
    f"{EMBEDDED}.text_embedder.linear_2": (WIDTH, WIDTH),
    "clean_x_embedder.proj": (WIDTH, 16, 1, 2, 2),
    "clean_x_embedder.proj_2x": (WIDTH, 16, 2, 4, 4),
    "clean_x_embedder.proj_4x": (WIDTH, 16, 4, 8, 8),
    "image_projection.up": (3 * WIDTH, 1152),
    "image_projection.down": (WIDTH, 3 * WIDTH),
    "norm_out.linear": (2 * WIDTH, WIDTH),
    "proj_out": (64, WIDTH),
}


@dataclass(frozen=True)
class Fit:
    """Hold how a LoRA file fits a model.

    report: what of it is used, None if it cannot be. problem: why it cannot be used. readable: False if the file itself cannot
    be read, so that the problem is not about this model.
    """

    report: Report | None = None
    problem: Problem | None = None
    readable: bool = True


def published_layers() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights that a LoRA can change, by layer, for the hub's transformers."""
    blocks = (
        ("transformer_blocks", DUAL_BLOCKS, DUAL),
        ("single_transformer_blocks", SINGLE_BLOCKS, SINGLE),
        ("context_embedder.token_refiner.refiner_blocks", REFINER_BLOCKS, REFINER),
    )
    found = {
        f"{name}.{number}.{layer}": (rows * WIDTH, columns * WIDTH)
        for name, count, layers in blocks
        for number in range(count)
        for layer, (rows, columns) in layers.items()
    }
    return found | REST


def shapes_in(files: ModelFiles, checkpoint_name: str) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the weights that a LoRA can change, by layer, for a checkpoint's transformer.

    If its files cannot be read, as before the download, those of the published one are returned.
    """
    try:
        shapes = read_headers(weight_files(files.folder(checkpoint_name), STEMS[checkpoint_name])).shapes
    except CheckpointError:
        return published_layers()
    # Norms and biases have one dimension, and a LoRA cannot change them.
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) > 1}


def fit(lora: Lora, shapes: Shapes, field: str = "loras/0") -> Fit:
    """Judge how a LoRA file fits a transformer. shapes: of its weights by layer. field: the slot's, for the problem."""
    try:
        found = _fit(lora.path, file_state(lora.path), tuple(shapes.items()))
    except LoraError as error:
        found = Fit(problem=lora_problem("", error), readable=False)
    return found if found.problem is None else replace(found, problem=replace(found.problem, field=f"{field}/file"))


@lru_cache(maxsize=64)
def _fit(path: Path, state: tuple, layers: tuple[tuple[str, tuple[int, ...]], ...]) -> Fit:
    """Judge a file, and remember the result by the file's state.

    A page asks again at every key that the user presses, and reading a large file's header takes 30 ms.
    """
    try:
        header = read_header(path)
    except LoraError as error:
        return Fit(problem=lora_problem("", error), readable=False)
    try:
        return Fit(report=layout_of(path, header, dict(layers)).report)
    except LoraError as error:
        return Fit(problem=lora_problem("", error))


def fit_problems(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> tuple[Problem, ...]:
    """Return why readable files cannot be used with this model; `Lora.check` reports what is wrong with a file itself."""
    known = [(number, lora) for number, lora in enumerate(loras) if isinstance(lora.file, str)]
    if not known:
        return ()
    shapes = shapes_in(files, checkpoint_name)
    fits = [fit(lora, shapes, f"loras/{number}") for number, lora in known]
    return tuple(fit.problem for fit in fits if fit.problem and fit.readable)


def reports(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> list[Report]:
    """Return for each file what of it is used with this model; nothing is loaded.

    Raises UserError with a problem for every file that cannot be used.
    """
    if not loras:
        return []
    return [layout.report for _, layout in layouts(loras, shapes_in(files, checkpoint_name))]


def remarks(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> Iterator[Remark]:
    """Yield remarks about files that can be used in part only. Raises UserError as `reports` does."""
    for lora, report in zip(loras, reports(loras, files, checkpoint_name), strict=True):
        yield from report_remarks(lora.file, report)


def report_remarks(file: str, report: Report) -> Iterator[Remark]:
    """Yield remarks about what is left out of a file: updates of layers, biases or other keys, and text encoders' updates."""
    if report.used < report.found:
        values = {"file": file, "used": report.used, "found": report.found, "example": report.unknown[0]}
        yield Remark("lora_partial", values)
    elif report.unknown and report.only_biases:
        values = {"file": file, "count": len(report.unknown), "example": report.unknown[0]}
        yield Remark("lora_biases", values)
    elif report.unknown:
        values = {"file": file, "count": len(report.unknown), "example": report.unknown[0]}
        yield Remark("lora_others", values)
    if report.text_encoder:
        yield Remark("lora_text_encoder", {"file": file, "count": len(report.text_encoder)})


def size_with(size: ModelSize, loras: Sequence[Lora], merge: bool, files: ModelFiles, checkpoint_name: str) -> ModelSize:
    """Return a model's size enlarged by LoRA files, beside its weights or merged into them.

    Files to be merged count because they are in memory while the model is loaded. If a file cannot be used, which is reported
    elsewhere, the size is returned unchanged.
    """
    if not loras:
        return size
    try:
        found = layouts(loras, shapes_in(files, checkpoint_name))
    except UserError:
        return size
    return replace(size, transformer=_larger(size.transformer, found, merge))


def _larger(size: TransformerSize, found: Sequence[tuple[Header, Layout]], merge: bool) -> TransformerSize:
    parts: dict[str, Counter[str]] = {"block": Counter(), "job": Counter(), "always": Counter()}
    for header, layout in found:
        for layer, numbers in factor_numbers(layout, header.shapes):
            kind, name = part_of(layer)
            parts[kind][name] += numbers
    whole = sum(part.total() for part in parts.values())
    always = parts["always"].total()
    larger = replace(size, whole=size.whole + whole)
    if merge:
        return replace(larger, rest=size.rest + whole)
    return replace(
        larger,
        # Side branches that are not always on a card lie in memory, unlike weights that are read from their file.
        rest=size.rest + whole - always,
        block_rest=size.block_rest + max(parts["block"].values(), default=0),
        job=size.job + max(parts["job"].values(), default=0),
        always=size.always + always,
    )
