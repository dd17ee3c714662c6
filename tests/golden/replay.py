"""Replay reference vectors through the program's code. README.md in this folder describes the files and their keys."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKLHunyuanVideo
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusers_helper.buckets import cover_crop
from diffusers_helper.encoders.text import TextEmbedding
from diffusers_helper.memory.memory import Room
from diffusers_helper.models.step_cache import TeaCache
from diffusers_helper.models.transformer import Clean, PackedTransformer, TransformerConfig
from diffusers_helper.sampling import schedule, shift_mu, unipc
from diffusers_helper.vae.frames import FPS, FRAMES_PER_LATENT
from diffusers_helper.vae.latents import blend, on_host, preview_rgb, preview_weights
from diffusers_helper.vae.preview import HUNYUAN_PREVIEW
from eichi_utils.jobs.queue import Stop
from eichi_utils.models.hub import ModelFiles
from eichi_utils.render.conditions import Conditions
from eichi_utils.render.history import joined
from eichi_utils.render.section_loop import Decoded, SectionSampler, sample_film
from eichi_utils.requests.forward import ForwardRequest
from eichi_utils.requests.reverse import ReverseRequest, paddings
from lora_utils.files import LoraError
from tests.golden.replay_loras import EXPECTED, lora_checks

Replay = Callable[[Path, "TinyPool"], Iterator["Check"]]
# Largest absolute errors.
LATENTS, SCHEDULE, PIXELS, EXACT = 1e-4, 1e-5, 2e-3, 0.0


@dataclass(frozen=True)
class Check:
    """Hold one comparison: its largest absolute error, and the largest that is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # Not `error > tolerance`: NaN must fail.
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Result:
    file: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        # A file in which nothing was compared proves nothing.
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __str__(self) -> str:
        parts = (f"{check.name} {check.error:.2e} (<= {check.tolerance:g})" for check in self.checks)
        return f"{'ok  ' if self.passed else 'FAIL'} {self.file}: {', '.join(parts)}"


class TinyPool:
    """Stand in for a ModelPool with the reference's tiny networks, which are loaded when they are first needed.

    Their files are taken from `folder`, or from this folder where it has none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = ModelFiles()
        self.room = Room()
        self.card = None

    @cached_property
    def net(self) -> PackedTransformer:
        tensors, config = load(self._file("tiny_transformer.safetensors"), "config")
        net = PackedTransformer(TransformerConfig.from_json(config))
        net.load_state_dict({name.removeprefix("weights."): tensor for name, tensor in tensors.items()})
        return net

    @cached_property
    def _vae(self) -> AutoencoderKLHunyuanVideo:
        tensors, config = load(self._file("tiny_vae.safetensors"), "config")
        vae = AutoencoderKLHunyuanVideo(**config)
        vae.load_state_dict(tensors)
        return vae

    def _file(self, name: str) -> Path:
        own = self.folder / name
        return own if own.is_file() else Path(__file__).parent / name

    @contextmanager
    def transformer(self, checkpoint: str, *precision_and_loras: object) -> Iterator[PackedTransformer]:
        yield self.net

    @contextmanager
    def vae(self, work: int = 0) -> Iterator[AutoencoderKLHunyuanVideo]:
        yield self._vae


def replay_folder(folder: Path) -> Iterator[Result]:
    """Replay every vector file in a folder and yield its result; a file that does not hold what its name says has failed."""
    pool = TinyPool(folder)
    for path in sorted(folder.iterdir()):
        for pattern, replay in REPLAYS.items():
            if fnmatch.fnmatch(path.name, pattern):
                yield _replayed(path, path.name, replay, pool)
                break
    if (folder / "lora").is_dir():
        for path in sorted((folder / "lora").glob("*.safetensors")):
            if path.name != EXPECTED:
                yield _replayed(path, f"lora/{path.name}", replay_lora, pool)


def _replayed(path: Path, name: str, replay: Replay, pool: TinyPool) -> Result:
    try:
        return Result(name, tuple(replay(path, pool)))
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError, LoraError) as error:
        return Result(name, (Check(f"{type(error).__name__}: {error}", float("inf"), EXACT),))


def load(path: Path, metadata_key: str = "params") -> tuple[dict[str, Tensor], dict]:
    """Return the tensors of a file, and the JSON document in one entry of its metadata."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
    return load_file(path), json.loads(metadata.get(metadata_key, "{}"))


