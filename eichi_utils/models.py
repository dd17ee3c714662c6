"""Networks on loan: found in a folder or on the hub, checked before work starts, kept or dropped by bytes.

    with pool.transformer("framepack") as net: ...

Nobody holds a network beyond the block, so the pool alone decides what stays on the card and in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLHunyuanVideo
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from huggingface_hub.utils import tqdm
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from diffusers_helper import checkpoint, memory
from diffusers_helper.checkpoint import CheckpointError
from diffusers_helper.models.attention import AttentionChoice, choose_attention
from diffusers_helper.models.transformer import PackedTransformer
from diffusers_helper.text import TextEncoders, load_tokenizer, load_tokenizer_2, without_unused_layers
from diffusers_helper.vision import VisionEncoder, VisionPreprocessing
from eichi_utils.paths import DEFAULT_MODELS
from eichi_utils.problems import Problem, UserError

T = TypeVar("T")

# The hub's client library has another name in other releases; its base error is what the hub's own derives from.
ConnectionTrouble: type[Exception] = HfHubHTTPError.__bases__[0]
# What the libraries' configuration classes and layers raise for values that no model can have.
ConfigTrouble = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError)


@dataclass(frozen=True)
class Place:
    """Where the hub keeps a component: repository, and folder in it ("" is its root)."""

    repository: str
    folder: str


HUNYUAN, REDUX = "hunyuanvideo-community/HunyuanVideo", "lllyasviel/flux_redux_bfl"
PLACES = {
    "framepack": Place("lllyasviel/FramePackI2V_HY", ""),
    "framepack_f1": Place("lllyasviel/FramePack_F1_I2V_HY_20250503", ""),
    "vae": Place(HUNYUAN, "vae"),
    "text_encoder": Place(HUNYUAN, "text_encoder"),
    "tokenizer": Place(HUNYUAN, "tokenizer"),
    "text_encoder_2": Place(HUNYUAN, "text_encoder_2"),
    "tokenizer_2": Place(HUNYUAN, "tokenizer_2"),
    "image_encoder": Place(REDUX, "image_encoder"),
    "feature_extractor": Place(REDUX, "feature_extractor"),
}
# In a folder of one's own the transformers stand beside the other components; F1's may be absent if one serves both.
LOCAL_FOLDERS = {"framepack": ("transformer",), "framepack_f1": ("transformer_f1", "transformer")}
SHARED = tuple(name for name in PLACES if name not in LOCAL_FOLDERS)
# Networks and the system share the memory; above this share of it, what was used longest ago is dropped.
HOST_SHARE = 0.6
# Left free on a card for activations when a network moves in.
CARD_RESERVE = 2 * 2**30


class DownloadStopped(Exception):
    """Nobody wants the download any more."""


@dataclass(frozen=True)
class NetworkSpec:
    """What is loaded; equality decides about loading again."""

    component: str
    folder: Path
    dtype: torch.dtype


@dataclass
class _Loaded:
    spec: NetworkSpec
    value: Any
    modules: tuple[nn.Module, ...]

    @property
    def bytes(self) -> int:
        return sum(memory.module_bytes(module) for module in self.modules)


class ModelPool:
    """models: a folder with `transformer`, `vae`, ... inside, or a hub cache folder; None is this program's own cache.

    Raises UserError if the folder, the device or a forced attention kernel does not exist.
    """

    def __init__(self, models: Path | None = None, device: str = "auto", attention: str = "auto"):
        problems = []
        if models is not None and not models.is_dir():
            problems.append(Problem("models", "models_missing", {"folder": str(models)}))
        try:
            self.placement = memory.placement(device)
        except ValueError as error:
            problems.append(Problem("device", "device_unknown", {"reason": str(error)}))
            self.placement = memory.placement("cpu")
        try:
            where = self.placement
            self.attention: AttentionChoice = choose_attention(where.device, where.transformer, attention)
        except ValueError as error:
            problems.append(Problem("attention", "attention_unusable", {"name": attention, "reason": str(error)}))
        if problems:
            raise UserError(problems)
        self.models = models
        self.host_budget = int(HOST_SHARE * host_memory())
        self._loaded: dict[str, _Loaded] = {}
        self._checked: dict[str, tuple] = {}

    @property
    def own_folder(self) -> bool:
        """Whether the models are a plain folder rather than a hub cache."""
        names = (*SHARED, *LOCAL_FOLDERS["framepack_f1"])
        return self.models is not None and any((self.models / name).is_dir() for name in names)

    def missing(self, checkpoint_name: str) -> list[Place]:
        """What has to be downloaded before this checkpoint can run; empty when complete, or with a folder of one's own."""
        if self.own_folder:
            return []
        names = [name for name in (checkpoint_name, *SHARED) if not self._complete(name)]
        return [PLACES[name] for name in names]

    def download(self, place: Place, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Fetch one component; goes on where an interrupted download stopped.

        Ends early, and returns False, once `wanted()` is. Raises UserError if the hub cannot be reached.
        """
        pattern = f"{place.folder}/*" if place.folder else "*"
        if not wanted():
            return False
        try:
            snapshot_download(
                place.repository, allow_patterns=[pattern], cache_dir=self._cache, tqdm_class=_progress_while(wanted)
            )
        except DownloadStopped:
            return False
        except (HfHubHTTPError, ConnectionTrouble, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            values = {"repository": place.repository, "folder": str(self._cache), "reason": reason}
            raise UserError([Problem("models", "download_failed", values)]) from None
        return True

    def shares_transformer(self, checkpoint_name: str) -> bool:
        """Whether F1 has to make do with the standard transformer, because a folder of one's own has no other."""
        return checkpoint_name == "framepack_f1" and self.own_folder and not (self.models / "transformer_f1").is_dir()

    def check(self, checkpoint_name: str) -> None:
        """Raises UserError with everything that is missing or damaged, before anything is loaded."""
        problems = []
        for name in (checkpoint_name, *SHARED):
            try:
                self._check(name)
            except CheckpointError as error:
                problems.append(_problem(error))
        if problems:
            raise UserError(problems)

    def folder(self, name: str) -> Path:
        """Where a component lies. Raises CheckpointError if it is not there."""
        if self.own_folder:
            candidates = [self.models / local for local in LOCAL_FOLDERS.get(name, (name,))]
        else:
            candidates = self._cached_folders(PLACES[name])
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise CheckpointError("file_missing", file=str(candidates[0] if candidates else PLACES[name].repository))

    @contextmanager
    def transformer(self, checkpoint_name: str) -> Iterator[PackedTransformer]:
        folder, dtype = self._folder(checkpoint_name), self.placement.transformer
        # The slot is one for both checkpoints: two transformers of 26 GB are never kept at once.
        with self._loan(NetworkSpec("transformer", folder, dtype), lambda: self._one(_load_transformer, folder, dtype)) as net:
            net.attend = self.attention.kernel
            yield net

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKLHunyuanVideo]:
        folder, dtype = self._folder("vae"), self.placement.encoder
        with self._loan(NetworkSpec("vae", folder, dtype), lambda: self._one(_load_vae, folder, dtype)) as vae:
            yield vae

    @contextmanager
    def text(self) -> Iterator[TextEncoders]:
        spec = NetworkSpec("text_encoder", self._folder("text_encoder"), self.placement.encoder)
        with self._loan(spec, self._load_text) as encoders:
            yield encoders

    @contextmanager
    def vision(self) -> Iterator[VisionEncoder]:
        spec = NetworkSpec("image_encoder", self._folder("image_encoder"), self.placement.encoder)
        with self._loan(spec, self._load_vision) as encoder:
            yield encoder

    @contextmanager
    def _loan(self, spec: NetworkSpec, load: Callable[[], tuple[Any, tuple[nn.Module, ...]]]) -> Iterator[Any]:
        loaded = self._loaded.pop(spec.component, None)
        if loaded is None or loaded.spec != spec:
            del loaded
            value, modules = load()
            loaded = _Loaded(spec, value, modules)
        # Last in the dictionary is last used.
        self._loaded[spec.component] = loaded
        self._make_host_room()
        self._make_card_room(loaded)
        for module in loaded.modules:
            memory.move(module, self.placement.device)
        yield loaded.value

    def _make_host_room(self) -> None:
        total = sum(loaded.bytes for loaded in self._loaded.values())
        for component in list(self._loaded)[:-1]:
            if total <= self.host_budget:
                return
            total -= self._loaded.pop(component).bytes

    def _make_card_room(self, wanted: _Loaded) -> None:
        for loaded in self._loaded.values():
            free = memory.free_bytes(self.placement.device)
            if free is None or free >= wanted.bytes + CARD_RESERVE:
                return
            if loaded is not wanted:
                for module in loaded.modules:
                    memory.move(module, torch.device("cpu"))

    def _folder(self, name: str) -> Path:
        try:
            return self.folder(name)
        except CheckpointError as error:
            raise UserError([_problem(error)]) from None

    def _one(self, load: Callable[[Path, torch.dtype], nn.Module], folder: Path, dtype: torch.dtype) -> tuple:
        module = load(folder, dtype)
        return module, (module,)

    def _load_text(self) -> tuple[TextEncoders, tuple[nn.Module, ...]]:
        dtype = self.placement.encoder
        tokenizer, tokenizer_2 = load_tokenizer(self._folder("tokenizer")), load_tokenizer_2(self._folder("tokenizer_2"))
        llama = without_unused_layers(_pretrained(LlamaModel, self._folder("text_encoder"), dtype))
        clip = _pretrained(CLIPTextModel, self._folder("text_encoder_2"), dtype)
        return TextEncoders(tokenizer, llama, tokenizer_2, clip), (llama, clip)

    def _load_vision(self) -> tuple[VisionEncoder, tuple[nn.Module, ...]]:
        model = _pretrained(SiglipVisionModel, self._folder("image_encoder"), self.placement.encoder)
        document = checkpoint.read_json(self._folder("feature_extractor") / "preprocessor_config.json")
        return VisionEncoder(model, VisionPreprocessing.from_json(document)), (model,)

    @property
    def _cache(self) -> Path:
        if self.models is not None:
            return self.models
        home = os.environ.get("HF_HUB_CACHE") or (os.environ["HF_HOME"] + "/hub" if os.environ.get("HF_HOME") else "")
        return Path(home) if home else DEFAULT_MODELS

    def _cached_folders(self, place: Place) -> list[Path]:
        snapshots = self._cache / f"models--{place.repository.replace('/', '--')}" / "snapshots"
        if not snapshots.is_dir():
            return []
        newest_first = sorted(snapshots.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        return [folder / place.folder for folder in newest_first]

    def _check(self, name: str) -> None:
        """Look at a component's files, unless they are those that were found good before. Raises CheckpointError."""
        folder = self.folder(name)
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
        if self._checked.get(name) != (folder, files):
            _CHECKS[name](folder)
            self._checked[name] = folder, files

    def _complete(self, name: str) -> bool:
        try:
            self._check(name)
        except CheckpointError as error:
            # A damaged file is reported by check(), not downloaded over without a word.
            return error.key != "file_missing"
        return True


def host_memory() -> int:
    """Bytes of physical memory; 16 GB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 * 2**30


def _progress_while(wanted: Callable[[], bool]) -> type[tqdm]:
    """A progress bar for the hub's downloads that ends them when they are no longer wanted: it is asked at every piece."""

    class Progress(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if not wanted():
                raise DownloadStopped
            return super().update(n)

    return Progress


def _problem(error: CheckpointError) -> Problem:
    return Problem("models", f"checkpoint_{error.key}", error.values)


def _load_transformer(folder: Path, dtype: torch.dtype) -> PackedTransformer:
    return checkpoint.load_transformer(folder, dtype)


def _load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
    return _pretrained(AutoencoderKLHunyuanVideo, folder, dtype)


def _pretrained(kind: type[T], folder: Path, dtype: torch.dtype) -> T:
    with checkpoint.quiet():
        model = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    return model.eval().requires_grad_(False)


def _check_transformer(folder: Path) -> None:
    checkpoint.check_transformer(folder)


def _check_vae(folder: Path) -> None:
    module = _meta(folder, AutoencoderKLHunyuanVideo.from_config)
    found = checkpoint.read_headers(checkpoint.weight_files(folder, "diffusion_pytorch_model"))
    checkpoint.compare(checkpoint.shapes_of(module), found, folder, strict=False)


def _check_encoder(config_class: type, model_class: type, folder: Path) -> None:
    module = _meta(folder, lambda document: model_class(config_class.from_dict(document)))
    found = checkpoint.read_headers(checkpoint.weight_files(folder, "model"))
    # Published files name the level of the enclosing class, which transformers 5 left out of its own names.
    plain = {_plain(name): shape for name, shape in found.shapes.items()}
    files = {_plain(name): file for name, file in found.files.items()}
    expected = {_plain(name): shape for name, shape in checkpoint.shapes_of(module).items()}
    checkpoint.compare(expected, checkpoint.Tensors(plain, files), folder, strict=False)


def _meta(folder: Path, make: Callable[[dict[str, Any]], nn.Module]) -> nn.Module:
    """The module that a folder's config.json describes, without memory."""
    path = folder / "config.json"
    document = checkpoint.read_json(path)
    try:
        with torch.device("meta"):
            return make(document)
    except ConfigTrouble as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


def _plain(name: str) -> str:
    for level in ("text_model.", "vision_model.", "model."):
        name = name.removeprefix(level)
    return name


def _check_tokenizer(folder: Path, load: Callable[[Path], Any]) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointError("file_missing", file=str(path))
    try:
        # Read first, because tokenizers reports a damaged file with an error of no class of its own.
        if path.is_file() and not isinstance(checkpoint.read_json(path).get("model"), dict):
            raise ValueError("tokenizer.json has no model")
        load(folder)
    except (CheckpointError, OSError, *ConfigTrouble) as error:
        reason = error.values["reason"] if isinstance(error, CheckpointError) else str(error)[:200]
        raise CheckpointError("tokenizer", folder=str(folder), reason=reason) from None


def _check_feature_extractor(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    document = checkpoint.read_json(path)
    try:
        VisionPreprocessing.from_json(document)
    except ConfigTrouble as error:
        raise CheckpointError("config_damaged", file=str(path), reason=str(error)[:200]) from None


_CHECKS: dict[str, Callable[[Path], None]] = {
    "framepack": _check_transformer,
    "framepack_f1": _check_transformer,
    "vae": _check_vae,
    "text_encoder": partial(_check_encoder, LlamaConfig, LlamaModel),
    "tokenizer": partial(_check_tokenizer, load=load_tokenizer),
    "text_encoder_2": partial(_check_encoder, CLIPTextConfig, CLIPTextModel),
    "tokenizer_2": partial(_check_tokenizer, load=load_tokenizer_2),
    "image_encoder": partial(_check_encoder, SiglipVisionConfig, SiglipVisionModel),
    "feature_extractor": _check_feature_extractor,
}
