"""Test that a LoRA changes what a film shows, as strongly as it should, and that narrower weights change almost nothing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusers_helper.encoders.text import encode_prompt
from diffusers_helper.models.linear import layers
from eichi_utils.requests.loras import Lora
from miniature.evaluate import decibels
from tests.meaning.checks import goes
from tests.meaning.measure import place
from tests.meaning.studio import LAST, LEFT, RIGHT, Studio, moves

pytestmark = pytest.mark.model

RANK = 16
# Layers that read the prompt: each of its tokens, the mean of the tokens, and the pooled vector of the other encoder.
TOKEN_LAYERS = ("context_embedder.proj_in", "context_embedder.time_text_embed.text_embedder.linear_1")
POOLED_LAYER = "time_text_embed.text_embedder.linear_1"
# Least PSNR in dB. Measured: 49 and more; another seed gives 37, another direction 19.
SAME_FILM_DB = 40.0


@pytest.fixture(scope="module")
def swapping(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a LoRA with which the transformer reads "to the left" as "to the right" and the reverse, and return its path."""
    with studio.pool.text() as encoders:
        left, right = (encode_prompt(encoders, moves(direction)) for direction in (LEFT, RIGHT))
    with studio.pool.transformer("framepack") as net:
        weights = {name: layer.weight.float() for name, layer in layers(net).items()}
    exchange = dict.fromkeys(TOKEN_LAYERS, exchanging(left.tokens[0], right.tokens[0]))
    exchange[POOLED_LAYER] = exchanging(left.pooled, right.pooled)
    tensors = {}
    for name, (up, down) in exchange.items():
        tensors[f"transformer.{name}.lora_A.weight"] = down.clone(memory_format=torch.contiguous_format)
        tensors[f"transformer.{name}.lora_B.weight"] = (weights[name] @ up).contiguous()
    path = tmp_path_factory.mktemp("lora") / "left_is_right.safetensors"
    save_file(tensors, path)
    return str(path)


def exchanging(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return (up, down) for which 1 + up @ down turns the rows of `one` (n, width) into those of `other`, and back.

    up @ down is the matrix of least norm that does it, cut to rank RANK.
    """
    before, after = torch.cat([one, other]).float(), torch.cat([other, one]).float()
    u, s, v = torch.linalg.svd(torch.linalg.lstsq(before, after - before, driver="gelsd").solution.T)
    return u[:, :RANK] * s[:RANK], v[:RANK]


@pytest.mark.parametrize(
    ("merge", "said", "shown"), [(False, LEFT, RIGHT), (True, RIGHT, LEFT)], ids=["beside-left", "merged-right"]
)
def test_a_lora_turns_the_film_round(studio: Studio, circle: str, swapping: str, merge: bool, said: int, shown: int) -> None:
    request = studio.request("reverse", circle, moves(said), loras=(Lora(swapping, 1.0),), merge_loras=merge)
    goes(place(studio.look(studio.film(request), LAST)) - place(studio.pixels(circle)), shown)


def test_a_lora_of_no_strength_changes_nothing(studio: Studio, circle: str, swapping: str) -> None:
    """The film is the same to the last bit, although the LoRA was used before at full strength."""
    without = studio.film(studio.request("reverse", circle, moves(LEFT)))
    made = studio.film(studio.request("reverse", circle, moves(LEFT), loras=(Lora(swapping, 0.0),)))
    assert torch.equal(made, without)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "float8"])
def test_a_film_of_narrower_weights_is_nearly_the_same(studio: Studio, circle: str, precision: str) -> None:
    """The film is nearly the same, but not to the last bit, because the weights were really narrowed."""
    wide = studio.film(studio.request("reverse", circle, moves(LEFT)))
    made = studio.film(studio.request("reverse", circle, moves(LEFT), precision=precision))
    assert not torch.equal(made, wide)
    last = studio.look(made, LAST)
    near = decibels(last, studio.look(wide, LAST).clamp(-1, 1))
    assert near >= SAME_FILM_DB, f"{near:.1f} dB"
    goes(place(last) - place(studio.pixels(circle)), LEFT)
