"""Measure how long one step takes, beside diffusers': `python -m benchmarks.step [--sizes 640x608] [--only own] [--steps N]`.

Weights are random, in the published architecture, and made on the device. The first row of each size is diffusers'
HunyuanVideoFramepackTransformer3DModel as it is. Further rows: the same with diffusers' group offload by leaves with a stream,
and with accelerate's hooks for every leaf, which swap parameter by parameter without overlap. This program's own cases hold on
the card what the program holds there while it samples; "streamed" may take --card-gib of the card. --tiny: a small
architecture, for a machine without a card.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from accelerate import cpu_offload
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor, nn

from benchmarks.measure import (
    GIB,
    Row,
    finish,
    forget_peak,
    gpu_peak,
    host_peak,
    make_parser,
    matrix_rate,
    randomise,
    relative,
    report,
    shown,
    sizes_of,
    timed,
)
from diffusers_helper.memory.budget import Budget
from diffusers_helper.memory.device import CudaDevice, Device
from diffusers_helper.memory.memory import placement
from diffusers_helper.memory.streaming import Streamer
from diffusers_helper.models.attention import choose_attention
from diffusers_helper.models.compiled import EAGER, choose_passes
from diffusers_helper.models.execution import Execution
from diffusers_helper.models.linear import quantise
from diffusers_helper.models.narrow import choose_product
from diffusers_helper.models.transformer import (
    Clean,
    JobTables,
    PackedTransformer,
    SectionTables,
    TransformerConfig,
)
from eichi_utils.requests.plan import CONTEXT, lay

# Noisy latent frames, and numbers of text and image tokens.
WINDOW, TEXT, IMAGE = 9, 60, 729
TINY = TransformerConfig(
    num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=32,
    pooled_projection_dim=16, rope_axes_dim=(4, 6, 6), image_proj_dim=12,
)  # fmt: skip
SIGMA, GUIDANCE = 0.7, 10.0
# Seconds that each case runs before it is timed: a card that rested is some per cent faster until it is warm.
WARM = 10.0
Run = Callable[[], Tensor]


class Work:
    """Hold random inputs for a step of the standard mode's second section, at height x width pixels."""

    def __init__(self, config: TransformerConfig, height: int, width: int, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        start, _, self.times, after, self.two, self.four = lay(1, 2 * WINDOW, WINDOW, *CONTEXT)
        self.clean = [start[0], after[0]]
        self.device, self.grid = device, (height // 8, width // 8)
        self.x, self.latents = random(1, 16, WINDOW, *self.grid), {n: random(1, 16, n, *self.grid) for n in (2, 16)}
        self.text, self.pooled = random(1, TEXT, config.text_embed_dim), random(1, config.pooled_projection_dim)
        self.image = random(1, IMAGE, config.image_proj_dim)

    def theirs(self, net: nn.Module, x: Tensor | None = None, sigma: float = SIGMA) -> Run:
        """Return a call that runs diffusers' network once. x: the noisy latents, else this object's own. sigma: noise level."""
        dtype, device = self.x.dtype, self.device

        def times(values: object) -> Tensor:
            return torch.tensor(list(values), device=device)

        given = {
            "hidden_states": self.x if x is None else x.to(dtype),
            "timestep": torch.tensor([sigma * 1000], device=device).to(dtype).float(),
            "guidance": torch.tensor([GUIDANCE * 1000], device=device).to(dtype).float(),
            "encoder_hidden_states": self.text,
            "encoder_attention_mask": torch.ones(1, TEXT, dtype=torch.bool, device=device),
            "pooled_projections": self.pooled,
            "image_embeds": self.image,
            "indices_latents": times(self.times),
            "latents_clean": self.latents[2],
            "indices_latents_clean": times(self.clean),
            "latents_history_2x": self.latents[2],
            "indices_latents_history_2x": times(self.two),
            "latents_history_4x": self.latents[16],
            "indices_latents_history_4x": times(self.four),
        }
        return lambda: net(**given, return_dict=False)[0]

    def own(self, net: PackedTransformer) -> Run:
        """Return a call that runs one step of this program's network, whose tables are made before."""
        job, section = self.tables(net, [SIGMA])
        return lambda: net.step(self.x, 0, job, section)

    def tables(self, net: PackedTransformer, sigmas: list[float]) -> tuple[JobTables, SectionTables]:
        """Return the tables of a job and of a section: all that is computed once and not in every step."""
        job = net.prepare_job(self.text, self.pooled, self.image, GUIDANCE, sigmas)
        parts = Clean(self.latents[2], self.clean), Clean(self.latents[2], self.two), Clean(self.latents[16], self.four)
        return job, net.prepare_section(self.times, *self.grid, *parts)


def tokens_of(work: Work) -> int:
    """Return the number of tokens of a step: noisy and clean patches, 2x and 4x history patches, text and image tokens.

    History latents are padded to whole patches.
    """
    rows, columns = work.grid
    patches = (
        (WINDOW + 2) * (rows // 2) * (columns // 2) + -(-rows // 4) * -(-columns // 4) + 4 * -(-rows // 8) * -(-columns // 8)
    )
    return patches + TEXT + IMAGE


def empty(make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Make a network with random weights directly on the device, without a copy in other memory."""
    with torch.device("meta"):
        net = make().to(dtype)
    net = net.to_empty(device=device).requires_grad_(False).eval()
    randomise(net)
    return net


def theirs(config: TransformerConfig, device: torch.device, dtype: torch.dtype, offload: str) -> nn.Module:
    """Make diffusers' network with random weights.

    offload: "group" or "sequential", two ways to stream weights to the device; "" keeps them all on the device.
    """
    fields = {name: getattr(config, name) for name in TransformerConfig.__dataclass_fields__}
    net = empty(lambda: HunyuanVideoFramepackTransformer3DModel(**fields), device, dtype)
    if offload == "group":
        net.cpu().enable_group_offload(device, offload_type="leaf_level", use_stream=True)
    elif offload == "sequential":
        cpu_offload(net.cpu(), device)
    return net


def own(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, storage: str | None, fuse: bool
) -> PackedTransformer:
    """Make this program's network with random weights.

    storage: "int8" or "float8", how its weights are kept; None for `dtype`. fuse: whether elementwise operations are compiled.
    """
    net = empty(lambda: PackedTransformer(config), device, dtype)
    if storage:
        for layer in net.block_linears().values():
            weight, layer.weight_scale = quantise(layer.weight, storage, dtype)
            layer.weight = nn.Parameter(weight, requires_grad=False)
    join(net)
    product = choose_product(device) if storage == "float8" else None
    passes = choose_passes(device) if fuse else EAGER
    return net.running_with(Execution(attend=choose_attention(device, dtype).kernel, passes=passes, product=product))


def join(net: PackedTransformer) -> None:
    """Move the weights that are used together next to each other in memory, as they lie in a slab."""
    for row in net.weight_groups().contiguous:
        whole = torch.cat([tensor.data for tensor in row])
        for tensor, part in zip(row, whole.split([len(tensor) for tensor in row]), strict=True):
            tensor.data = part


def forget_tables(net: PackedTransformer) -> None:
    """Free the weights that only the job's tables are made of: the program has them on no card while it samples."""
    for modules in net.weight_groups().job.values():
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.new_empty(0)


def streamed(net: PackedTransformer, card: Device, tokens: int, itemsize: int) -> tuple[PackedTransformer, Streamer]:
    """Return the network with its weights in host memory, streamed to the card, and the streamer to be closed.

    As many weights stay on the card as fit beside the estimated activations of a step. tokens: of a step. itemsize: bytes of an
    activation's number.
    """
    streamer = Streamer(card, net.weight_groups())
    streamer.lock(streamer.step_bytes)
    streamer.fit(Budget(0).for_weights(card.free(), Budget(0).estimate(tokens, net.config.dim, itemsize)))
    return net.running_with(replace(net.execution, weights=streamer)), streamer


CASES: Mapping[str, tuple] = {
    "diffusers": (theirs, ""),
    "diffusers, leaves offloaded": (theirs, "group"),
    "accelerate, sequential": (theirs, "sequential"),
    "own": (own, None, False),
    "own, compiled": (own, None, True),
    "own, int8": (own, "int8", True),
    "own, float8": (own, "float8", True),
    "own, compiled, streamed": (own, None, True),
    "own, float8, streamed": (own, "float8", True),
}

# Cases that stream weights to a card, and so need one.
ON_A_CARD = ("diffusers, leaves offloaded", "own, compiled, streamed", "own, float8, streamed")


def operations(config: TransformerConfig, tokens: int) -> float:
    """Return the floating-point operations of a step with N tokens and a width of d.

    A block takes 24 d^2 for each token in linear layers (two operations a weight) and 4 N^2 d in attention. In dual blocks
    latent and text tokens have different weights, but each token passes one set.
    """
    blocks = config.num_layers + config.num_single_layers
    return blocks * (24 * config.dim**2 * tokens + 4 * tokens**2 * config.dim)


# As in the program this is not inference mode: the data of an inference tensor cannot be replaced.
@torch.no_grad()
def measure(
    config: TransformerConfig, sizes: list[tuple[int, int]], cases: list[str], steps: int, device: str, card_gib: float = 6.0
) -> Iterator[Row]:
    """Time each case at all sizes, and yield a row for each. A case is built once for all sizes.

    card_gib: all of the card that "streamed" cases may take.
    """
    where = placement(device)
    place, dtype = where.device, where.transformer
    rate = matrix_rate(place, dtype)
    first: dict[str, tuple[float, Tensor]] = {}
    for case in cases:
        forget_peak(place)
        kind, *choice = CASES[case]
        net = kind(config, place, dtype, *choice)
        streamer = None
        if case.endswith("streamed"):
            net.cpu()
            forget_peak(place)
            card = CudaDevice(place, int(card_gib * GIB))
            biggest = max(tokens_of(Work(config, height, width, place, dtype)) for width, height in sizes)
            net, streamer = streamed(net, card, biggest, dtype.itemsize)
        runs = {}
        for width, height in sizes:
            work = Work(config, height, width, place, dtype)
            runs[width, height] = work.own(net) if kind is own else work.theirs(net)
        if kind is own:
            forget_tables(net)
        for width, height in sizes:
            size, run = f"{width}x{height}", runs[width, height]
            forget_peak(place)
            began = time.perf_counter()
            while place.type == "cuda" and time.perf_counter() - began < WARM:
                run()
                finish(place)
            took = timed(run, place, steps)
            made = run().float().cpu()
            before, exact = first.setdefault(size, (took, made))
            floor = 1000 * operations(config, tokens_of(Work(config, height, width, place, dtype))) / rate
            yield Row(size, case, took, before / took, relative(made, exact), gpu_peak(place), host_peak(), floor)
        del net, run, runs
        if streamer is not None:
            streamer.close()
            torch.cuda.set_per_process_memory_fraction(1.0, card.device)


def main() -> None:
    """Measure what the command line asks for, and print the rows."""
    parser = make_parser("step", __doc__, "640x608,512x512,416x960", list(CASES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--card-gib", type=float, default=6.0, help="all of the card that the streamed cases may take")
    options = parser.parse_args()
    config = TINY if options.tiny else TransformerConfig()
    place = placement(options.device).device
    cases = options.only or [case for case in CASES if place.type == "cuda" or case not in ON_A_CARD]
    if place.type != "cuda" and set(cases) & set(ON_A_CARD):
        parser.error("weights are streamed to a CUDA card, and there is none")
    rows = shown(measure(config, sizes_of(options), cases, options.steps, options.device, options.card_gib))
    print(report(rows, place, options.json))


if __name__ == "__main__":
    main()
