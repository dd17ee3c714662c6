"""What `eichi demo` animates, and with which networks."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eichi_utils.paths import MINIATURE, WEBUI

UNTRAINED = WEBUI / "models" / "untrained"


def demo_defaults() -> dict[str, Any]:
    """Request fields of the demo: a photo that comes with gradio, at a size a CPU renders in seconds."""
    gradio = importlib.util.find_spec("gradio")
    photo = Path(gradio.origin).parent / "media_assets" / "images" / "tower.jpg"
    return {
        "image": str(photo),
        "prompt": "The camera slowly zooms in on the tower.",
        "seconds": 1.0,
        "steps": 12,
        "size": 128,
    }


def demo_models(say: Callable[[str], None]) -> Path:
    """The trained miniature, or else a checkpoint of random weights, made once. `say` gets the key of a sentence."""
    if MINIATURE.is_dir():
        return MINIATURE
    say("cli.demo_untrained")
    if not UNTRAINED.is_dir():
        from miniature.random_checkpoint import build

        UNTRAINED.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=UNTRAINED.parent) as temporary:
            os.replace(build(Path(temporary) / "checkpoint"), UNTRAINED)
    return UNTRAINED
