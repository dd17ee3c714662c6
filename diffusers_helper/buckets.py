"""List the picture sizes the model was made for, and fit a picture to one of them: scale to cover, then crop the middle."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from PIL import Image

Size = tuple[int, int]

# How many times longer or taller than wanted a picture may be before its ends are cut off ahead of scaling.
FAR = 16

# (height, width) of each family, from the flattest to the square; the taller sizes are the mirror images. Families from 384 on
# are those that users know, except that 960x1080 is 960x1088: every side must be a multiple of 16. 128 to 192 serve small
# models.
_WIDE: Mapping[int, tuple[Size, ...]] = MappingProxyType(
    {
        128: ((96, 176), (112, 144), (128, 128)),
        160: ((112, 224), (128, 192), (144, 176), (160, 160)),
        192: ((144, 256), (160, 224), (176, 208), (192, 192)),
        384: ((256, 576), (288, 512), (320, 448), (352, 416), (384, 384)),
        512: ((352, 704), (384, 640), (416, 608), (448, 576), (480, 544), (512, 512)),
        640: (
            (416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640), (640, 640),
        ),
        768: ((512, 1024), (576, 960), (640, 896), (704, 832), (768, 768)),
        960: ((640, 1280), (704, 1152), (768, 1024), (832, 960), (896, 896), (960, 960)),
        1080: ((720, 1440), (768, 1344), (832, 1248), (896, 1152), (960, 1088), (1024, 1024), (1056, 1056)),
        1280: (
            (832, 1920), (896, 1728), (960, 1664), (1024, 1536), (1088, 1408), (1152, 1344), (1216, 1280), (1280, 1280),
        ),
        1536: ((1024, 2048), (1152, 1920), (1280, 1792), (1408, 1664), (1536, 1536)),
        1920: ((1280, 2560), (1408, 2304), (1536, 2048), (1664, 1920), (1792, 1792), (1920, 1920)),
        2160: (
            (1440, 3232), (1568, 2944), (1696, 2720), (1824, 2528), (1952, 2368), (2080, 2240), (2144, 2144), (2144, 2160),
        ),
    }
)  # fmt: skip


def buckets(size: int) -> tuple[Size, ...]:
    """Return all sizes (height, width) of a family, the flattest first."""
    wide = _WIDE[size]
    return wide + tuple((w, h) for h, w in reversed(wide) if h != w)


def bucket(size: int, height: int, width: int) -> Size:
    """Return the size (height, width) of the family that is closest in proportions to a picture.

    The distance is |height * bucket width - width * bucket height|; of equally close sizes the later one in `buckets` is taken.
    """
    return min(reversed(buckets(size)), key=lambda hw: abs(height * hw[1] - width * hw[0]))


def cover_crop(picture: Image.Image, height: int, width: int, filter: int = Image.Resampling.LANCZOS) -> Image.Image:
    """Scale a picture until it covers height x width, then crop its middle to that size."""
    picture = _without_far_ends(picture, height, width)
    scale = max(width / picture.width, height / picture.height)
    scaled = resize(picture, round(picture.height * scale), round(picture.width * scale), filter)
    left, top = (scaled.width - width) / 2, (scaled.height - height) / 2
    return scaled.crop((left, top, left + width, top + height))


def _without_far_ends(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Cut off most of what `cover_crop` would crop anyway from the ends of a very long or tall picture.

    Scaled to cover, a picture of 6 million x 16 pixels would take gigabytes. Pictures of up to FAR times the wanted proportions
    stay as they are. What is left extends beyond the reach of any resampling filter.
    """
    if picture.width * height > FAR * picture.height * width:
        ends = (picture.width - FAR * picture.height * width // height // 2) // 2
        return picture.crop((ends, 0, picture.width - ends, picture.height))
    if picture.height * width > FAR * picture.width * height:
        ends = (picture.height - FAR * picture.width * height // width // 2) // 2
        return picture.crop((0, ends, picture.width, picture.height - ends))
    return picture


def resize(picture: Image.Image, height: int, width: int, filter: int) -> Image.Image:
    """Scale a picture to height x width, one axis after the other.

    Pillow rounds to 8 bits between the axes, and its releases differ in which axis comes first (up to 11 levels of difference).
    Here the first axis is the one that leaves the smaller picture in between, as in the reference vectors, whatever the
    release.
    """
    if picture.width * height < width * picture.height:
        return picture.resize((picture.width, height), filter).resize((width, height), filter)
    return picture.resize((width, picture.height), filter).resize((width, height), filter)
