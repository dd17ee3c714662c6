"""Networks on loan: found in a folder or on the hub, checked before work starts, kept or dropped by bytes.

    with pool.transformer("framepack") as net: ...

Nobody holds a network beyond the block, so the pool alone decides what stays on the card and in memory.
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

# Tokens of a section in the usual size, where nobody says how many there are.
USUAL_TOKENS = 18_500


class ModelPool:
    """Networks of one model at a time. models: a folder with `transformer`, `vae`, ... inside, or a hub cache folder; None is
    this program's own cache.

    reserve_gb: GiB of the card that are left to others. compiler: "auto", or "off" for blocks as they are written. cache_gb: GB
    of the disk for what takes time to make again; 0 keeps nothing. card: in the place of the device's own, for tests.

    Raises UserError if the folder, the device or a forced attention kernel does not exist.
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
        """Lend another model's networks from now on; those of the one before are dropped at once."""
        if files != self.files:
            self.networks.drop_all()
            self.files = files

    def reserve(self, gigabytes: float) -> None:
        """GiB of the card that are left to others from the next loan on."""
        self.budget.reserve = int(gigabytes * 2**30)

    def missing(self, checkpoint_name: str) -> list[Place]:
        """What has to be downloaded before this checkpoint can run."""
        return self.files.missing(checkpoint_name)

    def folder(self, name: str) -> Path:
        """Where a component lies. Raises CheckpointError if it is not there."""
        return self.files.folder(name)

    def check(self, checkpoint_name: str) -> None:
        """Raises UserError with everything that is missing or damaged, before anything is loaded."""
        self.check_parts(checkpoint_name, *SHARED)

    def check_parts(self, *names: str) -> None:
        """The same for single components."""
        wrong = []
        for name in names:
            try:
                self._check(name)
            except CheckpointError as error:
                wrong.append(checkpoint_problem(error))
        if wrong:
            raise UserError(wrong)

    def requirements(self, request: Request, plan: Plan) -> Requirements:
        """Return how a request whose fields are right is carried out here.

        Raises UserError where the model's files cannot make it or are damaged, and where memory, card or disk are too small.
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
        """Return what networks can have here, the reserve left out."""
        memory_here = self.networks.memory.now()
        host, total = memory_here.available, memory_here.total
        if self.card is None:
            return Machine(host, total=total)
        on_card = self.networks.card_bytes
        wide = "bfloat16" if self.placement.transformer == torch.bfloat16 else "auto"
        return Machine(host, self.card.free() + on_card - self.budget.reserve, wide, self.narrow, total)

    def follow_choice(self, choice: ExecutionChoice) -> None:
        """Keep and drop networks as was decided, from the next loan on. Until then nothing is dropped."""
        self.networks.follow_choice(choice)

    @cached_property
    def narrow(self) -> str:
        """The 8-bit format for this card."""
        return "int8" if self.product is None else "float8"

    @cached_property
    def product(self) -> Product | None:
        """How float8 weights are multiplied here; found out when first asked for, by a small product."""
        return choose_product(self.placement.device)

    @cached_property
    def passes(self) -> Passes:
        """How blocks are run here; found out when the first transformer is lent, because that takes seconds on a card."""
        return choose_passes(self.placement.device, self._compiler)

    @contextmanager
    def interruptible(self, tick: Tick) -> Iterator[None]:
        """Inside of the block, loading, encoding and decoding call tick again and again."""
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
        """precision: as in a request. loras: beside the weights, where a strength changes at once, or merged into them.

        tokens: of a step, about, which says how much of a card weights may take.
        """
        folder = self._folder(checkpoint_name)
        dtype, storage = memory.weight_format(precision, self.placement)
        merged, beside = (loras, ()) if merge else ((), loras)
        # The slot is one for both checkpoints: two transformers of 26 GB are never kept at once.
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
        """Return what a lent transformer runs with here."""
        return Execution(
            attend=self.attention.kernel,
            passes=self.passes,
            product=self.product if loaded.spec.storage == "float8" else None,
            weights=loaded.streamer or InPlace(),
            branches=loaded.branches or (),
        )

    @contextmanager
    def vae(self, work: int = 0) -> Iterator[AutoencoderKLHunyuanVideo]:
        """work: how much there is to do, in any unit: room on a card is made by what the same amount was seen to take."""
        folder, dtype = self._folder("vae"), self.placement.encoder
        spec = NetworkSpec("vae", folder, dtype)
        with (
            self.networks.loan(spec, lambda: self._load_module(load_vae, folder, dtype), work=work) as loaded,
            between_layers(self._tick, loaded.value),
        ):
            yield loaded.value

    @contextmanager
    def text(self) -> Iterator[TextEncoders]:
        """Lend the text encoders, and drop them afterwards: no other work needs them."""
        spec = NetworkSpec("text_encoder", self._folder("text_encoder"), self.placement.encoder)
        try:
            with self.networks.loan(spec, self._load_text, groups=text_weight_groups) as loaded, ExitStack() as around:
                encoders = loaded.value
                if loaded.streamer:
                    around.enter_context(loaded.streamer.job())
                    around.enter_context(lent_while_called(language_layers(encoders), loaded.streamer))
                # After those: a layer that is broken off was lent, and is given back.
                around.enter_context(between_layers(self._tick, encoders.llama, encoders.clip))
                yield encoders
        finally:
            # 15 GB that only prompts need, also where they were not encoded: the transformer takes their place.
            self.networks.drop(spec.component)

    @contextmanager
    def vision(self) -> Iterator[VisionEncoder]:
        """Lend the encoder of the start picture."""
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
        """Look at a component's files, unless they are those that were found good before. Raises CheckpointError."""
        folder = self.files.folder(name)
        files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir())
        if self._checked.get(name) != (folder, files):
            CHECKS[name](folder)
            self._checked[name] = folder, files


def checkpoint_problem(error: CheckpointError) -> Problem:
    """Return what the user is told of a checkpoint that cannot be used."""
    return Problem("models", f"checkpoint_{error.key}", error.values)
