"""Choose what `eichi demo` animates, and with which networks."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eichi_utils.files.paths import WEBUI
from eichi_utils.files.temporary import own_prefix
from eichi_utils.models.catalogue import Models

UNTRAINED = WEBUI / "models" / "untrained"


def demo_defaults(models: Models) -> dict[str, Any]:
    """Return the request fields of the demo: the miniature's first example, whose description gives size, steps and length.

    With other networks it is a photo that comes with gradio, at a size that any computer renders in seconds.
    """
    examples = models.examples("miniature")
    if examples and models.folder is None:
        return {"model": "miniature", "image": examples[0].picture, "prompt": examples[0].prompt}
    # `find_spec` does not import gradio. If it is missing, the request's check names the picture.
    gradio = importlib.util.find_spec("gradio")
    folder = Path(gradio.origin).parent if gradio and gradio.origin else Path("gradio")
    photo = folder / "media_assets" / "images" / "tower.jpg"
    return {"model": "framepack", "image": str(photo), "prompt": "The camera zooms in.", "steps": 12, "size": 128}


def untrained_models(say: Callable[[str], None]) -> Path:
    """Return the folder of a checkpoint of random weights, which is made once. `say` gets the key of a sentence."""
    say("cli.demo_untrained")
    if not UNTRAINED.is_dir():
        from miniature.random_checkpoint import build

        UNTRAINED.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=own_prefix(), dir=UNTRAINED.parent) as temporary:
            build(Path(temporary) / "checkpoint").replace(UNTRAINED)
    return UNTRAINED
