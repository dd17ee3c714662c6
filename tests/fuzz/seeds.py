"""Write good files for every reader, and a few unusual ones that random changes would not produce."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import av
import numpy
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from eichi_utils.exchange import metadata
from eichi_utils.jobs.timings import kind_of
from eichi_utils.requests import modes
from eichi_utils.requests.request import to_json
from eichi_utils.user_data.settings import CHOICES
from tests.eichi_utils import boxes, elements
from tests.eichi_utils.helpers import latent_file, request

TESTS = Path(__file__).parents[1]
CASES, COMPAT = TESTS / "cases", TESTS / "golden" / "compat"
# Bytes of the largest seed: larger ones make slow cases.
MOST_SEED = 3 * 2**20


def _cases(*suffixes: str) -> list[Path]:
    files = [file for folder in (CASES, CASES / "hostile", COMPAT) for file in sorted(folder.iterdir())]
    return [file for file in files if file.suffix.lower() in suffixes and file.stat().st_size < MOST_SEED]


def _written(folder: Path, files: dict[str, object]) -> list[Path]:
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return [folder / name for name in files]


def _whole_request(mode: str) -> dict:
    """Return a request document with a value in every field that the mode has."""
    more: dict = {"prompt": "a cat", "loras": [{"file": "ink.safetensors", "strength": 0.5}]}
    if mode == "single":
        more["controls"] = [{"image": "a.png", "index": 3, "mask": "m.png"}]
    else:
        more |= {"section_prompts": {"0": "it runs"}, "section_lora_scales": {"1": 0.5}, "append_latents": "x.safetensors"}
    if mode == "reverse":
        more |= {"keyframes": {"0": "k.png"}, "end_image": "e.png"}
    return {**to_json(modes.MODES[mode](image="a.png")), **more}


def request_seeds(folder: Path) -> list[Path]:
    return [*_written(folder, {f"{mode}.json": _whole_request(mode) for mode in modes.MODES}), *_cases(".json")]


def document_seeds(folder: Path) -> list[Path]:
    info = metadata.png_info(request("reverse", "a.png", section_prompts={0: "it runs"}), section=0)
    Image.new("RGB", (32, 32), "red").save(folder / "own.png", pnginfo=info)
    return [*request_seeds(folder), folder / "own.png", film(folder), *_cases(".png", ".mp4")]


def film(folder: Path) -> Path:
    """Write a film with its request in the metadata, as the program does, and return its path."""
    path = folder / "own.mp4"
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata.mp4_tags(request("forward", "a.png")))
        stream = container.add_stream("libx264", rate=30, width=64, height=64, pix_fmt="yuv420p")
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(numpy.full((64, 64, 3), 60 * number, numpy.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture_seeds(folder: Path) -> list[Path]:
    y, x = numpy.mgrid[0:24, 0:40]
    colour = numpy.stack([x * 6, y * 9, x + y], -1).astype(numpy.uint8)
    rgb = Image.fromarray(colour)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    grey = Image.fromarray(colour[..., 0])
    made: dict[str, tuple[Image.Image, dict]] = {
        "a.png": (rgb, {}),
        "palette.png": (rgb.quantize(16), {"transparency": 3}),
        "grey16.png": (Image.fromarray(colour[..., 0].astype(numpy.uint16) * 250), {}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "a.jpg": (rgb, {"exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "a.webp": (rgb, {"exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), {"lossless": True}),
        "a.gif": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "a.bmp": (rgb, {}),
        "a.tif": (rgb, {"compression": "tiff_lzw"}),
        "float.tif": (grey.convert("F"), {}),
        "zip.tif": (rgb, {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (rgb, {"compression": "jpeg"}),
        "fax.tif": (rgb.convert("1"), {"compression": "group4"}),
        "a.avif": (rgb, {}),
    }
    for name, (picture, settings) in made.items():
        picture.save(folder / name, **settings)
    scans = (folder / "progressive.jpg").read_bytes()
    first = scans.index(b"\xff\xda")
    others = {
        "a.psd": _psd(),
        "rle.bmp": _bmp(),
        "exif.jpg": exif_of_many_tags((folder / "a.jpg").read_bytes()),
        "scans.jpg": scans[:-2] + scans[first:-2] * 20 + b"\xff\xd9",
        "comments.gif": _comments((folder / "a.gif").read_bytes()),
    }
    for name, data in others.items():
        (folder / name).write_bytes(data)
    return [*(folder / name for name in (*made, *others)), *_cases(".png", ".jpg", ".heic", ".emf")]


def exif_of_many_tags(jpeg: bytes) -> bytes:
    """Return a JPEG whose EXIF directory has 300 texts that all lie at one place."""
    entries = b"".join(struct.pack("<HHII", 0x9C00 + number, 2, 2000, 8 + 2 + 300 * 12 + 4) for number in range(300))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 300) + entries + bytes(4) + b"a" * 2000
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


def _comments(gif: bytes) -> bytes:
    """Return a GIF with comments of many parts before its pictures."""
    at = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    return gif[:at] + (b"!\xfe" + (b"\x03abc") * 50 + b"\0") * 50 + gif[at:]


def _bmp() -> bytes:
    """Return a run-length encoded BMP of 8 bits that uses runs, ends of lines, a move and plain bytes."""
    runs = b"\x10\1\0\0" + b"\0\2\4\1" + b"\0\4\1\2\3\4" + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024) + head + bytes(range(256)) * 4 + runs


def _psd() -> bytes:
    """Return the smallest Photoshop file: 16 x 16 pixels of three channels, not compressed."""
    head = b"8BPS\0\1" + bytes(6) + b"\0\3" + b"\0\0\0\x10" * 2 + b"\0\x08\0\3"
    return head + bytes(12) + b"\0\0" + bytes(range(256)) * 3


def text_seeds(folder: Path) -> list[Path]:
    info = PngInfo()
    info.add_text(
        "parameters", "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"
    )
    Image.new("RGB", (16, 16)).save(folder / "a1111.png", pnginfo=info)
    graph = {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "positive": ["6", 0]}}, "6": {"inputs": {"text": "a cat"}}}
    info = PngInfo()
    info.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (16, 16)).save(folder / "comfy.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 20, Seed: 5".encode("utf-16-be")
    Image.new("RGB", (16, 16)).save(folder / "a.jpg", exif=exif)
    info = PngInfo()
    for number in range(20):
        info.add_text(f"parameters {number}", "a" * 100_000, zip=True)
    Image.new("RGB", (16, 16)).save(folder / "packed.png", pnginfo=info)
    (folder / "tags.jpg").write_bytes(exif_of_many_tags((folder / "a.jpg").read_bytes()))
    made = [folder / name for name in ("a1111.png", "comfy.png", "packed.png", "a.jpg", "tags.jpg")]
    return [*made, *_tables(folder), *document_seeds(folder)]


def latent_seeds(folder: Path) -> list[Path]:
    latent_file(
        folder / "a.safetensors", eichi=json.dumps(_whole_request("reverse")), eichi_parts='[{"file": "a", "latents": 3}]'
    )
    return [folder / "a.safetensors", *[file for file in _cases(".safetensors") if "lora" not in file.name]]


def write_lora(path: Path) -> Path:
    """Write a LoRA of rank 1 for two layers, in PEFT's names, and return its path."""
    tensors: dict[str, numpy.ndarray] = {}
    for layer in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_q"):
        tensors[f"transformer.{layer}.lora_A.weight"] = numpy.full((1, 3072), 0.1, numpy.float16)
        tensors[f"transformer.{layer}.lora_B.weight"] = numpy.full((3072, 1), 0.1, numpy.float16)
    save_file(tensors, path, {"modelspec.trigger_phrase": "ink", "ss_network_alpha": "4"})
    return path


