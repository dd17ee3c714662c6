"""Time the decoding of latents to frames: `python -m benchmarks.decode [--sizes 640x608] [--latents 9,18] [--json]`.

The VAE is diffusers' AutoencoderKLHunyuanVideo with random weights in the published architecture. Rows: as it is (the first
one), with its own tiles in space, and through `diffusers_helper.vae.vae_decode`: alone, with the tiles that were kept from the
part of the film decoded before, with compiled normalisation, and within 3 GiB. --tiny: a small architecture, for a machine
without a card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from benchmarks.measure import (
    GIB,
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
from benchmarks.step import empty
from diffusers_helper.memory.memory import placement
from diffusers_helper.vae.vae_decode import Decoder, TileCache, side_for
from diffusers_helper.vae.vae_layers import norm_silu

TINY = {"block_out_channels": (8, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 4}
# New latents of a section.
NEW = 9


def default(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode z (1, 16, t, h, w) with diffusers' class in its defaults; returns (1, 3, frames, height, width) on the CPU."""
    return vae.decode(z).sample.cpu()


def tiled(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode with diffusers' class in its own tiles."""
    vae.use_tiling = True
    made = vae.decode(z).sample.cpu()
    vae.use_tiling = False
    return made


def own(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode with this program's decoder, in whole frames."""
    return joined(Decoder(vae), z)


def own_next(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode the next part of a forward film, whose older time tiles were kept from the part before.

    Kept are the tiles that hold none of the nine newest latents. Their frames are zeros here, so this row's difference from the
    first row means nothing.
    """
    ratio = vae.temporal_compression_ratio
    length, stride = vae.tile_sample_min_num_frames // ratio + 1, vae.tile_sample_stride_num_frames // ratio
    known = [z[:, :, t : t + length] for t in range(0, z.shape[2] - NEW - length + 1, stride)]
    size = 4 * length - 3, 8 * z.shape[3], 8 * z.shape[4]
    return joined(Decoder(vae), z, TileCache([(part, torch.zeros(1, 3, *size, dtype=z.dtype)) for part in known]))


def own_compiled(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode with this program's decoder, its normalisation and activation compiled."""
    # One compilation serves all calls: torch keeps it with the function.
    return joined(Decoder(vae, norm_silu=torch.compile(norm_silu, dynamic=True)), z)


def own_small(vae: AutoencoderKLHunyuanVideo, z: Tensor) -> Tensor:
    """Decode with this program's decoder, in square tiles of which one takes at most 3 GiB."""
    return joined(Decoder(vae, side_for(vae, *z.shape[2:], 3 * GIB)), z)


def joined(decoder: Decoder, z: Tensor, tile_cache: TileCache | None = None) -> Tensor:
    """Decode z and return all frames joined, on the CPU."""
    return torch.cat([frames.cpu() for frames in decoder.frames(z, tile_cache)], dim=2)


CASES: Mapping[str, Callable[[AutoencoderKLHunyuanVideo, Tensor], Tensor]] = {
    "diffusers": default,
    "diffusers, tiles in space": tiled,
    "own": own,
    "own, a film's next stretch": own_next,
    "own, compiled": own_compiled,
    "own, 3 GiB": own_small,
}


def operations(vae: AutoencoderKLHunyuanVideo, latents: int, height: int, width: int) -> float:
    """Return the floating-point operations of all convolutions when latents are decoded in one piece, as diffusers does.

    Each weight counts two operations for each output cell.
    """
    frames, rows, columns, total = latents, height, width, 0.0
    net = vae.decoder

    def count(*modules: torch.nn.Module) -> float:
        convs = (conv for module in modules for conv in module.modules() if isinstance(conv, torch.nn.Conv3d))
        return 2.0 * frames * rows * columns * sum(conv.weight.numel() for conv in convs)

    total += count(net.conv_in, net.mid_block)
    for block in net.up_blocks:
        total += count(block.resnets)
        for upsampler in block.upsamplers or ():
            times, up, across = (int(factor) for factor in upsampler.upsample_factor)
            frames, rows, columns = times * (frames - 1) + 1, rows * up, columns * across
            total += count(upsampler)
    return total + count(net.conv_out)


@torch.inference_mode()
def measure(
    fields: dict, sizes: list[tuple[int, int]], lengths: list[int], cases: list[str], steps: int, device: str
) -> Iterator[Row]:
    """Time each case at each size and length, and yield a row for each. lengths: in latents. fields: of the VAE's config."""
    where = placement(device)
    place, dtype = where.device, where.encoder
    rate = matrix_rate(place, dtype)
    vae = empty(lambda: AutoencoderKLHunyuanVideo(**fields), place, dtype)
    for width, height in sizes:
        for length in lengths:
            generator = torch.Generator(place).manual_seed(0)
            z = torch.randn(1, 16, length, height // 8, width // 8, generator=generator, device=place).to(dtype)
            floor = 1000 * operations(vae, length, height // 8, width // 8) / rate
            first = None
            for case in cases:
                forget_peak(place)
                took = timed(partial(CASES[case], vae, z), place, steps)
                made = CASES[case](vae, z)
                first = first or (took, made)
                size = f"{width}x{height}, {length} latents"
                yield Row(size, case, took, first[0] / took, relative(made, first[1]), gpu_peak(place), host_peak(), floor)


def main() -> None:
    """Measure what the command line asks for, and print the rows."""
    parser = make_parser("decode", __doc__, "640x608", list(CASES))
    parser.add_argument("--latents", help="default: 10,18, with --tiny 3")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    usual = "3" if options.tiny else "10,18"
    sizes, lengths = sizes_of(options), [int(n) for n in (options.latents or usual).split(",")]
    fields = TINY if options.tiny else {}
    rows = shown(measure(fields, sizes, lengths, options.only or list(CASES), options.steps, options.device))
    print(report(rows, placement(options.device).device, options.json))


if __name__ == "__main__":
    main()
