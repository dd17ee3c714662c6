"""Write small random LoRA files in every family of formats for a given network, and return what each must add to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# Typed by hand, independent of the program's own table: HunyuanVideo's name, ComfyUI's name, and the network's layers.
BLOCKS = {
    "transformer_blocks": [
        ("double_blocks.{}.img_mod.linear", "double_blocks.{}.img_mod.lin", ["norm1.linear"]),
        ("double_blocks.{}.img_attn_qkv", "double_blocks.{}.img_attn.qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]),
        ("double_blocks.{}.img_attn_proj", "double_blocks.{}.img_attn.proj", ["attn.to_out.0"]),
        ("double_blocks.{}.img_mlp.fc1", "double_blocks.{}.img_mlp.0", ["ff.net.0.proj"]),
        ("double_blocks.{}.img_mlp.fc2", "double_blocks.{}.img_mlp.2", ["ff.net.2"]),
        ("double_blocks.{}.txt_mod.linear", "double_blocks.{}.txt_mod.lin", ["norm1_context.linear"]),
        (
            "double_blocks.{}.txt_attn_qkv",
            "double_blocks.{}.txt_attn.qkv",
            ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        ),
        ("double_blocks.{}.txt_attn_proj", "double_blocks.{}.txt_attn.proj", ["attn.to_add_out"]),
        ("double_blocks.{}.txt_mlp.fc1", "double_blocks.{}.txt_mlp.0", ["ff_context.net.0.proj"]),
        ("double_blocks.{}.txt_mlp.fc2", "double_blocks.{}.txt_mlp.2", ["ff_context.net.2"]),
    ],
    "single_transformer_blocks": [
        ("single_blocks.{}.linear1", "single_blocks.{}.linear1", ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
        ("single_blocks.{}.linear2", "single_blocks.{}.linear2", ["proj_out"]),
        ("single_blocks.{}.modulation.linear", "single_blocks.{}.modulation.lin", ["norm.linear"]),
    ],
    "context_embedder.token_refiner.refiner_blocks": [
        (
            "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv",
            "txt_in.individual_token_refiner.blocks.{}.self_attn.qkv",
            ["attn.to_q", "attn.to_k", "attn.to_v"],
        ),
        (
            "txt_in.individual_token_refiner.blocks.{}.self_attn_proj",
            "txt_in.individual_token_refiner.blocks.{}.self_attn.proj",
            ["attn.to_out.0"],
        ),
        (
            "txt_in.individual_token_refiner.blocks.{}.mlp.fc1",
            "txt_in.individual_token_refiner.blocks.{}.mlp.0",
            ["ff.net.0.proj"],
        ),
        (
            "txt_in.individual_token_refiner.blocks.{}.mlp.fc2",
            "txt_in.individual_token_refiner.blocks.{}.mlp.2",
            ["ff.net.2"],
        ),
        (
            "txt_in.individual_token_refiner.blocks.{}.adaLN_modulation.1",
            "txt_in.individual_token_refiner.blocks.{}.adaLN_modulation.1",
            ["norm_out.linear"],
        ),
    ],
}
# The same for layers outside of blocks.
REST = [
    ("img_in.proj", "img_in.proj", "x_embedder.proj"),
    ("txt_in.input_embedder", "txt_in.input_embedder", "context_embedder.proj_in"),
    ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer", "context_embedder.time_text_embed.timestep_embedder.linear_1"),
    ("txt_in.t_embedder.mlp.2", "txt_in.t_embedder.out_layer", "context_embedder.time_text_embed.timestep_embedder.linear_2"),
    ("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer", "context_embedder.time_text_embed.text_embedder.linear_1"),
    ("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer", "context_embedder.time_text_embed.text_embedder.linear_2"),
    ("time_in.mlp.0", "time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.mlp.2", "time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("guidance_in.mlp.0", "guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    ("guidance_in.mlp.2", "guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("final_layer.linear", "final_layer.linear", "proj_out"),
    ("final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "norm_out.linear"),
]
FAMILIES = {
    # family: naming, prefix, whether dots become underscores, endings of down and up, whether an alpha is written
    "kohya_framepack": ("FramePack", "lora_unet_", True, (".lora_down.weight", ".lora_up.weight"), True),
    "kohya_hunyuan": ("HunyuanVideo", "lora_unet_", True, (".lora_down.weight", ".lora_up.weight"), True),
    "hunyuan_i2v": ("HunyuanVideo", "Hunyuan_video_I2V_lora_", True, (".lora_down.weight", ".lora_up.weight"), True),
    "peft": ("FramePack", "transformer.", False, (".lora_A.weight", ".lora_B.weight"), False),
    "peft_default": ("FramePack", "base_model.model.", False, (".lora_A.default.weight", ".lora_B.default.weight"), False),
    "diffusion_model_framepack": ("FramePack", "diffusion_model.", False, (".lora_A.weight", ".lora_B.weight"), False),
    "diffusion_pipe": ("HunyuanVideo", "diffusion_model.", False, (".lora_A.weight", ".lora_B.weight"), False),
    "transformer_hunyuan": ("HunyuanVideo", "transformer.", False, (".lora_A.weight", ".lora_B.weight"), False),
    "comfyui": ("ComfyUI", "diffusion_model.", False, (".lora_A.weight", ".lora_B.weight"), False),
    "comfyui_alpha": ("ComfyUI", "diffusion_model.", False, (".lora_down.weight", ".lora_up.weight"), True),
    "dotted": ("FramePack", "", False, (".lora_down.weight", ".lora_up.weight"), True),
    "loha": ("FramePack", "lycoris_", True, (), True),
    "lokr": ("FramePack", "lycoris_", True, (), True),
    "lokr_hunyuan": ("HunyuanVideo", "lora_unet_", True, (), True),
}
Shapes = Mapping[str, tuple[int, ...]]


def write_lora(
    path: Path,
    family: str,
    shapes: Shapes,
    *,
    rank: int = 2,
    alpha: float = 1.0,
    size: float = 0.1,
    seed: int = 0,
    only: tuple[str, ...] = ("",),
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Write a file for a network whose weights have these shapes, and return what it adds to each layer at strength 1.

    only: beginnings of the layers to change. size: standard deviation of an update's numbers, roughly.
    """
    generator = torch.Generator().manual_seed(seed)
    naming, prefix, flattened, ends, with_alpha = FAMILIES[family]
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}

    def random(*sides: int) -> Tensor:
        return torch.randn(*sides, generator=generator) * (size / rank**0.5) ** 0.5

    for name, layers in _sources(naming, shapes):
        if not all(layer in shapes and layer.startswith(only) for layer in layers):
            continue
        shape = shapes[layers[0]]
        rows, columns = sum(shapes[layer][0] for layer in layers), torch.Size(shape[1:]).numel()
        key = prefix + (name.replace(".", "_") if flattened else name)
        if family == "loha":
            parts = {f"hada_w{n}_{side}": random(*s) for n in "12" for side, s in (("a", (rows, rank)), ("b", (rank, columns)))}
            delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
            tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
        elif family.startswith("lokr"):
            parts = {"lokr_w1": random(2, 2), "lokr_w2_a": random(rows // 2, rank), "lokr_w2_b": random(rank, columns // 2)}
            delta = torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
            tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
        else:
            down, up = random(rank, columns), random(rows, rank)
            delta = up @ down
            # A convolution's update has the kernel's shape.
            tensors[key + ends[0]] = down.view(rank, *shape[1:])
            tensors[key + ends[1]] = up.view(rows, rank, *[1] * (len(shape) - 2))
        scale = 1.0
        if with_alpha:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
            scale = alpha / rank
        if name == "final_layer.adaLN_modulation.1":
            delta = torch.cat(delta.chunk(2)[::-1])
        for layer, part in zip(layers, delta.split([shapes[layer][0] for layer in layers]), strict=True):
            expected[layer] = scale * part
    save_file(tensors, path, metadata=dict(metadata or {}))
    return expected


def peft_metadata(alpha: float, rank: int) -> dict[str, str]:
    """Return the metadata with which diffusers writes an adapter's rank and alpha."""
    config = {"transformer.r": rank, "transformer.lora_alpha": alpha, "transformer.alpha_pattern": {}}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def _sources(naming: str, shapes: Shapes) -> list[tuple[str, list[str]]]:
    """Return (name in the file, layers of the network) for every layer that has a name in this naming."""
    if naming == "FramePack":
        return [(layer, [layer]) for layer in shapes]
    column = 0 if naming == "HunyuanVideo" else 1
    found = []
    for ours, table in BLOCKS.items():
        numbers = {int(layer[len(ours) + 1 :].split(".")[0]) for layer in shapes if layer.startswith(f"{ours}.")}
        for number in sorted(numbers):
            found += [(row[column].format(number), [f"{ours}.{number}.{layer}" for layer in row[2]]) for row in table]
    return found + [(row[column], [row[2]]) for row in REST]
