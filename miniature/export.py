"""Export the trained weights as a checkpoint in the hub's layout, `miniature/checkpoint`: `python -m miniature.export`.

It copies the networks from `miniature/weights`, scales the VAE's decoder to what 16 bits hold (`vae.level`), and adds the model
card and `eichi.json`: the preview matrix fitted to these latents, sizes, recommended settings and examples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from diffusers_helper.checkpoints.checkpoint import quiet
from miniature import vae as passes
from miniature.clips import HELD_OUT
from miniature.pictures import bank
from miniature.train import WEIGHTS
from miniature.train_transformer import WEIGHTS_FILE
from miniature.train_vae import LEVELS
from miniature.training import save_half

COMPONENTS = (
    "transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor",
)  # fmt: skip
CHECKPOINT = Path(__file__).parent / "checkpoint"
LIMIT = 25_000_000
# Fields of eichi.json that `eichi_utils.models.description` reads besides the preview. One transformer serves both modes.
DESCRIPTION = {
    "name": "miniature", "sizes": [128, 160, 192], "size": 128, "steps": 15, "seconds": 1.0,
    "checkpoints": ["framepack", "framepack_f1"],
}  # fmt: skip
# Pictures of `miniature/examples` with prompts that show the miniature at its best; the first is the demo's.
EXAMPLES = (
    ("lion.jpg", "The camera pans to the right."),
    ("tower.jpg", "The camera zooms in."),
    ("red_circle.jpg", "The red circle moves to the left."),
    ("yellow_star.jpg", "The yellow star moves to the right."),
    ("orange_circle.jpg", "The orange circle moves up."),
    ("blue_star.jpg", "The blue star grows."),
)
# First seed of the pictures that the preview is fitted to; the evaluation uses none of them.
PREVIEW_SEEDS = HELD_OUT + 500_000


@torch.no_grad()
def fitted_preview(vae: AutoencoderKLHunyuanVideo, pictures: Tensor) -> tuple[Tensor, Tensor, float]:
    """Fit a linear preview by least squares: from a latent cell to the mean colour in 0..1 of the pixels it stands for.

    pictures: (B, 3, H, W) in -1..1. Returns the matrix (16, 3), the bias (3,), and the share of variance that is explained.
    """
    z = passes.encode(vae, pictures) * vae.config.scaling_factor
    x = z.permute(0, 2, 3, 1).flatten(0, 2).double()
    y = F.avg_pool2d(pictures * 0.5 + 0.5, 8).permute(0, 2, 3, 1).flatten(0, 2).double()
    design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    solution = torch.linalg.lstsq(design, y).solution
    explained = 1 - (design @ solution - y).square().sum() / (y - y.mean(0)).square().sum()
    return solution[:-1].float(), solution[-1].float(), explained.item()


def described() -> dict[str, Any]:
    """Return the content of `eichi.json` without the preview.

    The examples lie beside the checkpoint's folder, so that an export, which replaces the folder, keeps them.
    """
    return {**DESCRIPTION, "examples": [{"picture": f"../examples/{name}", "prompt": prompt} for name, prompt in EXAMPLES]}


def export(weights: Path, folder: Path) -> Path:
    """Write the checkpoint from the networks below `weights`, replacing `folder` as a whole, and return `folder`.

    Raises ValueError, and changes nothing, if the checkpoint would be larger than LIMIT bytes.
    """
    with quiet():
        vae = AutoencoderKLHunyuanVideo.from_pretrained(weights / "vae", torch_dtype=torch.float32).eval()
    pictures = bank(torch.arange(PREVIEW_SEEDS, PREVIEW_SEEDS + 24), 128).float() / 127.5 - 1
    rows, bias, explained = fitted_preview(vae, pictures)
    preview = {"rows": [[round(v, 4) for v in row] for row in rows.tolist()], "bias": [round(v, 4) for v in bias.tolist()]}
    document = {**described(), "preview": {**preview, "explained": round(explained, 4)}}
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "checkpoint"
        for name in COMPONENTS:
            shutil.copytree(weights / name, new / name)
        exponents = passes.exponents_for(vae, passes.encode(vae, pictures))
        if any(exponents):
            # An exported VAE that is exported again is levelled already: its exponents are all 0.
            passes.level(vae, exponents)
            save_half(vae.state_dict(), new / "vae" / WEIGHTS_FILE, torch.float16, **{LEVELS: json.dumps(exponents)})
        (new / "eichi.json").write_text(json.dumps(document, indent=2) + "\n")
        shutil.copy(Path(__file__).parent / "model_card.md", new / "README.md")
        size = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
        if size > LIMIT:
            raise ValueError(f"the checkpoint has {size} bytes, more than {LIMIT}")
        if folder.exists():
            shutil.rmtree(folder)
        new.replace(folder)
    return folder


def main() -> None:
    """Export the checkpoint to the folder that the command line names, and print its size."""
    parser = argparse.ArgumentParser(prog="python -m miniature.export", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--to", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    folder = export(options.weights, options.to)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
