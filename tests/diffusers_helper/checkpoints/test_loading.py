"""Test loading into slabs: weights equal to the files', in the right place, and without a second copy on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_helper.checkpoints.checkpoint import load_transformer
from diffusers_helper.checkpoints.files import CheckpointError, read_headers
from diffusers_helper.checkpoints.reading import Reader
from diffusers_helper.memory.slabs import PAGE
from diffusers_helper.memory.streaming import Streamer, tensors_of
from diffusers_helper.models.linear import quantise
from diffusers_helper.models.transformer import PackedTransformer, TransformerConfig
from tests.fake_device import FakeDevice

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MIB = 2**20
CONFIG = {
    "num_attention_heads": 8, "attention_head_dim": 128, "num_layers": 2, "num_single_layers": 5, "num_refiner_layers": 1,
    "text_embed_dim": 256, "pooled_projection_dim": 64, "rope_axes_dim": [16, 56, 56], "image_proj_dim": 64,
}  # fmt: skip
LARGE = {**CONFIG, "num_layers": 1, "num_single_layers": 3}

# What loading takes at most beyond what was there before, and the slabs, as seen by the system. VmHWM is the process's peak.
# The libraries are imported once; each case is a child of its own, whose peak begins with what its parent holds.
PROBE = """
import json
import os
import sys
from pathlib import Path

import torch

from diffusers_helper.checkpoints.checkpoint import load_transformer
from diffusers_helper.memory.streaming import Streamer
from tests.fake_device import FakeDevice

torch.set_num_threads(1)
large, small, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def measure(dtype, storage):
    # What the first use of each library takes does not count.
    load_transformer(small, dtype, storage)
    before = peak()
    net = load_transformer(large, dtype, storage, beside_card=True)
    streamer = Streamer(FakeDevice(), net.weight_groups())
    slabs = sum(run.source.numel() for part in streamer._step.values() for run in part.runs)
    print(json.dumps([peak() - before, slabs]), flush=True)


for dtype, storage in cases:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        measure(getattr(torch, dtype), storage or None)
        os._exit(0)
"""
CASES = [("bfloat16", ""), ("bfloat16", "int8"), ("float32", ""), ("float32", "float8")]


def write(folder: Path, config: dict, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint with random weights in two shards."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        shapes = PackedTransformer(TransformerConfig.from_json(config)).state_dict()
    generator, index = torch.Generator().manual_seed(0), {}
    for number in range(2):
        names = list(shapes)[number::2]
        tensors = {name: torch.empty(shapes[name].shape, dtype=dtype).normal_(generator=generator) for name in names}
        file = f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors"
        save_file(tensors, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIG, "num_attention_heads": 2, "attention_head_dim": 32, "rope_axes_dim": [4, 14, 14]}
    return write(tmp_path_factory.mktemp("small") / "transformer", config)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of 180 MB: even of its 8-bit slabs a second copy is more than loading may take beside them."""
    return write(tmp_path_factory.mktemp("large") / "transformer", LARGE)


