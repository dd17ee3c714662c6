"""Whether LoRA files fit a model, what of them does, and how much memory that takes; without torch."""

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

# The published transformer: width, and the layers of its parts as (rows, columns) in widths; see "HunyuanVideo", table 2, and
# the hub's checkpoint. Both checkpoints have the same.
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
# In numbers.
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
    """One file: what of it is used, or why it cannot be. readable: whether that is for what it holds."""

    report: Report | None = None
    problem: Problem | None = None
    readable: bool = True


def published_layers() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA can change, by layer, of the hub's transformers."""
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
    """The same of a checkpoint's transformer; before it is downloaded, of the published one."""
    try:
        shapes = read_headers(weight_files(files.folder(checkpoint_name), STEMS[checkpoint_name])).shapes
    except CheckpointError:
        return published_layers()
    # Of norms and biases, which have one dimension, a LoRA changes none.
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) > 1}


def fit(lora: Lora, shapes: Shapes, field: str = "loras/0") -> Fit:
    """field: of the file's slot, for the problem."""
    try:
        found = _fit(lora.path, file_state(lora.path), tuple(shapes.items()))
    except LoraError as error:
        found = Fit(problem=lora_problem("", error), readable=False)
    return found if found.problem is None else replace(found, problem=replace(found.problem, field=f"{field}/file"))


@lru_cache(maxsize=64)
def _fit(path: Path, state: tuple, layers: tuple[tuple[str, tuple[int, ...]], ...]) -> Fit:
    """Kept by file state: a page asks again at every key the user presses, and a large file's header takes 30 ms."""
    try:
        header = read_header(path)
    except LoraError as error:
        return Fit(problem=lora_problem("", error), readable=False)
    try:
        return Fit(report=layout_of(path, header, dict(layers)).report)
    except LoraError as error:
        return Fit(problem=lora_problem("", error))


def fit_problems(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> tuple[Problem, ...]:
    """Of readable files, why they cannot be used with this model; what is wrong with a file by itself says `Lora.check`."""
    known = [(number, lora) for number, lora in enumerate(loras) if isinstance(lora.file, str)]
    if not known:
        return ()
    shapes = shapes_in(files, checkpoint_name)
    fits = [fit(lora, shapes, f"loras/{number}") for number, lora in known]
    return tuple(fit.problem for fit in fits if fit.problem and fit.readable)


def reports(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> list[Report]:
    """What each file will do. Raises UserError with every file that does not fit, before anything is loaded."""
    if not loras:
        return []
    return [layout.report for _, layout in layouts(loras, shapes_in(files, checkpoint_name))]


def remarks(loras: Sequence[Lora], files: ModelFiles, checkpoint_name: str) -> Iterator[Remark]:
    """What the user should know about files that can be used, but not whole. Raises UserError as `reports` does."""
    for lora, report in zip(loras, reports(loras, files, checkpoint_name), strict=True):
        yield from report_remarks(lora.file, report)


def report_remarks(file: str, report: Report) -> Iterator[Remark]:
    """What is left out of a file: whole updates, or what stands beside updates that all fit."""
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
    """A model's size with these files beside its weights, or merged into them: then they are in memory while it is loaded.

    Files that cannot be used take nothing: they are told elsewhere.
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
        # What is not always on a card is in memory, unlike the weights beside it that come from their file.
        rest=size.rest + whole - always,
        block_rest=size.block_rest + max(parts["block"].values(), default=0),
        job=size.job + max(parts["job"].values(), default=0),
        always=size.always + always,
    )