def lora_seeds(folder: Path) -> list[Path]:
    return [write_lora(folder / "a.safetensors"), *[file for file in _cases(".safetensors") if "lora" in file.name]]


def peft_seeds(folder: Path) -> list[Path]:
    own = {"r": 4, "lora_alpha": 16, "use_rslora": True, "alpha_pattern": {"to_q": 2.0}, "rank_pattern": {"^a.*b$": 3}}
    return [*_written(folder, {"own.json": own}), *_cases(".json")]


def sections_seeds(folder: Path) -> list[Path]:
    # Members that are far larger than what they are packed into.
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_BZIP2) as written:
        written.writestr("sections.yaml", "section_info: []\n")
        for number in range(10):
            written.writestr(f"{number:03d}.png", bytes(2**18))
    # Archives that become large when they are unpacked have tests of their own.
    return [folder / "packed.zip"] + [
        file for file in _cases(".zip") if not file.name.endswith(("_6_GB.zip", "_MB_each.zip", "_hangs_import.zip"))
    ]


def settings_seeds(folder: Path) -> list[Path]:
    own = {"eichi": {"reverse": {"steps": 12}, "program": {**CHOICES, "reserve_gb": 2}}, "log_settings": {"log_enabled": True}}
    return [*_written(folder, {"own.json": own}), COMPAT / "app_settings.json"]