@pytest.fixture(scope="module")
def peaks(small: Path, large: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Measure for each case the peak bytes of loading and the bytes of the slabs."""
    command = [sys.executable, "-c", PROBE, str(large), str(small), json.dumps(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, (tuple(json.loads(line)) for line in done.stdout.splitlines()), strict=True))


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's peak")
@pytest.mark.parametrize(("dtype", "storage"), CASES)
def test_the_peak_is_the_slabs_and_one_tensor(
    dtype: str, storage: str, peaks: dict[tuple[str, str], tuple[int, int]], large: Path
) -> None:
    """Loading takes the slabs and one more tensor at its peak; mapping the files and copying out of them holds the weights
    twice."""
    peak, slabs = peaks[dtype, storage]
    shapes = read_headers(sorted(large.glob("*.safetensors"))).shapes
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    expected = {"bfloat16": 2, "float32": 4, "bfloat16int8": 1, "float32float8": 1}[dtype + storage]
    with torch.device("meta"):
        net = PackedTransformer(TransformerConfig.from_json(LARGE))
    linears = sum(layer.weight.numel() for layer in net.block_linears().values())
    assert 0.99 < slabs / (expected * linears) < 1.03
    # In 32 bits the tables' weights are not as they are in the files, and lie in memory too.
    rest = 4 * (parameters - linears) if dtype == "float32" else 0
    # The largest tensor is 12 MB in the file; quantising it takes it several times in 32 bits.
    assert peak < slabs + rest + 64 * MIB, f"{(peak - slabs - rest) / MIB:.0f} MiB more than what stays"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("storage", [None, "int8", "float8"])
def test_weights_are_the_files(small: Path, dtype: torch.dtype, storage: str | None) -> None:
    """Loaded weights equal the file's bit for bit, or what quantising makes of them."""
    net, files = load_transformer(small, dtype, storage), stored(small)
    narrow = {f"{name}.weight": layer for name, layer in net.block_linears().items()} if storage else {}
    for name, parameter in net.named_parameters():
        wide = files[name].to(dtype)
        if name in narrow:
            weight, scale = quantise(wide, storage, dtype)
            assert torch.equal(parameter.view(torch.int8), weight.view(torch.int8)), name
            assert torch.equal(narrow[name].weight_scale, scale), name
        else:
            assert parameter.dtype == dtype and torch.equal(parameter, wide), name
    assert len(narrow) == sum(layer.weight_scale is not None for layer in net.block_linears().values())


@pytest.mark.parametrize("storage", [None, "int8"])
def test_every_part_of_a_step_lies_in_a_slab(small: Path, storage: str | None) -> None:
    """Every part of a step lies in a slab, so that streaming moves it in one copy and blocks multiply once for q, k and v."""
    net = load_transformer(small, torch.bfloat16, storage)
    streamer = Streamer(FakeDevice(), net.weight_groups())
    assert streamer._arena is None
    for part in streamer._step.values():
        (run,) = part.runs
        assert run.source.data_ptr() % PAGE == 0
    for block in (*net.transformer_blocks, *net.single_transformer_blocks):
        assert all(fused is not None for fused in block.fused())
    assert streamer.lock(2**40) == sum(run.source.numel() for part in streamer._step.values() for run in part.runs)


@pytest.mark.parametrize(
    ("dtype", "beside_card", "windows"),
    [(torch.bfloat16, True, True), (torch.float32, True, False), (torch.bfloat16, False, False)],
)
def test_what_only_tables_are_made_of(small: Path, dtype: torch.dtype, beside_card: bool, windows: bool) -> None:
    """Stays in the files beside a card, unless it has to be widened. Elsewhere there is one memory for all, evenly laid.

    Kernels round differently over odd addresses, and the same weights have to mean the same film.
    """
    net = load_transformer(small, dtype, "int8", beside_card=beside_card)
    parts = net.weight_groups()
    (step,) = {t.untyped_storage().data_ptr() for modules in parts.step.values() for t in tensors_of(modules)}
    rest = [t for modules in (*parts.job.values(), parts.always) for t in tensors_of(modules)]
    lie_elsewhere = [t.untyped_storage().data_ptr() != step for t in rest]
    assert any(lie_elsewhere) is all(lie_elsewhere) is windows
    assert windows or all(t.data_ptr() % 256 == 0 for t in rest)


class Halved:
    """Halve one tensor."""

    def __init__(self, name: str):
        self.name = name

    def changes(self, name: str) -> bool:
        return name == self.name

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor / 2 if name == self.name else tensor


@pytest.mark.parametrize("name", ["norm_out.linear.weight", "single_transformer_blocks.1.attn.to_k.weight", "proj_out.bias"])
def test_what_is_changed_is_not_the_files(small: Path, name: str) -> None:
    """A change applied while loading reaches the weights of tables, steps and head, and nothing else; the files stay as they
    are."""
    before = stored(small)
    net = load_transformer(small, torch.bfloat16, None, Halved(name))
    for other, parameter in net.named_parameters():
        assert torch.equal(parameter, before[other] / 2 if other == name else before[other]), other
    assert all(torch.equal(tensor, before[other]) for other, tensor in stored(small).items())


def test_a_file_that_is_cut_off_while_it_is_read(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut off after its check is an error: a read that ends early must not leave zeros in the weights."""
    name, into = "single_transformer_blocks.4.proj_out.weight", Reader.into

    def cut(self, asked, memory):
        if asked == name:
            file = self._found.files[name]
            with file.open("r+b") as stream:
                stream.truncate(self._found.places[name][1] - 100)
        into(self, asked, memory)

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in small.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(Reader, "into", cut)
    with pytest.raises(CheckpointError) as caught:
        load_transformer(copy, torch.bfloat16)
    assert caught.value.key == "file_damaged" and caught.value.values["file"].startswith(str(copy))


@pytest.mark.parametrize("change", [{"dtype": "F32"}, {"dtype": "F4"}, {"data_offsets": [0, 6]}])
def test_a_header_that_contradicts_itself(change: dict, tmp_path: Path) -> None:
    """A header whose dtype and length contradict the shape is refused, because reading on would mix tensors up."""
    header = {"a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8], **change}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(header["a"]["data_offsets"][1]))
    with pytest.raises(CheckpointError) as caught:
        read_headers([tmp_path / "x.safetensors"])
    assert caught.value.key == "file_damaged"


def test_reading_goes_through_the_disk_once_in_order(small: Path) -> None:
    found = read_headers(sorted(small.glob("*.safetensors")))
    with Reader(found) as reader:
        places = [(str(found.files[name]), found.places[name]) for name in reader.names()]
    assert places == sorted(places) and len(places) == len(found.shapes)


@pytest.mark.parametrize("at_once", [1, 1000, 2**40])
def test_rows_are_quantised_as_the_whole(at_once: int, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantising in groups of rows, with a smaller last group too, gives the same result as quantising the whole tensor."""
    net = load_transformer(small, torch.bfloat16, "int8")
    monkeypatch.setattr("diffusers_helper.checkpoints.checkpoint.QUANTISED_AT_ONCE", at_once)
    other = load_transformer(small, torch.bfloat16, "int8")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
