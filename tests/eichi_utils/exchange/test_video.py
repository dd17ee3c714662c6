"""Test writing films, pictures and previews; a file is whole or not there."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange import video
from eichi_utils.exchange.video import PREVIEW_MS, FilmStream, FilmWriter, animated_webp, encode_h264, join_segments, write_png
from eichi_utils.files.paths import Outputs, folder_problem, new_job_id, written_atomically
from eichi_utils.jobs.queue import problems_of
from tests.eichi_utils.helpers import decoded, found, names_in


def moving(count: int, first: int = 0) -> numpy.ndarray:
    """Return frames that all differ, (count, 48, 64, 3)."""
    y, x = numpy.mgrid[0:48, 0:64]
    frames = [numpy.stack([x * 4 + n * 3, y * 5 + n, (x + y) * 2 - n * 2], axis=-1) % 256 for n in range(first, first + count)]
    return numpy.stack(frames).astype(numpy.uint8) if frames else numpy.zeros((0, 48, 64, 3), numpy.uint8)


def boxes(path: Path) -> Iterator[str]:
    """Yield the names of the top-level boxes of an MP4 file, in order."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        yield name
        at += size if size > 1 else int.from_bytes(data[at + 8 : at + 16], "big")


# Lengths that become final section after section, and the open end, in both directions and both windows.
GROWTH = [("back", [4, 36, 36], 33), ("back", [4, 20, 20], 17), ("front", [0, 36, 40], 33), ("front", [0, 20, 24], 17)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grows", "lengths", "open_length", "still"),
    # Pictures that stay the same make other packets, in whatever lengths.
    [*((*growth, False) for growth in GROWTH), (*GROWTH[1], True), (*GROWTH[3], True)],
)
def test_a_joined_film_is_its_segments(grows: str, lengths: list[int], open_length: int, still: bool, tmp_path: Path) -> None:
    """A joined film is its segments: no frame is lost, doubled, moved or encoded twice where they meet, whichever side
    grows."""

    def piece(count: int, first: int) -> numpy.ndarray:
        return numpy.full((count, 48, 64, 3), first % 256, numpy.uint8) if still else moving(count, first)

    pieces = [piece(count, 40 * number) for number, count in enumerate(lengths)]
    opened = [piece(open_length, 200 + 20 * number) for number in range(len(lengths))]

    def alone(frames: numpy.ndarray) -> numpy.ndarray:
        if not len(frames):
            return frames
        encode_h264(tmp_path / "alone.mp4", frames, 18)
        return decoded(tmp_path / "alone.mp4")

    out = tmp_path / "out"
    out.mkdir()
    expected = []
    with FilmWriter(out, grows, 18, {"eichi": "x"}) as writer:
        for number, (frames, rest) in enumerate(zip(pieces, opened, strict=True)):
            writer.add(frames)
            writer.write(out / f"{number}.mp4", rest)
            expected = [alone(frames), *expected] if grows == "front" else [*expected, alone(frames)]
            parts = [alone(rest), *expected] if grows == "front" else [*expected, alone(rest)]
            film = decoded(out / f"{number}.mp4")
            assert len(film) == sum(lengths[: number + 1]) + open_length
            assert (film == numpy.concatenate(parts)).all()
    assert names_in(out) == {"0.mp4", "1.mp4", "2.mp4"}


def test_a_film_is_what_players_and_the_web_expect(tmp_path: Path) -> None:
    """A film is H.264, yuv420p, with 30 frames a second from 0 and the index in front, so that it plays while it loads."""
    with FilmWriter(tmp_path, "back", 16, {}) as writer:
        writer.add(moving(36))
        writer.add(moving(0))
        writer.add(moving(36, first=36))
        writer.write(tmp_path / "a.mp4", moving(33, first=72))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.average_rate, stream.frames) == (30, 105)
        assert (stream.width, stream.height) == (64, 48)
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    assert [time * 30 for time in times] == list(range(105))
    order = list(boxes(tmp_path / "a.mp4"))
    assert order.index("moov") < order.index("mdat")


def test_frames_look_like_what_went_in(tmp_path: Path) -> None:
    """Colours keep their channels and range: a swapped channel would be far off."""
    frames = numpy.zeros((5, 48, 64, 3), numpy.uint8)
    frames[:, :, :] = (200, 60, 30)
    encode_h264(tmp_path / "a.mp4", frames, 10)
    assert numpy.abs(decoded(tmp_path / "a.mp4").astype(int) - frames).max() <= 6


