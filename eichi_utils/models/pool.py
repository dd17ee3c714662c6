"""Lend a model's networks: find their files, check them before work starts, and keep or drop them by their bytes.

    with pool.transformer("framepack") as net: ...

No caller holds a network beyond the block, so the pool alone decides what stays on the card and in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from torch import nn
from transformers import CLIPTextModel, LlamaModel, SiglipVisionModel

from diffusers_helper.checkpoints.files import CheckpointError, read_json
from diffusers_helper.encoders.text import (
    TextEncoders,
    language_layers,
    load_tokenizer,
    load_tokenizer_2,
    text_weight_groups,
    without_unused_layers,
)
from diffusers_helper.encoders.vision import VisionEncoder, VisionPreprocessing
from diffusers_helper.interrupt import Tick, between_layers, never
from diffusers_helper.memory import memory
from diffusers_helper.memory.budget import Budget
from diffusers_helper.memory.device import CudaDevice, Device
from diffusers_helper.memory.weight_groups import InPlace, lent_while_called
from diffusers_helper.models.attention import AttentionChoice, choose_attention
from diffusers_helper.models.compiled import Passes, choose_passes
from diffusers_helper.models.execution import Execution
from diffusers_helper.models.narrow import Product, choose_product
from diffusers_helper.models.transformer import PackedTransformer
from eichi_utils.files.disk_cache import MOST_GB, open_caches
from eichi_utils.models.components import CHECKS, load_vae, pretrained
from eichi_utils.models.hub import PREPROCESSOR_FILE, SHARED, ModelFiles, Place
from eichi_utils.models.loaded_networks import Loaded, LoadedNetworks, NetworkSpec
from eichi_utils.models.lora_binding import bind, load_transformer, merge_key
from eichi_utils.models.requirements import (
    MOST_RESERVED,
    RESERVE_GB,
    ExecutionChoice,
    Machine,
    Requirements,
    files_problems,
    requirements,
)
from eichi_utils.problems import Problem, UserError
from eichi_utils.requests.loras import Lora
from eichi_utils.requests.plan import Plan
from eichi_utils.requests.request import Request

# Tokens of a step that are assumed if the caller names no number: those of a section in the usual size.
USUAL_TOKENS = 18_500


class ModelPool:
    """Lend the networks of one model at a time.

    models: as in `ModelFiles`. device: "auto", "cpu" or "cuda:N". attention: a kernel's name, or "auto". reserve_gb: GiB of the
    card that are left to other programs. compiler: "auto", or "off" to run blocks without compiling them. cache_gb: GB of the
    disk for results that take time to make again; 0 keeps nothing. card: replaces the device's own, for tests.

    Raises UserError if the folder, the device or the named attention kernel does not exist, or a number is out of range.
    """

    def __init__(
        self,
        models: Path | None = None,
        device: str = "auto",
        attention: str = "auto",
        reserve_gb: float = RESERVE_GB,
        card: Device | None = None,
        compiler: str = "auto",
        cache_gb: float = 0.0,
    ):
        self.files, self._compiler = ModelFiles(models), compiler
        wrong = list(self.files.folder_problems())
        try:
            self.placement = memory.placement(device)
        except ValueError as error:
            wrong.append(Problem("device", "device_unknown", {"reason": str(error)}))
            self.placement = memory.placement("cpu")
        try:
            where = self.placement
            self.attention: AttentionChoice = choose_attention(where.device, where.transformer, attention)
        except ValueError as error:
            wrong.append(Problem("attention", "attention_unusable", {"name": attention, "reason": str(error)}))
        if not 0 <= reserve_gb <= MOST_RESERVED:
            wrong.append(Problem("reserve_gb", "out_of_range", {"value": reserve_gb, "min": 0, "max": MOST_RESERVED}))
        if not 0 <= cache_gb <= MOST_GB:
            wrong.append(Problem("cache_gb", "out_of_range", {"value": cache_gb, "min": 0, "max": MOST_GB}))
        if wrong:
            raise UserError(wrong)
        self.caches = open_caches(cache_gb)
        where = self.placement.device
        self.card: Device | None = CudaDevice(where) if card is None and where.type == "cuda" else card
        self.budget = Budget(int(reserve_gb * 2**30))
        self.networks = LoadedNetworks(self.card, self.budget)
        self.room = self.networks.room
        self._checked: dict[str, tuple] = {}
        self._tick: Tick = never

    def use(self, files: ModelFiles) -> None:
        """Lend the networks of these files from now on; if they are another model's, the old networks are dropped at once."""
        if files != self.files:
            self.networks.drop_all()
            self.files = files

    def reserve(self, gigabytes: float) -> None:
        """Leave so many GiB of the card to other programs, from the next loan on."""
        self.budget.reserve = int(gigabytes * 2**30)

    def missing(self, checkpoint_name: str) -> list[Place]:
        """Return the components that have to be downloaded before this checkpoint can run."""
        return self.files.missing(checkpoint_name)

    def folder(self, name: str) -> Path:
        """Return the folder of a component. Raises CheckpointError if there is none."""
        return self.files.folder(name)

    def check(self, checkpoint_name: str) -> None:
        """Check a checkpoint's transformer and the shared components by their files' headers, without loading them.

        Raises UserError with everything that is missing or damaged.
        """
        self.check_parts(checkpoint_name, *SHARED)

    def check_parts(self, *names: str) -> None:
        """Check the named components only, as `check` does."""
        wrong = []
        for name in names:
            try:
                self._check(name)
            except CheckpointError as error:
                wrong.append(checkpoint_problem(error))
        if wrong:
            raise UserError(wrong)

    def requirements(self, request: Request, plan: Plan) -> Requirements:
        """Return how a request with valid fields is carried out here, and what it needs.

        Raises UserError if the model's files are not made for it or are damaged, or if memory, card or disk are too small.
        """
        if problems := files_problems(request, self.files):
            raise UserError(problems)
        found = requirements(request, plan, self.files, self.machine())
        if not found.missing:
            self.check(plan.checkpoint)
        if found.problems:
            raise UserError(found.problems)
        return found

    def machine(self) -> Machine:
        """Return the memory and the card that networks can have here, without the reserve."""
        memory_here = self.networks.memory.now()
        host, total = memory_here.available, memory_here.total
        if self.card is None:
            return Machine(host, total=total)
        on_card = self.networks.card_bytes
        wide = "bfloat16" if self.placement.transformer == torch.bfloat16 else "auto"
        return Machine(host, self.card.free() + on_card - self.budget.reserve, wide, self.narrow, total)

    def follow_choice(self, choice: ExecutionChoice) -> None:
        """Keep and drop networks as this choice says, from the next loan on; without a choice none is dropped."""
        self.networks.follow_choice(choice)

    @cached_property
    def narrow(self) -> str:
        """Return the 8-bit format for this card: "float8" if it multiplies such weights directly, else "int8"."""
        return "int8" if self.product is None else "float8"

    @cached_property
    def product(self) -> Product | None:
        """Return the function that multiplies float8 weights here, tried out at the first access; None if there is none."""
        return choose_product(self.placement.device)

    @cached_property
    def passes(self) -> Passes:
        """Return how the transformer's blocks are run here, compiled or not.

        It is found out when the first transformer is lent, because that takes seconds on a card.
        """
        return choose_passes(self.placement.device, self._compiler)

    @contextmanager
    def interruptible(self, tick: Tick) -> Iterator[None]:
        """Make loading, encoding and decoding call `tick` frequently inside of the block, so that it can raise to end them."""
        self._tick = tick
        try:
            yield
        finally:
            self._tick = never

    @contextmanager
    def transformer(
        self,
        checkpoint_name: str,
        precision: str = "auto",
        loras: Sequence[Lora] = (),
        merge: bool = False,
        tokens: int = USUAL_TOKENS,
    ) -> Iterator[PackedTransformer]:
        """Lend a transformer with LoRA, ready to run on this machine.

        precision: as in a request. merge: whether the LoRA are merged into the weights, instead of beside them, where changing
        a strength needs no loading. tokens: of a step, about; they decide how much of a card weights may take.
        Raises UserError if the checkpoint does not exist or a LoRA file does not fit.
        """
        folder = self._folder(checkpoint_name)
        dtype, storage = memory.weight_format(precision, self.placement)
        merged, beside = (loras, ()) if merge else ((), loras)
        # Both checkpoints have the same component name, so that two transformers of 26 GB are never kept at once.
        spec = NetworkSpec("transformer", folder, dtype, storage, merge_key(merged))
        device = self.placement.device

        def load_one(folder: Path, dtype: torch.dtype) -> PackedTransformer:
            beside_card, cache = self.card is not None, self.caches.weights
            return load_transformer(folder, dtype, storage, merged, device, beside_card, cache, self._tick)

        def load() -> tuple[PackedTransformer, tuple[nn.Module, ...]]:
            return self._load_module(load_one, folder, dtype)

        def change(net: PackedTransformer, bound: tuple | None) -> tuple:
            return bind(net, beside, bound)

        with self.networks.loan(spec, load, change, PackedTransformer.weight_groups, tokens) as loaded:
            yield loaded.value.running_with(self._execution(loaded))

    def _execution(self, loaded: Loaded) -> Execution:
        """Return the kernel, compiled blocks, product and weights that a lent transformer runs with here."""
        return Execution(
            attend=self.attention.kernel,
            passes=self.passes,
            product=self.product if loaded.spec.storage == "float8" else None,
            weights=loaded.streamer or InPlace(),
            branches=loaded.branches or (),
        )

    @contextmanager
    def vae(self, work: int = 0) -> Iterator[AutoencoderKLHunyuanVideo]:
        """Lend the VAE.

        work: how much there is to compute, in any unit; room on a card is made by what the same amount was measured to take.
        """
        folder, dtype = self._folder("vae"), self.placement.encoder
        spec = NetworkSpec("vae", folder, dtype)
        with (
            self.networks.loan(spec, lambda: self._load_module(load_vae, folder, dtype), work=work) as loaded,
            between_layers(self._tick, loaded.value),
        ):
            yield loaded.value

    @contextmanager
    def text(self) -> Iterator[TextEncoders]:
        """Lend the text encoders, and drop them afterwards, because no other work needs them."""
        spec = NetworkSpec("text_encoder", self._folder("text_encoder"), self.placement.encoder)
        try:
            with self.networks.loan(spec, self._load_text, groups=text_weight_groups) as loaded, ExitStack() as around:
                encoders = loaded.value
                if loaded.streamer:
                    around.enter_context(loaded.streamer.job())
                    around.enter_context(lent_while_called(language_layers(encoders), loaded.streamer))
                # This is entered last, so that a layer that is interrupted was lent before, and is given back.
                around.enter_context(between_layers(self._tick, encoders.llama, encoders.clip))
                yield encoders
        finally:
            # These 15 GB serve prompts only, and the transformer needs their room, even if encoding failed.
            self.networks.drop(spec.component)

    @contextmanager
    def vision(self) -> Iterator[VisionEncoder]:
        """Lend the vision encoder, which reads the start picture."""
        spec = NetworkSpec("image_encoder", self._folder("image_encoder"), self.placement.encoder)
        with self.networks.loan(spec, self._load_vision) as loaded, between_layers(self._tick, loaded.value.model):
            yield loaded.value

    def _folder(self, name: str) -> Path:
        try:
            return self.files.folder(name)
        except CheckpointError as error:
            raise UserError([checkpoint_problem(error)]) from None

    def _load_module(self, load: Callable[[Path, torch.dtype], nn.Module], folder: Path, dtype: torch.dtype) -> tuple:
        module = load(folder, dtype)
        return module, (module,)

    def _load_text(self) -> tuple[TextEncoders, tuple[nn.Module, ...]]:
        dtype = self.placement.encoder
        tokenizer, tokenizer_2 = load_tokenizer(self._folder("tokenizer")), load_tokenizer_2(self._folder("tokenizer_2"))
        llama = without_unused_layers(pretrained(LlamaModel, self._folder("text_encoder"), dtype, self._tick))
        clip = pretrained(CLIPTextModel, self._folder("text_encoder_2"), dtype, self._tick)
        return TextEncoders(tokenizer, llama, tokenizer_2, clip), (llama, clip)

    def _load_vision(self) -> tuple[VisionEncoder, tuple[nn.Module, ...]]:
        model = pretrained(SiglipVisionModel, self._folder("image_encoder"), self.placement.encoder, self._tick)
        document = read_json(self._folder("feature_extractor") / PREPROCESSOR_FILE)
        return VisionEncoder(model, VisionPreprocessing.from_json(document)), (model,)

    def _check(self, name: str) -> None:
        """Check a component's files, unless they are unchanged since they passed. Raises CheckpointError."""
        folder = self.files.folder(name)
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
        if self._checked.get(name) != (folder, files):
            CHECKS[name](folder)
            self._checked[name] = folder, files


def checkpoint_problem(error: CheckpointError) -> Problem:
    """Return the problem that tells the user why a checkpoint cannot be used."""
    return Problem("models", f"checkpoint_{error.key}", error.values)
