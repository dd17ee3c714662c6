"""Run the packed FramePack transformer in three phases: once a job, once a section, once a step.

What the loop does not change is computed before it: `prepare_job` makes everything that depends on prompt, guidance and sigmas,
`prepare_section` the clean tokens and rotary tables, and `step` computes only what must run. That is exact, and 6.8 of 25.75 GB
of weights (all modulation linears) are never touched during sampling. Names and shapes of parameters are the hub's, so that its
shards load strictly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffusers_helper.memory.weight_groups import WeightGroups
from diffusers_helper.models.blocks import (
    Conditioning,
    DualBlock,
    Modulation,
    SingleBlock,
    TextRefiner,
    layer_norm,
    modulate,
)
from diffusers_helper.models.execution import Execution
from diffusers_helper.models.fused import contiguous, present
from diffusers_helper.models.linear import Linear, PatchConv
from diffusers_helper.models.module_list import ModuleList
from diffusers_helper.models.rope import as_tokens, pad_to_multiple, pooled, rope_field, with_still
from diffusers_helper.models.step_cache import StepCache

T = TypeVar("T")


@dataclass(frozen=True)
class TransformerConfig:
    """Hold the hub's config.json; defaults are those of both published checkpoints."""

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    num_layers: int = 20
    num_single_layers: int = 40
    num_refiner_layers: int = 2
    mlp_ratio: float = 4.0
    patch_size: int = 2
    patch_size_t: int = 1
    guidance_embeds: bool = True
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    rope_theta: float = 256.0
    rope_axes_dim: tuple[int, ...] = (16, 56, 56)
    image_proj_dim: int = 1152
    has_image_proj: bool = True
    has_clean_x_embedder: bool = True

    @property
    def dim(self) -> int:
        """Return the width of tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TransformerConfig:
        """Make a config from config.json; keys beyond ours (class name, versions) are passed over.

        Raises ValueError where the sizes cannot belong together.
        """
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in document.items() if key in known and value is not None}
        if "rope_axes_dim" in values:
            values["rope_axes_dim"] = tuple(values["rope_axes_dim"])
        config = cls(**values)
        axes = config.rope_axes_dim
        if len(axes) != 3 or any(dim % 2 for dim in axes) or sum(axes) != config.attention_head_dim:
            raise ValueError(f"rope_axes_dim {axes} is not three even numbers that sum to {config.attention_head_dim}")
        if (config.patch_size, config.patch_size_t) != (2, 1):
            raise ValueError(f"patch size {config.patch_size_t}x{config.patch_size} is not the 1x2 of FramePack")
        return config


@dataclass(frozen=True)
class Clean:
    """Hold noise-free latents to look at: latents (1, channels, T, h, w) and their T time positions."""

    latents: Tensor
    times: Sequence[int]


@dataclass(frozen=True)
class JobTables:
    """Hold what every section with this prompt, guidance and schedule shares; the first dimension is the step.

    context: (steps, image + text tokens, dim). dual, single: modulation tables of the blocks. head: (steps, 2 dim).
    """

    context: Tensor
    dual: tuple[tuple[Tensor, Tensor], ...]
    single: tuple[Tensor, ...]
    head: Tensor


@dataclass(frozen=True)
class SectionTables:
    """Hold what a section's steps share. clean: (1, clean tokens, dim), in the order 4x, 2x, 1x. rope: (2, tokens, 1, D)."""

    clean: Tensor
    rope: Tensor


class LatentEmbed(nn.Module):
    """Embed noisy latents as tokens, a 1x2x2 patch each."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = PatchConv(channels, dim, (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (1, T h w / 4, dim) of latents (1, channels, T, h, w)."""
        return rearrange(self.proj(x), "b d t h w -> b (t h w) d")


