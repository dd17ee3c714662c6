"""Test that the memory of a picture is known before it is decoded, and that large ones wait for each other."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from eichi_utils.files import picture_files, picture_memory, pictures
from eichi_utils.files.picture_files import opened
from eichi_utils.files.picture_memory import MOST_MEMORY, Room, needed_bytes, room
from eichi_utils.files.pictures import open_picture
from eichi_utils.problems import UserError
from tests.eichi_utils.files.test_picture_bombs import jpeg, segment
from tests.eichi_utils.helpers import found
from tests.waiting import LONG, until


def scans(width: int, height: int, components: int, count: int, frame: int = 0xC2) -> bytes:
    """Return a JPEG's head and empty scans: the first of all components, the others of one."""
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    data = (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + b"\1" * 64)
        + segment(frame, struct.pack(">BHHB", 8, height, width, components) + parts)
    )
    first = bytes([components]) + b"".join(bytes([number + 1, 0]) for number in range(components)) + bytes(3)
    return data + segment(0xDA, first) + segment(0xDA, b"\1\1\0\1\x3f\x10") * (count - 1) + b"\xff\xd9"


@pytest.mark.parametrize("frame", [0xC2, 0xCA], ids=["huffman", "arithmetic"])
@pytest.mark.parametrize(
    ("size", "components", "count", "key"),
    [
        ((10000, 10000), 3, 99, "picture_damaged"),
        ((10000, 10000), 4, 4, "picture_too_large"),
        ((5000, 5000), 3, 99, "picture_damaged"),
        ((65500, 65500), 3, 8, "picture_too_large"),
    ],
)
def test_scans_of_many_pixels(size: tuple[int, int], components: int, count: int, key: str, frame: int, tmp_path: Path) -> None:
    """15 kB took 17 seconds and a gigabyte: each scan is a way through all pixels, and all their numbers are kept meanwhile."""
    (tmp_path / "a.jpg").write_bytes(scans(*size, components, count, frame))
    began = time.process_time()
    with pytest.raises(UserError) as raised:
        open_picture(tmp_path / "a.jpg")
    assert found(raised.value.problems) == {("image", key)}
    assert time.process_time() - began < 0.5


def test_scans_that_photos_have() -> None:
    """Ten scans of 50 megapixels and more are opened; what is kept between them counts, by how each component is sampled."""
    for size in ((6000, 4000), (8600, 5800), (10000, 9900)):
        with opened(io.BytesIO(scans(*size, 3, 12))) as picture:
            pixels = size[0] * size[1]
            assert needed_bytes(picture) == 10 * pixels < MOST_MEMORY
    plain, fine, coarse = jpeg(), jpeg(progressive=True, subsampling=0), jpeg(progressive=True, subsampling=2)
    for data, each in ((plain, 8), (fine, 10), (coarse, 8)):
        with opened(io.BytesIO(data)) as picture:
            assert needed_bytes(picture) == each * 96 * 64
    # Not progressive, but in three scans.
    with opened(
        io.BytesIO(scans(640, 640, 3, 1).replace(b"\xff\xc2", b"\xff\xc0").replace(b"\xff\xda\0\x0c\3", b"\xff\xda\0\x0c\1"))
    ) as picture:
        assert needed_bytes(picture) == 10 * 640 * 640


