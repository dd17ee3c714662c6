"""Make inputs of one forward pass in the layouts of the three modes, and networks that run with chosen parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusers_helper.memory.streaming import gather, tensors_of
from diffusers_helper.models.transformer import Clean, PackedTransformer, TransformerConfig

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class Layout:
    """Hold time positions of the noisy latents and of the three clean streams."""

    times: tuple[int, ...]
    clean: tuple[int, ...]
    clean_2x: tuple[int, ...]
    clean_4x: tuple[int, ...]


def positions(*lengths: int) -> list[tuple[int, ...]]:
    """Return consecutive runs of positions with these lengths, from 0 on."""
    runs, start = [], 0
    for length in lengths:
        runs.append(tuple(range(start, start + length)))
        start += length
    return runs


def _reverse(padding: int, window: int) -> Layout:
    start, _, times, after, two, four = positions(1, padding, window, 1, 2, 16)
    return Layout(times, start + after, two, four)


def _forward(window: int) -> Layout:
    start, four, two, last, times = positions(1, 16, 2, 1, window)
    return Layout(times, start + last, two, four)


# Written down by hand, not with the product's plans.
LAYOUTS = {
    "reverse, padding 3": _reverse(27, 9),
    "reverse, last section": _reverse(0, 9),
    "reverse, half window": _reverse(10, 5),
    "forward": _forward(9),
    "one picture": Layout((1,), (0, 10), (11, 12), tuple(range(13, 29))),
}
GRIDS = ((10, 6), (20, 22), (16, 12))


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    text: Tensor
    pooled: Tensor
    image: Tensor | None
    layout: Layout
    clean: Tensor | None
    clean_2x: Tensor | None
    clean_4x: Tensor | None

    def without(self, *parts: str) -> Inputs:
        """Return the inputs without some of "clean", "clean_2x", "clean_4x" and "image"."""
        return replace(self, **dict.fromkeys(parts))


def inputs(layout: Layout, height: int, width: int, seed: int = 0) -> Inputs:
    """Make random inputs for the tiny transformer."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def latents(times: tuple[int, ...]) -> Tensor:
        return random(1, 16, len(times), height, width)

    return Inputs(
        x=latents(layout.times),
        text=random(1, 13, 32),
        pooled=random(1, 16),
        image=random(1, 7, 12),
        layout=layout,
        clean=latents(layout.clean),
        clean_2x=latents(layout.clean_2x),
        clean_4x=latents(layout.clean_4x),
    )


def section_of(net: PackedTransformer, given: Inputs):
    def clean(latents: Tensor | None, times: tuple[int, ...]) -> Clean | None:
        return None if latents is None else Clean(latents, times)

    layout = given.layout
    return net.prepare_section(
        layout.times,
        *given.x.shape[-2:],
        clean(given.clean, layout.clean),
        clean(given.clean_2x, layout.clean_2x),
        clean(given.clean_4x, layout.clean_4x),
    )


def in_slabs(net: PackedTransformer) -> None:
    """Move the blocks' weights into slabs, as for a card, so that layers of one input are one product."""
    parts = net.weight_groups()
    gather({name: tensors_of(modules) for name, modules in parts.step.items()}, parts.contiguous)
    assert all(view for block in (*net.transformer_blocks, *net.single_transformer_blocks) for view in block.fused())


def random_net(config: dict, dual: int, single: int) -> PackedTransformer:
    """Make a network with `dual` and `single` blocks, each with random weights of its own."""
    torch.manual_seed(0)
    net = PackedTransformer(TransformerConfig.from_json({**config, "num_layers": dual, "num_single_layers": single}))
    for parameter in net.parameters():
        parameter.normal_(std=0.08)
    return net.eval().requires_grad_(False)


def running(net: PackedTransformer, **changes: object) -> PackedTransformer:
    """Return the network with other fields of its `Execution`."""
    return net.running_with(dataclasses.replace(net.execution, **changes))


def velocity(net: PackedTransformer, given: Inputs, sigma: float = 0.7, guidance: float = 10.0) -> Tensor:
    job = net.prepare_job(given.text, given.pooled, given.image, guidance, [sigma])
    return net.step(given.x, 0, job, section_of(net, given))


def product_on_a_processor(
    q: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute on the CPU what `narrow._product` computes on a card."""
    y = (q.float() @ weight.float().t()) * scale * weight_scale.float().t()
    return (y if bias is None else y + bias.float()).bfloat16()


def returned(work: Generator[object, None, torch.Tensor]) -> torch.Tensor:
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
