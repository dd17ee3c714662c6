"""Test the table of picture sizes, and the fitting of a picture to one of them."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from diffusers_helper.buckets import bucket, buckets, cover_crop, resize

# As the existing program has them, "height x width", mirrors left out; 960x1080 corrected to 960x1088.
FAMILIES = {
    384: "256x576 288x512 320x448 352x416 384x384",
    512: "352x704 384x640 416x608 448x576 480x544 512x512",
    640: "416x960 448x864 480x832 512x768 544x704 576x672 608x640 640x640",
    768: "512x1024 576x960 640x896 704x832 768x768",
    960: "640x1280 704x1152 768x1024 832x960 896x896 960x960",
    1080: "720x1440 768x1344 832x1248 896x1152 960x1088 1024x1024 1056x1056",
    1280: "832x1920 896x1728 960x1664 1024x1536 1088x1408 1152x1344 1216x1280 1280x1280",
    1536: "1024x2048 1152x1920 1280x1792 1408x1664 1536x1536",
    1920: "1280x2560 1408x2304 1536x2048 1664x1920 1792x1792 1920x1920",
    2160: "1440x3232 1568x2944 1696x2720 1824x2528 1952x2368 2080x2240 2144x2144 2144x2160",
}
# For small models; not in the original.
SMALL = (128, 160, 192)


@pytest.mark.parametrize("size", FAMILIES)
def test_families_are_those_that_users_know(size):
    """A picture must come out in the size it always did."""
    wide = {tuple(map(int, pair.split("x"))) for pair in FAMILIES[size].split()}
    assert set(buckets(size)) == wide | {(w, h) for h, w in wide}
    assert len(set(buckets(size))) == len(buckets(size))


@pytest.mark.parametrize("size", [*SMALL, *FAMILIES])
def test_every_side_divides_into_patches(size):
    """960x1080 did not: 135 latents on a side, and a crash after all the models were loaded."""
    assert all(side % 16 == 0 for pair in buckets(size) for side in pair)


@pytest.mark.parametrize("size", [*SMALL, *FAMILIES])
def test_every_size_has_its_mirror_and_the_flattest_is_first(size):
    """Every size has its mirror image, and the flattest is first: the order decides between equally near sizes."""
    uneven = [(h, w) for h, w in buckets(size) if h != w]
    assert uneven == [(w, h) for h, w in reversed(uneven)]
    assert uneven == sorted(uneven, key=lambda hw: hw[0] / hw[1])


def test_an_unknown_family_is_an_error():
    with pytest.raises(KeyError):
        buckets(641)


@pytest.mark.parametrize("size", [128, 384, 640, 960, 1080, 2160])
def test_the_nearest_shape_is_taken_and_of_equals_the_later(size):
    """The nearest shape is taken, and the later of equals, as in the original's loop with `<=`; ties decide the size of
    square pictures."""
    family, ties = buckets(size), 0
    for height in range(1, 41):
        for width in range(1, 41):
            best, least = None, float("inf")
            for h, w in family:
                distance = abs(height * w - width * h)
                ties += best is not None and distance == least
                if distance <= least:
                    best, least = (h, w), distance
            assert bucket(size, height, width) == best
    assert ties > 0


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((1, 200), (416, 960)),
        ((200, 1), (960, 416)),
        ((1080, 1920), (480, 832)),
        ((600, 377), (768, 512)),
        ((5, 5), (640, 640)),
    ],
)
def test_nearest_of_the_640_family(picture, expected):
    assert bucket(640, *picture) == expected


SHAPES = [(1, 1), (1, 200), (200, 1), (3, 600), (600, 3), (97, 177), (95, 175), (96, 176), (193, 353), (191, 351), (1000, 7)]


@pytest.mark.parametrize("target", [(96, 176), (176, 96), (128, 128)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_has_the_asked_size_and_no_border(shape, target):
    """Rounding a scaled side one pixel short would let Pillow fill a black line at the edge. Extreme shapes too."""
    fitted = cover_crop(Image.new("RGB", shape[::-1], (200, 100, 50)), *target)
    assert fitted.size == target[::-1]
    assert numpy.array(fitted).reshape(-1, 3).tolist() == [[200, 100, 50]] * (target[0] * target[1])


@pytest.mark.parametrize("target", [(96, 176), (112, 144)], ids=str)
def test_no_size_of_a_picture_leaves_a_border(target):
    """No picture leaves a border, in all sizes around the target and twice it, where rounding is closest to the edge."""
    for factor in (1, 2):
        for dh in range(-3, 4):
            for dw in range(-3, 4):
                shape = factor * target[0] + dh, factor * target[1] + dw
                fitted = cover_crop(Image.new("L", shape[::-1], 255), *target)
                assert fitted.size == target[::-1] and fitted.getextrema() == (255, 255), shape


def test_the_middle_is_kept():
    """Red, green and blue thirds side by side to a square: green in the middle, as much of the others on both sides."""
    picture = Image.new("RGB", (300, 100), (0, 255, 0))
    picture.paste((255, 0, 0), (0, 0, 100, 100))
    picture.paste((0, 0, 255), (200, 0, 300, 100))
    fitted = numpy.array(cover_crop(picture, 128, 128))
    assert (fitted.reshape(-1, 3)[:, 1] > 250).mean() > 0.95
    wide = numpy.array(cover_crop(picture, 128, 256))
    assert abs(int((wide[..., 0] > 128).sum()) - int((wide[..., 2] > 128).sum())) <= 128


def test_a_picture_of_the_right_size_is_left_alone(photo):
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    assert numpy.array_equal(numpy.array(cover_crop(picture, picture.height, picture.width)), numpy.array(picture))


@pytest.mark.parametrize("size", [(40, 200), (300, 50), (377, 80)], ids=str)
def test_resizing_does_not_depend_on_pillows_order_of_axes(photo, size):
    """Pillow's releases scale another axis first, up to 11 levels apart: the same seed gave another film after an update.

    The result is near Pillow's own, and exactly that of the order in which less is left in between.
    """
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    height, width = size
    lanczos = Image.Resampling.LANCZOS
    ways = {
        width * picture.height: picture.resize((width, picture.height), lanczos).resize((width, height), lanczos),
        picture.width * height: picture.resize((picture.width, height), lanczos).resize((width, height), lanczos),
    }
    ours = numpy.array(resize(picture, height, width, lanczos))
    assert numpy.array_equal(ours, numpy.array(ways[min(ways)]))
    own = numpy.array(picture.resize((width, height), lanczos))
    assert numpy.abs(ours.astype(int) - own.astype(int)).max() <= 12


@pytest.mark.parametrize("shape", [(6_000_000, 16), (16, 6_000_000)])
def test_a_strip_of_millions_of_pixels(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 100 megapixels that is 16 of them high, scaled until it covers, would be hundreds of gigabytes."""
    real, sizes = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: sizes.append(size) or real(self, size, *rest), raising=True
    )
    strip = Image.new("L", shape, 90)
    strip.paste(200, (shape[0] // 2 - 4, shape[1] // 2 - 4, shape[0] // 2 + 4, shape[1] // 2 + 4))
    result = cover_crop(strip, 416, 960)
    assert (result.size, result.getpixel((480, 208))) == ((960, 416), 200)
    assert max(width * height for width, height in sizes) < 2**25


def test_long_pictures_are_fitted_as_others() -> None:
    """Cutting the far ends of a strip first changes nothing of its middle."""
    numbers = numpy.random.default_rng(0).integers(0, 256, (40, 4000), dtype=numpy.uint8)
    strip = Image.fromarray(numbers)
    scaled = resize(strip, 80, 8000, Image.Resampling.LANCZOS)
    assert cover_crop(strip, 80, 100).tobytes() == scaled.crop((3950, 0, 4050, 80)).tobytes()
