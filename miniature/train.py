"""Train one of the two networks until the time is over: `python -m miniature.train vae|transformer --minutes M [--resume]`.

Under `torchrun --nproc-per-node N -m miniature.train ...` it uses N cards. Weights are written during the run, so that a run
that is cut off can be resumed. Only weights are kept: the optimizer starts anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from miniature.training import Session

WEIGHTS = Path(__file__).parent / "weights"
# Highest learning rates by stage.
RATES = {
    "vae": {"first": 3e-3, "second": 1.5e-3, "decoder": 4e-4, "sampled": 1e-3},
    "transformer": {"a": 2e-3, "b": 2e-3, "c": 2e-3},
}
ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder")


def needed(network: str, stage: str, resume: bool) -> tuple[str, ...]:
    """Return the folders below --weights that a stage needs before it can begin."""
    if network == "transformer":
        return ("vae", *ENCODERS, *(("transformer",) if resume else ()))
    if stage == "sampled":
        return ("vae", "transformer", *ENCODERS)
    return ("vae",) if resume or stage != "first" else ()


def main(arguments: list[str] | None = None) -> None:
    """Train the network that the command line names, and save its weights."""
    parser = argparse.ArgumentParser(prog="python -m miniature.train", description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("vae", "transformer"))
    parser.add_argument("--minutes", type=float, default=9.0, help="the whole run, start and saving included")
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --weights")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder that weights are read from and written to")
    parser.add_argument("--rate", type=float, help="highest learning rate")
    parser.add_argument("--last", type=float, default=0.01, help="share of it that is left at the end")
    parser.add_argument(
        "--stage",
        help="vae: first, second, decoder or sampled; transformer: a, b or c, lessons of the curriculum",
    )
    parser.add_argument("--photos", type=Path, help="vae: folder of pictures to watch")
    parser.add_argument("--pictures-until", type=float, default=0.5, help="vae: share of the time without clips")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs, nothing compiled")
    parser.add_argument("--attention", choices=("flash", "efficient"), default="flash", help="transformer: PyTorch's kernel")
    options = parser.parse_args(arguments)
    stages = RATES[options.network]
    stage = options.stage or next(iter(stages))
    if stage not in stages:
        parser.error(f"stages of the {options.network} are {', '.join(stages)}")
    if options.minutes <= 0:
        parser.error("--minutes must be more than 0")
    for name in needed(options.network, stage, options.resume):
        if not (options.weights / name).is_dir():
            parser.error(f"{options.weights / name} is not there; miniature/checkpoint has one, see the README")
    rate = options.rate or stages[stage]
    session = Session(options.minutes, options.weights, options.device, not options.eager)
    if options.network == "vae":
        from miniature import train_vae

        torch.backends.cudnn.benchmark = True
        # For the reason below: the stage "sampled" runs the transformer.
        torch.backends.cuda.enable_cudnn_sdp(False)
        until = options.pictures_until
        train_vae.train(options.weights, session, options.resume, rate, until, options.photos, stage)
    else:
        from miniature import train_transformer

        # With cuDNN's attention kernel (torch 2.11, H200), training at these shapes fails with an illegal memory access.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.enable_flash_sdp(options.attention == "flash")
        train_transformer.train(options.weights, session, options.resume, rate, options.last, stage)
    session.close()


if __name__ == "__main__":
    main()