class CleanEmbed(nn.Module):
    """Embed clean latents as tokens at three resolutions."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = PatchConv(channels, dim, (1, 2, 2))
        self.proj_2x = PatchConv(channels, dim, (2, 4, 4))
        self.proj_4x = PatchConv(channels, dim, (4, 8, 8))

    def forward(self, latents: Tensor, factor: int) -> Tensor:
        """Return tokens (1, tokens, dim) of latents (1, channels, T, h, w); factor: 1, 2 or 4."""
        conv = {1: self.proj, 2: self.proj_2x, 4: self.proj_4x}[factor]
        if factor > 1:
            latents = pad_to_multiple(latents, conv.kernel_size)
        return rearrange(conv(latents), "b d t h w -> b (t h w) d")


class ImageProjection(nn.Module):
    """Project the vision encoder's tokens to the transformer's width."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.up = Linear(in_dim, dim * 3)
        self.down = Linear(dim * 3, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return image tokens (1, tokens, dim) of the vision encoder's (1, tokens, in_dim)."""
        return self.down(F.silu(self.up(x)))


class PackedTransformer(nn.Module):
    """Predict the velocity of noisy latents. Batch 1; real guidance is a second pass with tables of its own."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, heads, ratio = config.dim, config.num_attention_heads, config.mlp_ratio
        self.config, self._execution = config, Execution()
        self.x_embedder = LatentEmbed(config.in_channels, dim)
        self.context_embedder = TextRefiner(config.text_embed_dim, dim, heads, ratio, config.num_refiner_layers)
        self.time_text_embed = Conditioning(config.pooled_projection_dim, dim, config.guidance_embeds)
        dual = (DualBlock(dim, heads, ratio) for _ in range(config.num_layers))
        single = (SingleBlock(dim, heads, ratio) for _ in range(config.num_single_layers))
        self.transformer_blocks: ModuleList[DualBlock] = ModuleList(dual)
        self.single_transformer_blocks: ModuleList[SingleBlock] = ModuleList(single)
        if config.has_clean_x_embedder:
            self.clean_x_embedder = CleanEmbed(config.in_channels, dim)
        if config.has_image_proj:
            self.image_projection = ImageProjection(config.image_proj_dim, dim)
        self.norm_out = Modulation(dim, 2)
        self.proj_out = Linear(dim, 4 * config.out_channels)

    @property
    def execution(self) -> Execution:
        """Return what the network runs with."""
        return self._execution

    def running_with(self, execution: Execution) -> PackedTransformer:
        """Return this network, with the same weights, as it runs with `execution`; this one stays as it is."""
        net = copy.copy(self)
        net._execution = execution
        return net

    @property
    def device(self) -> torch.device:
        """Return the device that the network is computed on, where its last linear layer lies."""
        return self.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision that tokens are computed in, which the last linear layer has."""
        return self.proj_out.weight.dtype

    def block_linears(self) -> dict[str, Linear]:
        """Return the linear layers of the blocks that run at every step: those whose weights may be kept in 8 bits.

        Modulation, embedders, refiner and head stay wide: they run once or are small, and an error there acts on every token.
        """
        inside = ("transformer_blocks.", "single_transformer_blocks.")
        named = self.named_modules()
        return {name: m for name, m in named if isinstance(m, Linear) and name.startswith(inside) and ".norm" not in name}

    def contiguous(self) -> list[tuple[str, ...]]:
        """Return names of tensors that a slab holds without a gap, so that a block multiplies once with all of them."""
        names = {module: name for name, module in self.named_modules()}
        blocks = (*self.transformer_blocks, *self.single_transformer_blocks)
        together = [[names[layer] for layer in layers] for block in blocks for layers in block.together()]
        return [row for layers in together for row in contiguous(layers)]

    def weight_groups(self) -> WeightGroups:
        """Return what streaming may move on its own: each block without its modulation, and what only tables are made of."""
        blocks = {f"dual/{number}": block for number, block in enumerate(self.transformer_blocks)}
        blocks |= {f"single/{number}": block for number, block in enumerate(self.single_transformer_blocks)}
        step, tables = {}, {}
        for name, block in blocks.items():
            children = list(block.children())
            step[name] = [child for child in children if not isinstance(child, Modulation)]
            tables[f"{name}/tables"] = [child for child in children if isinstance(child, Modulation)]
        job = {"time": [self.time_text_embed], "text": [self.context_embedder]}
        if self.config.has_image_proj:
            job["image"] = [self.image_projection]
        always = [self.x_embedder, self.proj_out]
        if self.config.has_clean_x_embedder:
            always.append(self.clean_x_embedder)
        rows = present(self.contiguous(), {**dict(self.named_parameters()), **dict(self.named_buffers())})
        return WeightGroups(always=always, job={**job, **tables, "head/tables": [self.norm_out]}, step=step, contiguous=rows)

    @torch.inference_mode()
    def prepare_job(
        self,
        text: Tensor,
        pooled_text: Tensor,
        image: Tensor | None,
        guidance: float,
        sigmas: Sequence[float],
    ) -> JobTables:
        """Compute the tables for all steps.

        text: (1, valid tokens, text_embed_dim), without padding. pooled_text: (1, pooled_projection_dim). image: (1, tokens,
        image_proj_dim) or None. guidance: the distilled scale, such as 10. sigmas: noise level of each step. Time (1000 sigma)
        and guidance (1000 scale) are rounded to the weights' dtype before they are embedded, as the reference does.
        """
        return self._retry_after_oom(lambda: self._job_tables(text, pooled_text, image, guidance, sigmas))

    def _job_tables(
        self, text: Tensor, pooled_text: Tensor, image: Tensor | None, guidance: float, sigmas: Sequence[float]
    ) -> JobTables:
        text, pooled_text = self._cast(text), self._cast(pooled_text)
        levels = torch.as_tensor(list(sigmas), dtype=torch.float32, device=self.device)
        times = (levels * 1000.0).to(self.dtype).split(1)
        scale = torch.full((1,), guidance * 1000.0, device=self.device).to(self.dtype)
        guide = scale if self.config.guidance_embeds else None
        # One level at a time: a larger matrix product would round differently from the step that is computed on its own.
        lend, attend = self.execution.weights.lend, self.execution.attend
        with self.execution.weights.job():
            with lend("time"):
                vectors = [self.time_text_embed(time, pooled_text, guide) for time in times]
            with lend("text"):
                context = torch.cat([self.context_embedder(text, time, attend) for time in times])
            if image is not None:
                with lend("image"):
                    tokens = self.image_projection(self._cast(image))
                context = torch.cat([tokens.expand(len(times), -1, -1), context], dim=1)

            def tables(name: str, *modulations: Modulation) -> tuple[Tensor, ...]:
                with lend(f"{name}/tables"):
                    return tuple(torch.cat([modulation(vector) for vector in vectors]) for modulation in modulations)

            dual, single = enumerate(self.transformer_blocks), enumerate(self.single_transformer_blocks)
            of_dual = (tables(f"dual/{number}", block.norm1, block.norm1_context) for number, block in dual)
            return JobTables(
                context=context,
                dual=tuple((latents, text) for latents, text in of_dual),
                single=tuple(tables(f"single/{number}", block.norm)[0] for number, block in single),
                head=tables("head", self.norm_out)[0],
            )

    @torch.inference_mode()
    def prepare_section(
        self,
        times: Sequence[int],
        height: int,
        width: int,
        clean: Clean | None = None,
        clean_2x: Clean | None = None,
        clean_4x: Clean | None = None,
    ) -> SectionTables:
        """Compute clean tokens and rotary tables.

        times: positions of the noisy latents. height, width: of the latents, even numbers; clean latents have the same. Raises
        ValueError for sides that do not divide into patches.
        """
        if height % 2 or width % 2:
            raise ValueError(f"latents of {height}x{width} do not divide into 2x2 patches; pixel sides must be multiples of 16")
        parts = (4, clean_4x), (2, clean_2x), (1, clean)
        return self._retry_after_oom(lambda: self._section_tables(times, (height // 2, width // 2), parts))

    def _section_tables(
        self, times: Sequence[int], grid: tuple[int, int], parts: Sequence[tuple[int, Clean | None]]
    ) -> SectionTables:
        axes, theta = self.config.rope_axes_dim, self.config.rope_theta
        tokens, tables = [], []
        for factor, part in parts:
            if part is None:
                continue
            tokens.append(self.clean_x_embedder(self._cast(part.latents), factor))
            table = rope_field(part.times, *grid, axes, theta, self.device)
            tables.append(as_tokens(table if factor == 1 else pooled(table, factor)))
        tables.append(as_tokens(rope_field(times, *grid, axes, theta, self.device)))
        empty = torch.empty(1, 0, self.config.dim, dtype=self.dtype, device=self.device)
        return SectionTables(clean=torch.cat([empty, *tokens], dim=1), rope=torch.cat(tables, dim=1))

    @torch.inference_mode()
    def step(self, x: Tensor, index: int, job: JobTables, section: SectionTables, cache: StepCache | None = None) -> Tensor:
        """Return the velocity, (1, channels, T, h, w) float32, of noisy latents x of the same shape at step `index` of the
        tables.

        Raises torch.OutOfMemoryError where memory runs out though fewer weights are on the card.
        """
        undo = partial(cache.restore, cache.state()) if cache else None
        return self._retry_after_oom(lambda: self._step(x, index, job, section, cache), undo)

    def _step(self, x: Tensor, index: int, job: JobTables, section: SectionTables, cache: StepCache | None) -> Tensor:
        _, _, frames, height, width = x.shape
        noisy = self.x_embedder(self._cast(x))
        hidden = torch.cat([section.clean, noisy], dim=1)
        hidden = self._through_blocks(hidden, index, job, section, cache)
        scale, shift = job.head[index : index + 1].unsqueeze(1).chunk(2, dim=-1)
        hidden = modulate(layer_norm(hidden[:, -noisy.shape[1] :]), shift, scale)
        patches = self.proj_out(hidden.float() if self.execution.float32_head else hidden).float()
        sizes = {"t": frames, "h": height // 2, "w": width // 2, "ph": 2, "pw": 2}
        return rearrange(patches, "b (t h w) (c ph pw) -> b c t (h ph) (w pw)", **sizes)

    def _through_blocks(self, x: Tensor, index: int, job: JobTables, section: SectionTables, cache: StepCache | None) -> Tensor:
        """Return what the blocks make of x, or x plus what they added at the last computed step if the cache says so."""
        text = job.context[index : index + 1]
        if cache is None:
            return self._blocks(x, text, 0, index, job, section)
        if cache.after_first_block:
            first, text = self._dual(x, text, range(1), index, job, section)
            seen, begin = first - x, 1
        else:
            first, seen, begin = x, self._first_modulated(x, index, job), 0
        if not cache.must_compute(seen) and cache.residual is not None:
            return first + cache.residual
        made = self._blocks(first, text, begin, index, job, section)
        cache.residual = made - first
        return made

    def _first_modulated(self, hidden: Tensor, index: int, job: JobTables) -> Tensor:
        shift, scale = job.dual[0][0][index : index + 1].unsqueeze(1).chunk(6, dim=-1)[:2]
        return modulate(layer_norm(hidden), shift, scale)

    def _retry_after_oom(self, run: Callable[[], T], undo: Callable[[], None] | None = None) -> T:
        """Call `run`; once more with fewer weights on the card if something else took its memory meanwhile.

        undo: what to do before, where `run` changes something on its way.
        """
        try:
            return run()
        except torch.OutOfMemoryError:
            if not self.execution.weights.make_room():
                raise
        # Outside of the handler, whose exception keeps everything alive that was computed.
        if undo:
            undo()
        return run()

    def _blocks(self, x: Tensor, text: Tensor, begin: int, index: int, job: JobTables, section: SectionTables) -> Tensor:
        """Run all blocks from the dual block `begin` on; return the latent tokens."""
        how, latents, rows = self.execution, x.shape[1], slice(index, index + 1)
        x, text = self._dual(x, text, range(begin, len(self.transformer_blocks)), index, job, section)
        x, rope = torch.cat([x, text], dim=1), with_still(section.rope, text.shape[1])
        for number, (block, table) in enumerate(zip(self.single_transformer_blocks, job.single, strict=True)):
            with how.weights.lend(f"single/{number}"):
                x = how.passes.single(block, x, table[rows], rope, how.attend, block.fused(), how.product)
        return x[:, :latents]

    def _dual(
        self, x: Tensor, text: Tensor, numbers: range, index: int, job: JobTables, section: SectionTables
    ) -> tuple[Tensor, Tensor]:
        how, rows = self.execution, slice(index, index + 1)
        for number in numbers:
            block, (latent_table, text_table) = self.transformer_blocks[number], job.dual[number]
            # Around the block, not inside: a compiled block must not depend on who brings its weights, nor on where they lie.
            with how.weights.lend(f"dual/{number}"):
                table, fused = (latent_table[rows], text_table[rows]), block.fused()
                x, text = how.passes.dual(block, x, text, table, section.rope, how.attend, fused, how.product)
        return x, text

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)
