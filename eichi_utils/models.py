"""Networks on loan: found in a folder or on the hub, checked before work starts, kept or dropped by bytes.

    with pool.transformer("framepack") as net: ...

Nobody holds a network beyond the block, so the pool alone decides what stays on the card and in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import CLIPTextModel, LlamaModel, SiglipVisionModel

from diffusers_helper import memory
from diffusers_helper.files import CheckpointError, read_json
from diffusers_helper.models.attention import AttentionChoice, choose_attention
from diffusers_helper.models.compiled import Passes, choose_passes
from diffusers_helper.models.linear import set_product
from diffusers_helper.models.narrow import choose_product
from diffusers_helper.models.transformer import PackedTransformer
from diffusers_helper.text import TextEncoders, load_tokenizer, load_tokenizer_2, without_unused_layers
from diffusers_helper.vision import VisionEncoder, VisionPreprocessing
from eichi_utils.adapters import bind, load_transformer, merge_key
from eichi_utils.components import CHECKS, load_vae, pretrained
from eichi_utils.hub import PREPROCESSOR_FILE, SHARED, ModelFiles, Place
from eichi_utils.loras import Lora
from eichi_utils.problems import Problem, UserError

# Networks and the system share the memory; above this share of it, what was used longest ago is dropped.
HOST_SHARE = 0.6
# Left free on a card for activations when a network moves in.
CARD_RESERVE = 2 * 2**30


@dataclass(frozen=True)
class NetworkSpec:
    """What is loaded; equality decides about loading again.

    storage: the 8-bit format of the blocks' weights, or None. merged: the files that are worked into the weights.
    """

    component: str
    folder: Path
    dtype: torch.dtype
    storage: str | None = None
    merged: tuple = ()


@dataclass
class _Loaded:
    spec: NetworkSpec
    value: Any
    modules: tuple[nn.Module, ...]

    @property
    def bytes(self) -> int:
        return sum(memory.module_bytes(module) for module in self.modules)


class ModelPool:
    """Networks of one model at a time. models: a folder with `transformer`, `vae`, ... inside, or a hub cache folder; None is
    this program's own cache.

    Raises UserError if the folder, the device or a forced attention kernel does not exist.
    """

    def __init__(self, models: Path | None = None, device: str = "auto", attention: str = "auto"):
        self.files = ModelFiles(models)
        problems = list(self.files.folder_problems())
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
        self.host_budget = int(HOST_SHARE * host_memory())
        self._loaded: dict[str, _Loaded] = {}
        self._checked: dict[str, tuple] = {}

    def use(self, files: ModelFiles) -> None:
        """Lend another model's networks from now on; those of the one before are dropped at once."""
        if files != self.files:
            self._loaded.clear()
            self.files = files

    def missing(self, checkpoint_name: str) -> list[Place]:
        """What has to be downloaded before this checkpoint can run."""
        return self.files.missing(checkpoint_name)

    def folder(self, name: str) -> Path:
        """Where a component lies. Raises CheckpointError if it is not there."""
        return self.files.folder(name)

    def check(self, checkpoint_name: str) -> None:
        """Raises UserError with everything that is missing or damaged, before anything is loaded."""
        problems = []
        for name in (checkpoint_name, *SHARED):
            try:
                self._check(name)
            except CheckpointError as error:
                problems.append(checkpoint_problem(error))
        if problems:
            raise UserError(problems)

    @cached_property
    def passes(self) -> Passes:
        """How blocks are run here; found out when the first transformer is lent, because that takes seconds on a card."""
        return choose_passes(self.placement.device)

    @contextmanager
    def transformer(
        self, checkpoint_name: str, precision: str = "auto", loras: Sequence[Lora] = (), merge: bool = False
    ) -> Iterator[PackedTransformer]:
        """precision: as in a request. loras: beside the weights, where a strength changes at once, or merged into them."""
        folder = self._folder(checkpoint_name)
        dtype, storage = memory.weight_format(precision, self.placement)
        merged, beside = (loras, ()) if merge else ((), loras)
        # The slot is one for both checkpoints: two transformers of 26 GB are never kept at once.
        spec = NetworkSpec("transformer", folder, dtype, storage, merge_key(merged))
        device = self.placement.device

        def load() -> tuple[PackedTransformer, tuple[nn.Module, ...]]:
            return self._one(lambda *place: load_transformer(*place, storage, merged, device), folder, dtype)

        with self._loan(spec, load, lambda net: bind(net, beside)) as net:
            net.attend, net.passes = self.attention.kernel, self.passes
            if storage == "float8":
                set_product(net, choose_product(device))
            yield net

    @contextmanager
    def vae(self) -> Iterator[AutoencoderKLHunyuanVideo]:
        folder, dtype = self._folder("vae"), self.placement.encoder
        with self._loan(NetworkSpec("vae", folder, dtype), lambda: self._one(load_vae, folder, dtype)) as vae:
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
    def _loan(
        self,
        spec: NetworkSpec,
        load: Callable[[], tuple[Any, tuple[nn.Module, ...]]],
        change: Callable[[Any], None] = lambda value: None,
    ) -> Iterator[Any]:
        """change: what is done to the value before it is counted and moved."""
        loaded = self._loaded.pop(spec.component, None)
        if loaded is None or loaded.spec != spec:
            del loaded
            value, modules = load()
            loaded = _Loaded(spec, value, modules)
        # Last in the dictionary is last used.
        self._loaded[spec.component] = loaded
        change(loaded.value)
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
            return self.files.folder(name)
        except CheckpointError as error:
            raise UserError([checkpoint_problem(error)]) from None

    def _one(self, load: Callable[[Path, torch.dtype], nn.Module], folder: Path, dtype: torch.dtype) -> tuple:
        module = load(folder, dtype)
        return module, (module,)

    def _load_text(self) -> tuple[TextEncoders, tuple[nn.Module, ...]]:
        dtype = self.placement.encoder
        tokenizer, tokenizer_2 = load_tokenizer(self._folder("tokenizer")), load_tokenizer_2(self._folder("tokenizer_2"))
        llama = without_unused_layers(pretrained(LlamaModel, self._folder("text_encoder"), dtype))
        clip = pretrained(CLIPTextModel, self._folder("text_encoder_2"), dtype)
        return TextEncoders(tokenizer, llama, tokenizer_2, clip), (llama, clip)

    def _load_vision(self) -> tuple[VisionEncoder, tuple[nn.Module, ...]]:
        model = pretrained(SiglipVisionModel, self._folder("image_encoder"), self.placement.encoder)
        document = read_json(self._folder("feature_extractor") / PREPROCESSOR_FILE)
        return VisionEncoder(model, VisionPreprocessing.from_json(document)), (model,)

    def _check(self, name: str) -> None:
        """Look at a component's files, unless they are those that were found good before. Raises CheckpointError."""
        folder = self.files.folder(name)
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
        if self._checked.get(name) != (folder, files):
            CHECKS[name](folder)
            self._checked[name] = folder, files


def host_memory() -> int:
    """Bytes of physical memory; 16 GB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 16 * 2**30


def checkpoint_problem(error: CheckpointError) -> Problem:
    return Problem("models", f"checkpoint_{error.key}", error.values)
