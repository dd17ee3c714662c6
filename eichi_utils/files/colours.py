"""Convert pictures to sRGB by the colour information in their files, as browsers do.

An embedded profile takes precedence. A PNG without one may have an sRGB chunk, which needs no conversion, or else its gamma,
and with it its primaries; primaries without gamma are ignored. Everything else is sRGB already.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy
from PIL import Image, ImageCms

from eichi_utils.files.colour_profile import judged_profile

# Gamma that older programs write for sRGB (PNG 3rd edition, 11.3.2.5). If primaries are given as well, browsers take it as an
# exact exponent.
SRGB_GAMMA = 0.45455
# Chromaticities x and y of white, red, green and blue.
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# Display P3 in ITU-T H.273, and the transfer curves that are shown like sRGB's: BT.709, unknown, BT.601, sRGB, BT.2020.
P3_CODE, P3_PRIMARIES = 12, (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
SRGB_CURVES = (1, 2, 6, 13, 14, 15)
# White point of the profile connection space, and the Bradford matrix of cone responses, by which white points are adapted
# (ICC.1:2022, annex E).
D50 = numpy.array([0.9642, 1.0, 0.8249])
BRADFORD = numpy.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# Levels by which two computations of the same colour may differ.
NOTHING = 1
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class ProfileError(ValueError):
    """Give the reason, in English, why a picture's profile is not used."""


class Conversion:
    """Convert strips of one picture to RGB."""

    def __init__(self, picture: Image.Image):
        """Build the transforms for a picture. Raises ProfileError if its profile cannot be used; see `without_profile`."""
        self._transforms = _transforms(picture)

    @classmethod
    def without_profile(cls, picture: Image.Image) -> Conversion:
        """Return the conversion of a picture whose profile is not used."""
        conversion = cls.__new__(cls)
        conversion._transforms = {}
        return conversion

    def __call__(self, colours: Image.Image) -> Image.Image:
        """Return a strip as RGB. colours: of mode L, I;16, RGB, CMYK, LAB or one that Pillow can convert."""
        if colours.mode == "LAB":
            return _built(ImageCms.createProfile("LAB"), "LAB").apply(colours)
        if not self._transforms:
            return _to_8_bits(colours).convert("RGB")
        if colours.mode not in self._transforms:
            colours = _to_8_bits(colours).convert(next(mode for mode in ("RGB", "L", "CMYK") if mode in self._transforms))
        return self._transforms[colours.mode].apply(colours)


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Return a 16-bit picture with 8 bits: 65535 is white, and 257 v becomes v. Others are returned unchanged."""
    if picture.mode != "I;16":
        return picture
    return Image.fromarray(((numpy.asarray(picture).astype(numpy.uint32) + 128) // 257).astype(numpy.uint8))


def _transforms(picture: Image.Image) -> dict[str, ImageCms.ImageCmsTransform]:
    """Return the transforms by mode of the strips; none if the colours are sRGB already."""
    profile, space = _profile(picture)
    if profile is None:
        return {}
    grey = picture.mode in ("1", "L", "LA", "La") or picture.mode.startswith("I") or picture.mode == "F"
    cmyk = picture.mode == "CMYK"
    # A grey picture may carry an RGB profile, but a colour picture no grey one.
    if (space == "CMYK") != cmyk or (space == "GRAY" and not grey):
        raise ProfileError(f"it is a profile for {space}, and the picture is {picture.mode}")
    modes = {"GRAY": ("L", "I;16"), "RGB": ("RGB",), "CMYK": ("CMYK",)}[space]
    transforms = {mode: _built(profile, mode) for mode in modes}
    first = transforms[modes[0]]
    if space != "CMYK" and _changes_nothing(first, modes[0]):
        return {}
    return transforms


def _profile(picture: Image.Image) -> tuple[ImageCms.ImageCmsProfile | None, str]:
    """Return a picture's embedded or described profile, and the name of its colour space; (None, "") for sRGB."""
    info = picture.info
    if data := info.get("icc_profile"):
        try:
            judged = judged_profile(data)
            profile = ImageCms.ImageCmsProfile(io.BytesIO(judged))
            # The signature of the data's colour space (ICC.1:2022, 7.2.8).
            space = judged[16:20].decode("ascii", "replace").strip()
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            raise ProfileError(str(error)) from None
        if space not in SPACES:
            raise ProfileError(f"it is a profile for {space}")
        return profile, space
    described = _described(info)
    return (None, "") if described is None else (ImageCms.ImageCmsProfile(io.BytesIO(described)), "RGB")


