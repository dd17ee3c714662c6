"""Train the VAE in four stages.

First: pictures alone through the exact 2-D form, then pictures and clips in turn; at the end the latents' statistics are folded
into the weights.
Second: training goes on, with a loss that holds the latents near those of the first stage, so that a transformer trained on
them stays usable. Clips are now decoded as the program does it: with the picture's own latent in front and damaged as by
sampling (`vae.worn`), or cut out of a longer film. Some pictures have motion blur, which the first stage never saw.
Decoder: as the second stage, but the encoder is frozen; short, and cheap enough for a CPU.
Sampled: the decoder alone again, with clean clips and with sections that the transformer itself has sampled (`sampled.py`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
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
from miniature.pictures import bank, streaked
from miniature.sampled import SampledPool, Sizes
from miniature.training import LOOK, Session, Stepper, cosine, load_into, metadata_of, save_half

KINDS = {"move": 3, "pan": 2, "zoom": 2, "grow": 1, "turn": 1, "still": 0.5}
# Batches rendered at a time.
BLOCK = 32
# Most noise that is added to latents before they are decoded, as a share of their size.
NOISE = 0.15
# Chunks of sampled sections that are replaced at each tenth of the run.
RENEWED = 2
# Weight of the squared distance between a latent and that of the first stage, in unit variance.
ANCHOR = 0.3
# Most noise of joined clips whose latents are not damaged by `vae.worn`, as a share of their size.
LITTLE_NOISE = 0.05
# Metadata key of a checkpoint's VAE: the exponents that `vae.level` was given.
LEVELS = "levels"
STAGES = ("first", "second", "decoder", "sampled")
DECODER_ONLY = ("decoder", "sampled")
# Kinds of steps, taken in turn: the first stage's beginning and its rest, the second and decoder stages, the sampled stage.
PICTURES, MIXED, LATER = ("pictures",), ("pictures", "clips", "clips"), ("pictures", "joined", "cut", "joined")
SAMPLED = ("sampled", "clean", "pictures", "sampled", "cut", "clean", "sampled", "joined")


def picture_batch(seeds: Tensor, pictures: Tensor, side: int) -> Tensor:
    """Render the first frames of random clips, (B, 3, side, side) in -1..1."""
    scene = scenes(seeds, len(pictures), KINDS, simple=0.15, speeds=0.3)
    return render(scene, pictures, torch.zeros(1), side, side)[:, :, 0]


def clip_batch(seeds: Tensor, pictures: Tensor, side: int, frames: int) -> Tensor:
    """Render clips that begin at a random frame below 20, the same for all of them, (B, 3, frames, side, side) in -1..1."""
    scene = scenes(seeds, len(pictures), KINDS, simple=0.2, speeds=0.6)
    begin = int(choice(seeds[:1], 90, 20))
    return render(scene, pictures, torch.arange(begin, begin + frames), side, side)


def psnr(mse: float) -> float:
    """Return the PSNR in dB of a mean square error of values in -1..1."""
    return float(10 * numpy.log10(4 / max(mse, 1e-12)))


def train(
    folder: Path,
    session: Session,
    resume: bool,
    peak: float,
    pictures_until: float = 0.5,
    photos: Path | None = None,
    stage: str = "first",
    pictures: int = 3072,
    detail: int = 256,
    batch: int = 32,
    clips: int = 4,
    frames: int = 17,
    side: int = 96,
    sizes: Sizes | None = None,
) -> None:
    """Train the VAE and write `vae/` below `folder`: config and float16 weights with the latents' statistics folded in.

    peak: highest learning rate. pictures_until: share of the first stage without clips. photos: folder of pictures whose PSNR
    is logged. stage: one of STAGES; the later ones need the weights of the first, and "sampled" all networks. pictures, detail:
    number and side of the background pictures. batch, clips: pictures and clips of a step. frames: of a clip, 4 k + 1. side: of
    pictures and clips, in pixels. sizes: of the pool of the stage "sampled".
    """
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(**passes.VAE_CONFIG)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    later = stage != "first"
    if resume or later:
        load_into(vae, weights)
        if LEVELS in (known := metadata_of(weights)):
            # Undo the levelling: learning rates suit weights of the size that training gave them.
            passes.level(vae, [-exponent for exponent in json.loads(known[LEVELS])])
    vae.to(session.device)
    if stage in DECODER_ONLY:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    first = copy.deepcopy(vae).to(session.dtype).requires_grad_(False)
    encoder = first if stage in DECODER_ONLY else vae
    flat = FlatParameters(vae, session.dtype)
    optimizer = Optimizer(flat, by_muon=lambda name: "conv_out" not in name and "quant" not in name)
    stepper = Stepper(session, flat, optimizer)
    torch.manual_seed(session.rank + 1)
    source = bank(session.seeds(int(resume or later) + STAGES.index(stage), pictures, HELD_OUT), detail)
    if later:
        source[1::4] = streaked(torch.arange(len(source[1::4])).to(source.device), source[1::4])
    session.log(pictures=len(source), parameters=sum(p.numel() for p in vae.parameters()))
    pool = SampledPool(session, folder, source, sizes or Sizes()) if stage == "sampled" else None
    if pool is not None:
        session.log(weights="before", **pool.figures(pool.before), **photo_figures(pool.before, photos))
        pool.fill()

    still = torch.zeros(batch, 3, side, side, device=session.device, dtype=session.dtype)
    moving = torch.zeros(clips, 3, frames, side, side, device=session.device, dtype=session.dtype)

    def both_ways(true: Tensor) -> tuple[Tensor, Tensor]:
        z = passes.encode(encoder, true)
        value, axes = passes.loss(passes.decode(vae, passes.noisy(z, NOISE)), true, z)
        return value + anchored(z, true), axes

    def anchored(z: Tensor, true: Tensor) -> Tensor | float:
        if stage != "second":
            return 0.0
        with torch.no_grad():
            before = passes.encode(first, true)
        return ANCHOR * ((z - before).float() * vae.config.scaling_factor).square().mean()

    def joined(worn: bool = True) -> tuple[Tensor, Tensor]:
        """Return the loss of clips whose first latent is that of the first frame encoded alone.

        That frame counts twice as much as all others together. worn: damage the other latents as sampling does.
        """
        z, own = passes.encode(encoder, moving)[:, :, 1:], passes.encode(encoder, moving[:, :, 0])
        rest = passes.noisy(passes.worn(z), NOISE) if worn else passes.noisy(z, LITTLE_NOISE)
        made = passes.decode(vae, torch.cat([own[:, :, None], rest], dim=2))
        value, axes = passes.loss(made, moving, z)
        alone, _ = passes.loss(made[:, :, 0], moving[:, :, 0], own)
        return value + 2 * alone + anchored(own, moving[:, :, 0]), axes

    def cut() -> tuple[Tensor, Tensor]:
        """Return the loss of clips decoded from their second latent on, which then stands for its last frame alone."""
        z = passes.encode(encoder, moving)
        value, axes = passes.loss(passes.decode(vae, passes.noisy(z[:, :, 1:], NOISE)), moving[:, :, 4:], z)
        return value + anchored(z, moving), axes

    kinds: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "pictures": lambda: both_ways(still),
        "clips": lambda: both_ways(moving),
        "joined": joined,
        "clean": lambda: joined(worn=False),
        "cut": cut,
    }
    if pool is not None:
        kinds["sampled"] = lambda: pool.loss(vae)
    blocks: dict[str, Tensor] = {}
    sums = {name: torch.zeros(4, device=session.device) for name in kinds}
    counts, logged = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
    drawn, watched = 0, 0.0
    while session.running():
        optimizer.rate.fill_(cosine(session.progress, peak))
        order = SAMPLED if pool is not None else LATER if later else PICTURES if session.progress < pictures_until else MIXED
        name = order[session.steps % len(order)]
        if not stepper.has(name):
            stepper.add(name, kinds[name])
            session.log(ready=name)
        if name == "sampled":
            pool.draw()
        else:
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
            for kind in order:
                _log(session, kind, sums[kind], counts[kind] - logged[kind])
                logged[kind] = counts[kind]
                sums[kind].zero_()
            session.log(rate=optimizer.rate.item(), skipped=int(optimizer.skipped))
        if session.progress > watched + 0.1:
            watched = session.progress
            _watch(session, vae, encoder, flat, optimizer, photos, pool)
            _save(session, whole(vae, flat, optimizer), folder)
            for _ in range(RENEWED if pool is not None else 0):
                pool.renew(vae)
    net = AutoencoderKLHunyuanVideo(**passes.VAE_CONFIG)
    net.load_state_dict({name: tensor.float().cpu() for name, tensor in whole(vae, flat, optimizer).items()})
    net.to(session.device).eval()
    if not later:
        fold_statistics(session, net, source, side)
    session.log(weights="after", **(pool.figures(net) if pool is not None else {}), **photo_figures(net, photos))
    _save(session, net.state_dict(), folder)
    if session.rank == 0:
        net.save_config(folder / "vae")


def whole(vae: AutoencoderKLHunyuanVideo, flat: FlatParameters, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return all weights of the VAE; the trained ones are their exponential mean."""
    return {**vae.state_dict(), **flat.state(optimizer.ema)}