def error_of(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item()


def replay_transformer(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, _ = load(path)
    inputs = {name.removeprefix("in."): tensor for name, tensor in tensors.items() if name.startswith("in.")}

    def clean(name: str) -> Clean | None:
        return Clean(inputs[name], inputs[f"{name}_indices"].tolist()) if name in inputs else None

    text = inputs["text"][:, : int(inputs["text_mask"].sum())]
    guidance, sigma = inputs["guidance"].item() / 1000, inputs["timestep"].item() / 1000
    job = pool.net.prepare_job(text, inputs["pooled"], inputs.get("image"), guidance, [sigma])
    height, width = inputs["x"].shape[-2:]
    times = inputs["frame_indices"].tolist()
    section = pool.net.prepare_section(times, height, width, clean("clean"), clean("clean_2x"), clean("clean_4x"))
    velocity = pool.net.step(inputs["x"], 0, job, section)
    yield Check("velocity", error_of(velocity, tensors["out.velocity"]), LATENTS)


def replay_unipc(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, _ = load(path)
    worst = {"sigmas": 0.0, "denoised": 0.0, "result": 0.0}
    for case in sorted({name.rsplit(".", 1)[0] for name in tensors}):
        steps, shift = int(case.split("_")[0].removeprefix("n")), float(case.split("shift")[1])
        sigmas = schedule(steps, 0, shift)

        def denoise(x: Tensor, i: int, sigmas: list[float] = sigmas) -> Tensor:
            return torch.tanh(x) * (1 - sigmas[i]) + 0.3 * torch.sin(3 * x + sigmas[i])

        denoised = [x0 for _, x0 in unipc(denoise, tensors[f"{case}.noise"], sigmas)]
        errors = {
            "sigmas": error_of(torch.tensor(sigmas), tensors[f"{case}.sigmas"]),
            "denoised": error_of(torch.stack(denoised), tensors[f"{case}.denoised_each_step"]),
            "result": error_of(denoised[-1], tensors[f"{case}.result"]),
        }
        worst = {name: max(worst[name], error) for name, error in errors.items()}
    for name, error in worst.items():
        yield Check(name, error, SCHEDULE)


def replay_schedule(path: Path, pool: TinyPool) -> Iterator[Check]:
    errors = {"mu": 0.0, "sigmas": 0.0}
    for tokens, expected in json.loads(path.read_text()).items():
        errors["mu"] = max(errors["mu"], abs(shift_mu(int(tokens)) - expected["mu"]))
        for steps, sigmas in expected["sigmas"].items():
            ours = torch.tensor(schedule(int(steps), int(tokens)), dtype=torch.float64)
            errors["sigmas"] = max(errors["sigmas"], error_of(ours, torch.tensor(sigmas, dtype=torch.float64)))
    for name, error in errors.items():
        yield Check(name, error, SCHEDULE)


def replay_film(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, params = load(path)
    request = film_request(params, tensors)
    plan = request.plan()
    parts = []
    pixels = None
    for item in sample_film(request, plan, film_conditions(params, tensors), pool, Stop(), on_host):
        if isinstance(item, Decoded):
            parts.append(item.latents)
            final = item.final if pixels is None else joined(item.final, pixels, plan.grows)
            pixels, shown = final, joined(item.open, final, plan.grows)
    for number, latents in enumerate(parts):
        yield Check(f"section {number}", error_of(latents, tensors[f"out.section_latents.{number}"]), LATENTS)
    yield Check("number of sections", abs(len(parts) - params["sections"]), EXACT)
    film = parts[0]
    for latents in parts[1:]:
        film = joined(latents, film, plan.grows)
    film = torch.cat([tensors["in.start_latent"], film], dim=2)
    yield Check("film", error_of(film, tensors["out.film_latents"]), LATENTS)
    yield Check("pixels", error_of(shown[..., ::4, ::4], tensors["out.film_pixels_every_4th"]), PIXELS)
    yield Check("frame means", error_of(shown.mean(dim=(0, 1, 3, 4)), tensors["out.film_frame_means"]), PIXELS)


def film_request(params: dict, tensors: dict[str, Tensor]) -> ReverseRequest | ForwardRequest:
    """Return the request whose plan is that of the vector's film. Its pictures are names only and never opened."""
    sections, window = params["sections"], float(params["window"])
    common = {
        "image": "start",
        "prompt": "common",
        "seconds": sections * FRAMES_PER_LATENT * window / FPS,
        "window": window,
        "section_prompts": {int(name.rsplit(".", 1)[1]): name for name in tensors if name.startswith("in.section_text.")},
        "seed": params["seed"],
        "steps": params["steps"],
        "guidance_scale": params["guidance"],
        "step_cache": "none",
    }
    if params["mode"] == "forward":
        influence = 100.0 / (params["strength"] or 1.0)
        return ForwardRequest(**common, influence=influence, influence_sections="all")
    ladder = paddings(sections)
    return ReverseRequest(
        **common,
        cfg_scale=params["cfg"],
        guidance_rescale=params["guidance_rescale"],
        end_image="end" if "in.end_latent" in tensors else "",
        end_strength=params["end_strength"] or 1.0,
        keyframes={int(name.rsplit(".", 1)[1]): name for name in tensors if name.startswith("in.keyframe_latent.")},
        padding=None if params["paddings"] == ladder else params["paddings"][0],
    )


def film_conditions(params: dict, tensors: dict[str, Tensor]) -> Conditions:
    prompts = {"common": embedding(tensors["in.text"], tensors["in.pooled"])}
    latents = {"start": tensors["in.start_latent"]}
    for name, tensor in tensors.items():
        number = name.rsplit(".", 1)[1]
        if name.startswith("in.section_text."):
            prompts[name] = embedding(tensor, tensors[f"in.section_pooled.{number}"])
        if name.startswith("in.keyframe_latent."):
            latents[f"section/{number}"] = tensor
    if "in.end_latent" in tensors:
        latents["end"] = tensors["in.end_latent"]
    negative = None
    if params.get("cfg", 1.0) != 1.0:
        negative = embedding(tensors["in.negative_text"], tensors["in.negative_pooled"])
    return Conditions(prompts=prompts, image=tensors["in.image_tokens"], latents=latents, negative=negative)


def embedding(tokens: Tensor, pooled: Tensor) -> TextEmbedding:
    return TextEmbedding(tokens, pooled, tokens.shape[1], tokens.shape[1])


def replay_teacache(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, params = load(path)
    film = {"mode": "reverse", "sections": 2, "cfg": 1.0, "guidance_rescale": 0.0, "end_strength": None}
    request = film_request({**film, **params, "paddings": [params["padding"], 0]}, tensors)
    plan = request.plan()
    sampler = SectionSampler(request, plan, film_conditions(params, tensors))
    sampler.history.grow(tensors["in.history"])
    cache = TeaCache(params["threshold"], params["steps"])
    latents = [x0 for _, x0 in sampler.sample(pool.net, plan.sections[0], (cache, None))][-1]
    yield Check("latents", error_of(latents, tensors["out.latents"]), LATENTS)
    same = cache.computed == tensors["out.computed_steps"].tolist()
    yield Check("computed steps", 0.0 if same else 1.0, EXACT)


def replay_preview(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, _ = load(path)
    weights = preview_weights(HUNYUAN_PREVIEW, torch.device("cpu"))
    yield Check("rgb", error_of(preview_rgb(tensors["latents"], weights), tensors["rgb"]), LATENTS)


def replay_crossfade(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, _ = load(path)
    for name in sorted(name for name in tensors if name.startswith("overlap_")):
        overlap = int(name.removeprefix("overlap_"))
        second, rest = tensors["b"], tensors["a"].shape[2] - overlap
        first, edge = tensors["a"].split([rest, overlap], dim=2)
        ours = torch.cat([first, blend(edge, second[:, :, :overlap], 0, overlap), second[:, :, overlap:]], dim=2)
        yield Check(name, error_of(ours, tensors[name]), PIXELS)


def replay_cover_crop(path: Path, pool: TinyPool) -> Iterator[Check]:
    tensors, _ = load(path)
    for case in sorted({name.split(".")[0] for name in tensors}):
        fitted = tensors[f"{case}.fitted"]
        ours = cover_crop(Image.fromarray(tensors[f"{case}.image"].numpy()), *fitted.shape[:2])
        yield Check(case, error_of(torch.from_numpy(numpy.array(ours)), fitted) / 255.0, PIXELS)


def replay_lora(path: Path, pool: TinyPool) -> Iterator[Check]:
    for check in lora_checks(path, pool.net):
        yield Check(*check)


REPLAYS: dict[str, Replay] = {
    "transformer_*.safetensors": replay_transformer,
    "film_*.safetensors": replay_film,
    "teacache_*.safetensors": replay_teacache,
    "unipc.safetensors": replay_unipc,
    "schedule.json": replay_schedule,
    "preview.safetensors": replay_preview,
    "crossfade.safetensors": replay_crossfade,
    "cover_crop.safetensors": replay_cover_crop,
}
