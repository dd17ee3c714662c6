"""Translate names of layers: from what files of the HunyuanVideo family call a layer to what this network calls it.

Every name is looked up with its dots written as underscores. That makes one spelling of the flattened names (kohya,
musubi-tuner), the dotted ones (diffusers, PEFT, diffusion-pipe) and ComfyUI's, and no two layers fall together. HunyuanVideo's
own names: https://github.com/Tencent-Hunyuan/HunyuanVideo; the network's: the hub's checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Prefixes of flattened names; they are taken off one after the other until the rest is known.
PREFIXES = (
    "lora_unet_", "lora_transformer_", "Hunyuan_video_I2V_lora_", "lycoris_", "base_model_model_", "base_model_",
    "diffusion_model_", "transformer_", "unet_", "model_", "module_", "_orig_mod_",
)  # fmt: skip
TEXT_ENCODERS = ("lora_te", "te_", "te1_", "te2_", "text_encoder", "cond_stage_model", "conditioner", "text_model", "clip_")

DUAL = {
    "img_mod.linear": ("norm1.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp.fc1": ("ff.net.0.proj",),
    "img_mlp.fc2": ("ff.net.2",),
    "txt_mod.linear": ("norm1_context.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp.fc1": ("ff_context.net.0.proj",),
    "txt_mlp.fc2": ("ff_context.net.2",),
}
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.linear": ("norm.linear",),
}
REFINER = {
    "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "self_attn_proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm_out.linear",),
}
EMBEDDERS = {
    "img_in.proj": "x_embedder.proj",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
# Tencent's head has shift before scale, the network scale before shift.
HALVES_SWAPPED = ("final_layer.adaLN_modulation.1",)
# HunyuanVideo's ends of names, and ComfyUI's in their place.
COMFY_ENDS = {
    "_mod.linear": "_mod.lin", "_mlp.fc1": "_mlp.0", "_mlp.fc2": "_mlp.2", "modulation.linear": "modulation.lin",
    "_in.mlp.0": "_in.in_layer", "_in.mlp.2": "_in.out_layer", "embedder.mlp.0": "embedder.in_layer",
    "embedder.mlp.2": "embedder.out_layer", "embedder.linear_1": "embedder.in_layer", "embedder.linear_2": "embedder.out_layer",
}  # fmt: skip
# Names that only their dots tell to be ComfyUI's.
COMFY_LOOK = re.compile(r"_attn\.(qkv|proj)|_mlp\.[02]$|mod(ulation)?\.lin$|(time|guidance)_in\.(in|out)_layer$")


@dataclass(frozen=True)
class Target:
    """Hold the layers of the network behind one name. swapped: the two halves of the rows change places.

    The rows of a fused layer belong to the layers in order, to each as many as it has.
    """

    layers: tuple[str, ...]
    naming: str
    swapped: bool = False


class Names:
    """Hold all names by which the layers of one network are known."""

    def __init__(self, layers: Iterable[str]):
        layers = tuple(layers)
        known = set(layers)
        self._targets = {flat(layer): Target((layer,), "FramePack") for layer in layers}
        for name, parts in _tencent(layers):
            if set(parts) <= known:
                target = Target(parts, "HunyuanVideo", name in HALVES_SWAPPED)
                for spelling in (name, *_comfy(name)):
                    self._targets.setdefault(flat(spelling), target)

    def find(self, name: str) -> Target | None:
        """Return what a file's name of a layer means here, whatever prefixes it has; None if nothing."""
        rest: str | None = flat(name)
        while rest is not None and rest not in self._targets:
            rest = _without_prefix(rest)
        return self._targets[rest] if rest is not None else None

    def naming(self, name: str) -> str:
        """Return whose naming a name follows: "FramePack", "HunyuanVideo" or "ComfyUI".

        Raises KeyError for a name unknown to `find`.
        """
        target = self.find(name)
        if target is None:
            raise KeyError(name)
        if target.naming == "HunyuanVideo" and COMFY_LOOK.search(name):
            return "ComfyUI"
        return target.naming


def flat(name: str) -> str:
    """Return a layer's name with underscores for dots, as some programs write it."""
    return name.replace(".", "_")


def is_text_encoder(key: str) -> bool:
    """Return whether a key belongs to a text encoder, which FramePack's LoRA do not change."""
    return key.startswith(TEXT_ENCODERS)


def _without_prefix(name: str) -> str | None:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)


def _tencent(layers: tuple[str, ...]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield HunyuanVideo's names for as many blocks as the network has, each with the network's layers."""
    families = (
        ("transformer_blocks", "double_blocks", DUAL),
        ("single_transformer_blocks", "single_blocks", SINGLE),
        (
            "context_embedder.token_refiner.refiner_blocks",
            "txt_in.individual_token_refiner.blocks",
            REFINER,
        ),
    )
    for ours, theirs, table in families:
        numbers = sorted({int(layer[len(ours) + 1 :].split(".")[0]) for layer in layers if layer.startswith(f"{ours}.")})
        for number in numbers:
            for name, parts in table.items():
                yield f"{theirs}.{number}.{name}", tuple(f"{ours}.{number}.{part}" for part in parts)
    for name, layer in EMBEDDERS.items():
        yield name, (layer,)


def _comfy(name: str) -> list[str]:
    found = [name.removesuffix(end) + other for end, other in COMFY_ENDS.items() if name.endswith(end)]
    # The refiner's blocks have neither img_ nor txt_ before their mlp.
    found += [name.replace(".mlp.fc1", ".mlp.0").replace(".mlp.fc2", ".mlp.2")] if ".blocks." in name else []
    return found