def fold_statistics(session: Session, net: AutoencoderKLHunyuanVideo, source: Tensor, side: int) -> None:
    """Measure the latents' mean and deviation, and fold them into the weights, so that latents have unit variance."""
    with torch.no_grad():
        seeds = session.seeds(1, 256, HELD_OUT)
        z = passes.encode(net, picture_batch(seeds, source, side)).transpose(0, 1).flatten(1)
        parts = [passes.encode(net, clip_batch(s, source, side, 17)) for s in seeds[:64].split(8)]
        z = torch.cat([z, torch.cat(parts).transpose(0, 1).flatten(1)], dim=1)
        passes.fold(net, z.mean(1), z.std(1))
    session.log(latent_std=z.std(1).tolist())


def _log(session: Session, kind: str, total: Tensor, count: int) -> None:
    if count:
        loss, *errors = (total / count).tolist()
        axes = {f"psnr_{axis}": psnr(mse) for axis, mse in zip(("light", "red_blue", "green"), errors, strict=True)}
        session.log(phase=kind, loss=loss, psnr=psnr(sum(errors) / 3), **axes)


@torch.no_grad()
def photo_figures(
    vae: AutoencoderKLHunyuanVideo, photos: Path | None, encoder: AutoencoderKLHunyuanVideo | None = None, side: int = 160
) -> dict[str, float]:
    """Return the PSNR in dB of each photo in the folder, encoded and decoded as one frame.

    encoder: the VAE whose encoder is used, if not the one that decodes.
    """
    figures, encoder = {}, vae if encoder is None else encoder
    # Encoder and decoder may have different types.
    first, second = encoder.quant_conv.weight, vae.post_quant_conv.weight
    for path in sorted(photos.glob("*.*")) if photos else ():
        picture = cover_crop(Image.open(path).convert("RGB"), side, side)
        x = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None].to(first.device, first.dtype) / 127.5 - 1
        made = passes.decode(vae, passes.encode(encoder, x).to(second.dtype)).float().clamp(-1, 1)
        figures[path.stem] = psnr((made - x.float()).square().mean().item())
    return figures


def _watch(
    session: Session,
    vae: AutoencoderKLHunyuanVideo,
    encoder: AutoencoderKLHunyuanVideo,
    flat: FlatParameters,
    optimizer: Optimizer,
    photos: Path | None,
    pool: SampledPool | None,
) -> None:
    """Log the PSNR of photos and of sampled sections with the mean weights, then put the current weights back."""
    flat.compute.copy_(optimizer.ema)
    session.log(**photo_figures(vae, photos, encoder), **(pool.figures(vae) if pool is not None else {}))
    flat.compute.copy_(flat.master)


def _save(session: Session, state: dict[str, Tensor], folder: Path) -> None:
    if session.rank == 0:
        save_half(state, folder / "vae" / "diffusion_pytorch_model.safetensors", torch.float16)