def _described(info: dict[Any, Any]) -> bytes | None:
    """Return a profile made of a PNG's chunks or a HEIF's numbers; None if they mean sRGB."""
    if (info.get("nclx_profile") or {}).get("color_primaries") == P3_CODE:
        curve = info["nclx_profile"].get("transfer_characteristics")
        return _profile_of(P3_PRIMARIES, None) if curve in SRGB_CURVES else None
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    # Values outside of this range are mistakes, and would make the picture almost black or white.
    if "srgb" in info or not isinstance(gamma, float) or not 0.1 < gamma < 5:
        return None
    if primaries is None and abs(gamma - SRGB_GAMMA) < 0.002:
        return None
    try:
        return _profile_of(primaries or SRGB_PRIMARIES, 1 / gamma)
    except (ValueError, ArithmeticError, numpy.linalg.LinAlgError):
        # The primaries describe no colours.
        return None


def _profile_of(primaries: tuple[float, ...], gamma: float | None) -> bytes:
    """Return an ICC profile (ICC.1:2022) of primaries. gamma: exponent of the curve; None is sRGB's curve.

    Raises ValueError, ArithmeticError or LinAlgError if the primaries describe no colours.
    """
    if min(primaries[1::2]) <= 0:
        raise ValueError("these are no primaries")
    white, *corners = (numpy.array([x, y, 1 - x - y]) / y for x, y in zip(primaries[::2], primaries[1::2], strict=True))
    corners = numpy.stack(corners, axis=1)
    corners = corners * numpy.linalg.solve(corners, white)
    adapted = numpy.linalg.inv(BRADFORD) @ numpy.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD @ corners
    if not (numpy.isfinite(adapted).all() and numpy.abs(adapted).max() < 100):
        raise ValueError("these are no primaries")
    # Function type 0 is a power, type 3 a straight line followed by a power.
    function = (0, gamma) if gamma else (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b"para\0\0\0\0" + struct.pack(">HH", function[0], 0) + _fixed(function[1:])
    points = {b"wtpt": D50, b"rXYZ": adapted[:, 0], b"gXYZ": adapted[:, 1], b"bXYZ": adapted[:, 2]}
    tags = {name: b"XYZ \0\0\0\0" + _fixed(point) for name, point in points.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(data), len(content))
        data += content
    head = struct.pack(">II4s4s4s12x4s28x", at + len(data), 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head = head[:4] + bytes(4) + head[4:]
    return head + _fixed(D50) + bytes(128 - len(head) - 12) + table + data


def _fixed(numbers: Any) -> bytes:
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)


def _built(profile: Any, mode: str) -> ImageCms.ImageCmsTransform:
    try:
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise ProfileError(str(error)) from None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Say whether the transform keeps colours from all over the space: most profiles are sRGB's, under a hundred names."""
    if mode == "L":
        probe = Image.fromarray(numpy.arange(256, dtype=numpy.uint8)[None])
    else:
        levels = numpy.arange(0, 256, 15, dtype=numpy.uint8)
        cube = numpy.stack(numpy.meshgrid(levels, levels, levels), axis=-1)
        probe = Image.fromarray(cube.reshape(len(levels), -1, 3))
    after = numpy.asarray(transform.apply(probe)).astype(int)
    return bool(numpy.abs(after - numpy.asarray(probe.convert("RGB"))).max() <= NOTHING)