def preset_seeds(folder: Path) -> list[Path]:
    entry = {"name": "mine", "timestamp": "2026"}
    own = {
        "loras.json": {"loras": [{**entry, "value": [{"file": "a.safetensors", "strength": 0.5}]}]},
        "favorites.json": {"favorites": [{**entry, "value": _whole_request("single")}]},
    }
    return [
        *_written(folder, own),
        *(COMPAT / name for name in ("prompt_presets.json", "lora_presets.json", "favorite_settings.json")),
    ]


ASKED = request("reverse", "")


def timing_seeds(folder: Path) -> list[Path]:
    return _written(folder, {"own.json": {kind_of(ASKED, 128, 128): {"start": 1.0, "step": 0.5, "share": 0.5, "section": 2.0}}})


def description_seeds(folder: Path) -> list[Path]:
    preview = {"rows": [[0.1, 0.2, 0.3]] * 16, "bias": [0, 0, 0]}
    own = {"name": "small", "sizes": [128, 160], "size": 128, "steps": 15, "checkpoints": ["framepack"], "preview": preview}
    return _written(folder, {"own.json": {**own, "examples": [{"picture": "a.png", "prompt": "a cat"}]}})


def film_seeds(folder: Path) -> list[Path]:
    return [film(folder), *_tables(folder), *_cases(".mp4")]


def _tables(folder: Path) -> list[Path]:
    """Write MP4 files with tables that few films have: one size for all samples, time offsets, edit lists, fragments."""
    parts = boxes.box(b"edts", boxes.table(b"elst", 1, 3, 0, 0x10000))
    piece = boxes.box(b"traf", boxes.full(b"tfhd", bytes(4)), boxes.full(b"trun", bytes(4)))
    made = {
        "size.mp4": boxes.film(3, boxes.table(b"ctts", 1, 3, 1), edits=parts),
        "sound.mp4": boxes.film(3000, handler=b"soun", kind=b"raw "),
        "pieces.mp4": boxes.film(3) + boxes.box(b"moof", boxes.full(b"mfhd", bytes(4)), piece),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in made]


def film_text_seeds(folder: Path) -> list[Path]:
    """Write Matroska films with texts before and behind the pictures, and a live recording of unknown length."""
    said = elements.tags(elements.text(b"COMMENT", b"hello"), elements.text(b"TITLE", "花火".encode("cp932")))
    shown = elements.tracks(elements.track(1, elements.number("23E383", 41_666_666)))
    made = {
        "before.mkv": elements.matroska(said, shown, elements.CLUSTER),
        "behind.mkv": elements.matroska(shown, elements.CLUSTER, elements.CLUSTER, said),
        "live.webm": elements.matroska(shown, elements.element("1F43B675")[:4] + b"\x01" + b"\xff" * 7, said),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return [*(folder / name for name in made), *film_seeds(folder)]
