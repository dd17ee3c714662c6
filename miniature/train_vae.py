"""Training of the VAE: pictures through the exact 2-D form first, then pictures and clips in turn; then statistics."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image
from torch import Tensor

from diffusers_helper.buckets import cover_crop
from miniature import vae as passes
from miniature.clips import HELD_OUT, render, scenes
from miniature.noise import choice
from miniature.optimizer import FlatParameters, Optimizer
from miniature.pictures import bank
from miniature.training import LOOK, Session, Stepper, cosine, load_into, save_half

KINDS = {"move": 3, "pan": 2, "zoom": 2, "grow": 1, "turn": 1, "still": 0.5}
# Batches rendered at a time.
BLOCK = 32
NOISE = 0.15


def picture_batch(seeds: Tensor, pictures: Tensor, side: int) -> Tensor:
    """(B, 3, side, side): single frames of clips."""
    scene = scenes(seeds, len(pictures), KINDS, simple=0.15, speeds=0.3)
    return render(scene, pictures, torch.zeros(1), side, side)[:, :, 0]


def clip_batch(seeds: Tensor, pictures: Tensor, side: int, frames: int) -> Tensor:
    """(B, 3, frames, side, side): clips that begin somewhere in the first section."""
    scene = scenes(seeds, len(pictures), KINDS, simple=0.2, speeds=0.6)
    begin = int(choice(seeds[:1], 90, 20))
    return render(scene, pictures, torch.arange(begin, begin + frames), side, side)


def psnr(mse: float) -> float:
    """dB of values in -1..1."""
    return float(10 * numpy.log10(4 / max(mse, 1e-12)))


def train(
    folder: Path,
    session: Session,
    resume: bool,
    peak: float,
    pictures_until: float = 0.5,
    photos: Path | None = None,
    pictures: int = 3072,
    detail: int = 256,
    batch: int = 32,
    clips: int = 4,
    frames: int = 17,
    side: int = 96,
) -> None:
    """Write `vae/` below `folder`: config and float16 weights, statistics folded. photos: pictures to watch, by PSNR."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(**passes.VAE_CONFIG)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    if resume:
        load_into(vae, weights)
    vae.to(session.device)
    flat = FlatParameters(vae, session.dtype)
    optimizer = Optimizer(flat, by_muon=lambda name: "conv_out" not in name and "quant" not in name)
    stepper = Stepper(session, flat, optimizer)
    torch.manual_seed(session.rank + 1)
    source = bank(session.seeds(int(resume), pictures, HELD_OUT), detail)
    session.log(pictures=len(source), parameters=sum(p.numel() for p in vae.parameters()))

    still = torch.zeros(batch, 3, side, side, device=session.device, dtype=session.dtype)
    moving = torch.zeros(clips, 3, frames, side, side, device=session.device, dtype=session.dtype)

    def both_ways(true: Tensor) -> tuple[Tensor, Tensor]:
        z = passes.encode(vae, true)
        return passes.loss(passes.decode(vae, passes.noisy(z, NOISE)), true, z)

    stepper.add("pictures", lambda: both_ways(still))
    session.log(ready="pictures")
    blocks: dict[str, Tensor] = {}
    sums = {"pictures": torch.zeros(4, device=session.device), "clips": torch.zeros(4, device=session.device)}
    counts = dict.fromkeys(sums, 0)
    drawn, watched, has_clips = 0, 0.0, False
    while session.running():
        optimizer.rate.fill_(cosine(session.progress, peak))
        name = "pictures"
        if session.progress >= pictures_until and session.steps % 3:
            name = "clips"
            if not has_clips:
                stepper.add("clips", lambda: both_ways(moving))
                has_clips = True
        turn = counts[name] % BLOCK
        if turn == 0:
            drawn += 1
            size = (batch if name == "pictures" else clips) * BLOCK
            seeds = session.seeds(drawn, 8192, HELD_OUT)[:size]
            if name == "pictures":
                blocks[name] = picture_batch(seeds, source, side).to(session.dtype)
            else:
                parts = [clip_batch(part, source, side, frames) for part in seeds.split(clips * 4)]
                blocks[name] = torch.cat(parts).to(session.dtype)
        target = still if name == "pictures" else moving
        target.copy_(blocks[name][turn * len(target) : (turn + 1) * len(target)])
        value, axes = stepper.run(name)
        sums[name] += torch.cat([value[None], axes])
        counts[name] += 1
        if session.steps % (25 * LOOK) == 0 or (session.device.type == "cpu" and session.steps % 5 == 0):
            mean = (sums[name] / max(1, counts[name] - counts.get(f"{name} before", 0))).tolist()
            counts[f"{name} before"] = counts[name]
            sums[name].zero_()
            axes_db = {f"psnr_{axis}": psnr(mse) for axis, mse in zip(("light", "red_blue", "green"), mean[1:], strict=True)}
            rate, skipped = optimizer.rate.item(), int(optimizer.skipped)
            session.log(phase=name, loss=mean[0], psnr=psnr(sum(mean[1:]) / 3), **axes_db, rate=rate, skipped=skipped)
        if session.progress > watched + 0.1:
            watched = session.progress
            _watch(session, vae, flat, optimizer, photos)
            _save(session, flat.state(optimizer.ema), folder)
    finish(session, vae, flat.state(optimizer.ema), source, folder, photos, side)


def finish(
    session: Session,
    vae: AutoencoderKLHunyuanVideo,
    state: dict[str, Tensor],
    source: Tensor,
    folder: Path,
    photos: Path | None,
    side: int,
) -> None:
    """Fold the statistics of the latents into the weights and write them."""
    net = AutoencoderKLHunyuanVideo(**passes.VAE_CONFIG)
    net.load_state_dict({name: tensor.float().cpu() for name, tensor in state.items()})
    net.to(session.device).eval()
    with torch.no_grad():
        seeds = session.seeds(1, 256, HELD_OUT)
        z = passes.encode(net, picture_batch(seeds, source, side)).transpose(0, 1).flatten(1)
        parts = [passes.encode(net, clip_batch(s, source, side, 17)) for s in seeds[:64].split(8)]
        z = torch.cat([z, torch.cat(parts).transpose(0, 1).flatten(1)], dim=1)
        passes.fold(net, z.mean(1), z.std(1))
    session.log(latent_std=z.std(1).tolist(), **photo_figures(net, photos))
    _save(session, net.state_dict(), folder)
    if session.rank == 0:
        net.save_config(folder / "vae")


@torch.no_grad()
def photo_figures(vae: AutoencoderKLHunyuanVideo, photos: Path | None, side: int = 160) -> dict[str, float]:
    """PSNR of each photo in the folder, as one frame."""
    figures = {}
    weight = next(vae.parameters())
    for path in sorted(photos.glob("*.*")) if photos else ():
        picture = cover_crop(Image.open(path).convert("RGB"), side, side)
        x = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None].to(weight.device, weight.dtype) / 127.5 - 1
        made = passes.decode(vae, passes.encode(vae, x)).float().clamp(-1, 1)
        figures[path.stem] = psnr((made - x.float()).square().mean().item())
    return figures


def _watch(
    session: Session, vae: AutoencoderKLHunyuanVideo, flat: FlatParameters, optimizer: Optimizer, photos: Path | None
) -> None:
    """Photos with the mean weights."""
    flat.compute.copy_(optimizer.ema)
    session.log(**photo_figures(vae, photos))
    flat.compute.copy_(flat.master)


def _save(session: Session, state: dict[str, Tensor], folder: Path) -> None:
    if session.rank == 0:
        save_half(state, folder / "vae" / "diffusion_pytorch_model.safetensors", torch.float16)