def tiff(side: int, samples: int, bits: int, rows: int, packed: bool = True, tiled: bool = False) -> bytes:
    """Return a TIFF of black pixels in one strip that claims to have more rows, or in one tile."""
    data = zlib.compress(bytes(side * samples * bits // 8 * 16)) if packed else bytes(16)
    tags = [(256, 4, side), (257, 4, side), (259, 3, 8 if packed else 1), (262, 3, 2 if samples > 1 else 1), (277, 3, samples)]
    tags += [(322, 4, side), (323, 4, rows), (324, 4, 8), (325, 4, len(data))] if tiled else []
    tags += [] if tiled else [(273, 4, 8), (278, 4, rows), (279, 4, len(data))]
    tags += [(338, 3, 2)] if samples == 4 else []
    at = 8 + len(data)
    after = at + 2 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags]
    entries.append(struct.pack("<HHII", 258, 3, samples, after if samples > 2 else bits))
    entries.sort(key=lambda entry: entry[:2][::-1])
    head = struct.pack("<2sHI", b"II", 42, at) + data + struct.pack("<H", len(entries)) + b"".join(entries)
    return head + bytes(4) + struct.pack(f"<{samples}H", *[bits] * samples)


def test_strips_and_tiles(tmp_path: Path) -> None:
    """Memory for strips and tiles is counted: one strip of 100 megapixels in 16 bits takes 800 MB beside the picture's 400."""
    for tiled in (False, True):
        (tmp_path / "a.tif").write_bytes(tiff(10000, 4, 16, 10000, tiled=tiled))
        with pytest.raises(UserError) as raised:
            open_picture(tmp_path / "a.tif")
        assert found(raised.value.problems) == {("image", "picture_too_large")}
        assert raised.value.problems[0].values["limit"] == 83
    # With three colours, in strips of some rows, or not compressed, pictures of this size are read.
    for data, most in (
        (tiff(10000, 3, 16, 10000), 1001 * 10**6),
        (tiff(10000, 4, 16, 100), 800 * 10**6),
        (tiff(10000, 3, 8, 10000, packed=False), 800 * 10**6),
    ):
        with opened(io.BytesIO(data)) as picture:
            assert most * 0.99 < needed_bytes(picture) <= most


def test_nothing_is_said_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warned of a bomb when a TIFF of 90 megapixels was loaded, in English, with a line of its source."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_picture(tmp_path / "a.tif")
    assert not said


def test_small_ones_side_by_side_and_large_ones_in_turn() -> None:
    """Who came first goes first, also where somebody who came later would find room."""
    shared, order = Room(100), []
    go = {name: threading.Event() for name in "abcd"}

    def work(name: str, need: int) -> None:
        with shared.taken(need):
            order.append(name)
            go[name].wait(LONG)

    def have_come(entered: int, waiting: int) -> bool:
        return (len(order), len(shared._waiting)) == (entered, waiting)

    threads = {}
    for name, need, entered, waiting in (("a", 40, 1, 0), ("b", 40, 2, 0), ("c", 10**9, 2, 1), ("d", 10, 2, 2)):
        threads[name] = threading.Thread(target=work, args=(name, need))
        threads[name].start()
        until(partial(have_come, entered, waiting))
    assert order == ["a", "b"]
    for name in "abcd":
        go[name].set()
        threads[name].join(LONG)
    assert order == ["a", "b", "c", "d"]


def test_a_thread_that_has_room_waits_for_none() -> None:
    """A thread that has room for one picture never waits for another, which could be for ever: one inside it, or after an
    error."""
    shared = Room(100)
    for _ in range(3):
        with pytest.raises(KeyError), shared.taken(100), shared.taken(100):
            raise KeyError
    with shared.taken(100):
        pass


def test_pictures_that_are_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight requests for one file of 465 kB took 6.4 GB: now those wait that have no room, whoever asks for them."""
    assert room() is room()
    monkeypatch.setattr(pictures, "room", lambda: small)
    small = Room(2 * 8 * 256 * 256)
    inside, go = [], threading.Event()

    def read(picture: Image.Image) -> Image.Image:
        inside.append(picture.size)
        assert go.wait(LONG)
        return picture.copy()

    monkeypatch.setattr(pictures, "as_rgb", read)
    Image.new("RGB", (256, 256)).save(tmp_path / "a.bmp")
    threads = [threading.Thread(target=open_picture, args=(tmp_path / "a.bmp",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(small._waiting) == 6)
    until(lambda: len(inside) == 2)
    go.set()
    for thread in threads:
        thread.join(LONG)
    assert len(inside) == 8


def test_a_large_file_waits_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 150 MB were read whole before anybody knew how large the picture is, as many as were asked for."""
    taken = []

    class Watched(Room):
        def taken(self, need: int):
            taken.append(need)
            return super().taken(need)

    monkeypatch.setattr(picture_files, "room", lambda: Watched(10))
    monkeypatch.setattr(picture_files, "LARGE_FILE", 1000)
    for data in (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", jpeg()):
        for length in (900, 1100):
            with pytest.raises((SyntaxError, OSError)), opened(io.BytesIO(data[:100] + bytes(length - len(data[:100])))):
                pass
    assert taken == [MOST_MEMORY]


@pytest.mark.process
def test_memory_goes_back(tmp_path: Path) -> None:
    """After a large picture was read, its memory stayed with the program for as long as it ran."""
    if sys.platform != "linux":
        pytest.skip("the system's own business elsewhere")
    Image.new("RGB", (3000, 3000), "red").save(tmp_path / "a.jpg", progressive=True)
    code = (
        "import sys, threading; from eichi_utils.files.pictures import picture_problem\n"
        "size = lambda: int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) // 1024\n"
        "picture_problem('', sys.argv[1]); before = size()\n"
        "for path in sys.argv[2:]:\n"
        "    threads = [threading.Thread(target=picture_problem, args=('', path + 'x' * n + '.jpg')) for n in range(3)]\n"
        "    [thread.start() for thread in threads]; [thread.join() for thread in threads]; print(size() - before)"
    )
    names = [str(tmp_path / "a.jpg")]
    for first in "bc":
        for number in range(3):
            (tmp_path / f"{first}{'x' * number}.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
        names.append(str(tmp_path / first))
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert max(map(int, result.stdout.split())) < 24
    assert picture_memory.LARGE < 8 * 3000 * 3000
