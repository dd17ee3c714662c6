"""Time a whole section from noise to frames: `python -m benchmarks.section [--sizes 640x608] [--only own] [--sampling 25]`.

It samples with every step computed, then decodes the nine new latents together with nine that the film has already. Weights are
random, in the published architecture; diffusers' two classes in their defaults are the first row. --tiny: a small architecture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from benchmarks import decode
from benchmarks.measure import (
    Row,
    forget_peak,
    gpu_peak,
    host_peak,
    make_parser,
    matrix_rate,
    relative,
    report,
    shown,
    sizes_of,
    timed,
)
from benchmarks.step import CASES, TINY, Work, empty, operations, own, tokens_of
from diffusers_helper.memory.memory import placement
from diffusers_helper.models.transformer import TransformerConfig
from diffusers_helper.sampling import schedule, unipc

# Cases that are measured without --only.
CHOSEN = ("diffusers", "own", "own, compiled", "own, float8")


def sampled(work: Work, net: torch.nn.Module, ours: bool, sigmas: list[float]) -> Tensor:
    """Sample a section and return its latents, (1, 16, 9, h, w).

    The time includes the tables that are computed once for a job or section. ours: net is this program's class.
    """
    job, section = work.tables(net, sigmas[:-1]) if ours else (None, None)

    def denoise(x: Tensor, step: int) -> Tensor:
        velocity = net.step(x, step, job, section) if ours else work.theirs(net, x, sigmas[step])()
        return x.to(work.x.dtype).float() - sigmas[step] * velocity.float()

    *_, (_, latents) = unipc(denoise, work.x.float(), sigmas)
    return latents


@torch.inference_mode()
def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Time a whole section, sampling and decoding, in each case and size, and yield a row for each."""
    where = placement(options.device)
    place, dtype = where.device, where.transformer
    config, fields = (TINY, decode.TINY) if options.tiny else (TransformerConfig(), {})
    rate, picture_rate = matrix_rate(place, dtype), matrix_rate(place, where.encoder)
    vae = empty(lambda: AutoencoderKLHunyuanVideo(**fields), place, where.encoder)
    first: dict[str, tuple[float, Tensor]] = {}
    for case in options.only or CHOSEN:
        kind, *choice = CASES[case]
        net = kind(config, place, dtype, *choice)
        ours = kind is own
        for width, height in sizes_of(options):
            size, work = f"{width}x{height}", Work(config, height, width, place, dtype)
            sigmas = schedule(options.sampling, work.x[0, 0].numel() // 4)

            def run(work: Work = work, net: torch.nn.Module = net, ours: bool = ours, sigmas: list[float] = sigmas) -> Tensor:
                latents = sampled(work, net, ours, sigmas)
                z = torch.cat([work.x.float(), latents], dim=2).to(where.encoder)
                return (decode.own_next if ours else decode.default)(vae, z)

            forget_peak(place)
            took = timed(run, place, 1)
            made = sampled(work, net, ours, sigmas).cpu()
            before, exact = first.setdefault(size, (took, made))
            cost = options.sampling * operations(config, tokens_of(work)) / rate
            cost += decode.operations(vae, 9, height // 8, width // 8) / picture_rate
            yield Row(size, case, took, before / took, relative(made, exact), gpu_peak(place), host_peak(), 1000 * cost)
        del net, run


def main() -> None:
    """Measure what the command line asks for, and print the rows."""
    parser = make_parser("section", __doc__, "640x608", list(CASES))
    parser.add_argument("--sampling", type=int, default=25, help="steps of a section")
    options = parser.parse_args()
    print(report(shown(measure(options)), placement(options.device).device, options.json))


if __name__ == "__main__":
    main()