def test_compression_makes_smaller_files(tmp_path: Path) -> None:
    """CRF reaches the encoder, from lossless to the worst."""
    sizes = []
    for crf in (0, 16, 51):
        encode_h264(tmp_path / f"{crf}.mp4", moving(20), crf)
        sizes.append((tmp_path / f"{crf}.mp4").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize(
    "text",
    [
        "猫が走る、桜の下で。🐈‍⬛",
        "quotes \" ' ` and \\ = ; # [x]\nnew\tline\r\n",
        "ж" * 10_000,
        '{"json": "{nested}", "percent": "%s"}',
        " leading and trailing ",
    ],
)
def test_metadata_survives(text: str, tmp_path: Path) -> None:
    """The request inside a film is what reproduces it: every character must come back."""
    encode_h264(tmp_path / "s.mp4", moving(3), 30)
    join_segments([tmp_path / "s.mp4"], tmp_path / "a.mp4", {"eichi": text})
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["eichi"] == text


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    """A full disk or a crash in the middle leaves neither half a file nor a changed one."""
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), written_atomically(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("in the middle")
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == {"a.png"}
    with written_atomically(target) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert names_in(tmp_path) == {"a.png"}


def test_films_and_pictures_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real writers replace files atomically: the film of the section before survives a failure of the next."""
    writer = FilmWriter(tmp_path, "back", 30, {})
    with writer:
        writer.add(moving(4))
        writer.write(tmp_path / "a.mp4", moving(2, first=4))
        before = (tmp_path / "a.mp4").read_bytes()

        def fail(segments, path, tags):
            path.write_bytes(before[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(video, "join_segments", fail)
        with pytest.raises(OSError) as error:
            writer.write(tmp_path / "a.mp4", moving(2, first=4))
        assert found(problems_of(error.value)) == {("", "disk_full")}
    assert (tmp_path / "a.mp4").read_bytes() == before

    class Broken(Image.Image):
        def save(self, path, **settings):
            Path(path).write_bytes(b"half")
            raise ValueError("no")

    with pytest.raises(ValueError):
        write_png(tmp_path / "a.png", Broken(), PngInfo())
    assert names_in(tmp_path) == {"a.mp4"}


def test_a_writer_cleans_up_however_it_ends(tmp_path: Path) -> None:
    """Segments are hidden work files: none may stay after an exception."""
    with pytest.raises(RuntimeError), FilmWriter(tmp_path, "front", 30, {}) as writer:
        writer.add(moving(4))
        raise RuntimeError("stop")
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_encoder_s_own_error_on_a_full_disk_is_understood(tmp_path: Path) -> None:
    """FFmpeg reports a full disk in its own class: the user must still read "the disk is full"."""
    with pytest.raises(OSError) as error:
        encode_h264(Path("/dev/full"), moving(40), 0)
    assert found(problems_of(error.value)) == {("", "disk_full")}
    encode_h264(tmp_path / "s.mp4", moving(40), 0)
    with pytest.raises(OSError) as error:
        join_segments([tmp_path / "s.mp4"], Path("/dev/full"), {})
    assert found(problems_of(error.value)) == {("", "disk_full")}


@pytest.mark.parametrize("count", [1, 5, 9])
def test_previews_are_endless_animations(count: int) -> None:
    """A preview is a lossless animation that repeats for ever, with a frame for each latent, at the film's pace."""
    frames = numpy.random.default_rng(0).integers(0, 255, (count, 12, 16, 3), dtype=numpy.uint8)
    with Image.open(io.BytesIO(animated_webp(frames))) as preview:
        assert preview.format == "WEBP"
        assert getattr(preview, "n_frames", 1) == count
        if count > 1:
            assert preview.info["loop"] == 0
        for number in range(count):
            preview.seek(number)
            assert (numpy.asarray(preview.convert("RGB")) == frames[number]).all()
            if count > 1:
                assert preview.info["duration"] == PREVIEW_MS == 133


def test_names_and_folders(tmp_path: Path) -> None:
    """All files of a job begin with its id; the folder is made, and tried before any work."""
    assert len({new_job_id() for _ in range(30)}) > 20
    day, clock, thousandths, chance = new_job_id().split("_")
    assert (len(day), len(clock), len(thousandths)) == (6, 6, 3)
    assert 0 <= int(chance) < 10_000
    outputs = Outputs(tmp_path / "a" / "b", "job")
    outputs.prepare(0)
    assert names_in(tmp_path) == {"a", "a/b"}
    assert outputs.path("_9.mp4") == tmp_path / "a" / "b" / "job_9.mp4"
    (tmp_path / "file").write_text("x")
    for folder, needed, key in (
        (tmp_path / "file", 0, "folder_not_writable"),
        (tmp_path / "file" / "below", 0, "folder_not_writable"),
        (tmp_path / "a", 2**62, "disk_space"),
    ):
        assert found([folder_problem(folder, needed)]) == {("out", key)}


def test_the_same_frames_are_the_same_file(tmp_path: Path) -> None:
    """x264's AVX-512 code read beyond the frames of small films: repeating a request gave other pixels on such processors."""
    frames = moving(36, 0)
    films = []
    for number in range(4):
        encode_h264(tmp_path / f"{number}.mp4", frames, 18)
        films.append((tmp_path / f"{number}.mp4").read_bytes())
        # Memory that the encoder gets back is not empty.
        encode_h264(tmp_path / "other.mp4", moving(20, 90 + number), 18)
    assert len(set(films)) == 1


def test_a_stream_of_frames_is_the_film_of_all_of_them(tmp_path: Path) -> None:
    """Frames are encoded as they come, with tags and ready for the web; before the first and after a failure no file exists."""
    with FilmStream(tmp_path, 18, {"eichi": "{}"}) as stream:
        assert names_in(tmp_path) == set()
        for first, count in ((0, 13), (13, 12), (25, 3)):
            stream.add(moving(count, first))
        stream.write(tmp_path / "a.mp4")
    assert names_in(tmp_path) == {"a.mp4"}
    encode_h264(tmp_path / "b.mp4", moving(28), 18)
    assert numpy.array_equal(decoded(tmp_path / "a.mp4"), decoded(tmp_path / "b.mp4"))
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert film.metadata["eichi"] == "{}"
    order = list(boxes(tmp_path / "a.mp4"))
    assert order.index("moov") < order.index("mdat")
    with pytest.raises(RuntimeError, match="as if"), FilmStream(tmp_path, 18, {}) as stream:
        stream.add(moving(3))
        raise RuntimeError("as if broken")
    assert names_in(tmp_path) == {"a.mp4", "b.mp4"}


def test_a_film_needs_frames(tmp_path: Path) -> None:
    """A film without frames is refused clearly; it ended in an error about `None`."""
    with pytest.raises(ValueError, match="a film needs frames"), FilmStream(tmp_path / "out", 18, {}) as stream:
        stream.write(tmp_path / "out" / "a.mp4")
    assert names_in(tmp_path) == set()
