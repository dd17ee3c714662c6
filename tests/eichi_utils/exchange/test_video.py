"""Films, pictures and previews as files; and that a file is whole or not there."""

from __future__ import annotations

import errno
import io
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.exchange import video
from eichi_utils.exchange.video import PREVIEW_MS, FilmStream, FilmWriter, animated_webp, encode_h264, join_segments, write_png
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.paths import Outputs, folder_problem, new_job_id, written_atomically
from eichi_utils.files.safe_reading import UnsafeError
from eichi_utils.jobs.queue import problems_of
from tests.eichi_utils.helpers import decoded, found, names_in


def moving(count: int, first: int = 0) -> numpy.ndarray:
    """Frames that all differ, (count, 48, 64, 3)."""
    y, x = numpy.mgrid[0:48, 0:64]
    frames = [numpy.stack([x * 4 + n * 3, y * 5 + n, (x + y) * 2 - n * 2], axis=-1) % 256 for n in range(first, first + count)]
    return numpy.stack(frames).astype(numpy.uint8) if frames else numpy.zeros((0, 48, 64, 3), numpy.uint8)


def boxes(path: Path) -> Iterator[str]:
    """Names of the top-level boxes of an MP4 file, in order."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8].decode("latin-1")
        yield name
        at += size if size > 1 else int.from_bytes(data[at + 8 : at + 16], "big")


# Lengths that become final section after section, and the open end, in both directions and both windows.
GROWTH = [("back", [4, 36, 36], 33), ("back", [4, 20, 20], 17), ("front", [0, 36, 40], 33), ("front", [0, 20, 24], 17)]


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize(("grows", "lengths", "open_length"), GROWTH)
def test_a_joined_film_is_its_segments(grows: str, lengths: list[int], open_length: int, still: bool, tmp_path: Path) -> None:
    """No frame is lost, doubled, moved or encoded twice where packets of segments meet, whichever side grows."""

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
    """H.264, yuv420p, 30 frames at even times from 0, and the index before the pictures, so that it plays while it loads."""
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
    """The same through the real writers: the film of the section before survives a failure of the next."""
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
    """One frame for each latent, without loss, at the film's own pace, for ever."""
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


def test_the_last_frame_of_a_film(tmp_path: Path) -> None:
    """Also where the last frame that needs none before it lies far ahead of it, and of a film joined of segments."""
    parts = [moving(40), moving(300, 40)]
    for number, part in enumerate(parts):
        encode_h264(tmp_path / f"{number}.mp4", part, 10)
    join_segments([tmp_path / "0.mp4", tmp_path / "1.mp4"], tmp_path / "film.mp4", {})
    for name in ("0", "1", "film"):
        film = tmp_path / f"{name}.mp4"
        with av.open(str(film)) as container:
            *_, last = container.decode(video=0)
        assert (numpy.asarray(video.last_frame(film)) == video.from_frame(last)).all()


def test_a_stream_of_frames_is_the_film_of_all_of_them(tmp_path: Path) -> None:
    """Encoded as they come, with tags and ready for the web; nothing is on the disk before the first, or after a failure."""
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


# Red, green, blue and skin, which BT.601 taken for BT.709 moves by up to 20 levels; black, grey and white.
PLAIN = numpy.array(
    [(220, 30, 30), (30, 180, 30), (30, 60, 200), (224, 172, 140), (0, 0, 0), (128, 128, 128), (255, 255, 255)], numpy.uint8
)


def plain(colour: numpy.ndarray, count: int = 3) -> numpy.ndarray:
    return numpy.broadcast_to(colour, (count, 48, 64, 3)).copy()


def bt709(colour: numpy.ndarray) -> list[float]:
    """Y, Cb and Cr of a colour, by ITU-R BT.709-6, items 3.2 to 3.4."""
    red, green, blue = colour / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]


def test_films_are_bt_709_and_say_so(tmp_path: Path) -> None:
    """Films were BT.601 without a tag, and players took those of 720 lines or more for BT.709: all colours were off."""
    frames = numpy.concatenate([plain(colour) for colour in PLAIN])
    with FilmWriter(tmp_path, "back", 10, {}) as writer, FilmStream(tmp_path, 10, {}) as stream:
        writer.add(frames)
        writer.write(tmp_path / "growing.mp4", frames)
        stream.add(frames)
        stream.write(tmp_path / "appended.mp4")
    encode_h264(tmp_path / "plain.mp4", frames, 10)
    for name in ("growing.mp4", "appended.mp4", "plain.mp4"):
        film = tmp_path / name
        # Primaries, transfer and matrix of BT.709 (ISO/IEC 23091-2), and no full range.
        assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in film.read_bytes(), name
        with av.open(str(film)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                context = container.streams.video[0].codec_context
                said = context.color_primaries, context.color_trc, context.colorspace, context.color_range
                assert said == (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range) == (1, 1, 1, 1)
                colour = PLAIN[number % len(frames) // 3]
                found = [numpy.frombuffer(plane, numpy.uint8)[plane.line_size * 8 + 9] for plane in frame.planes]
                assert numpy.abs(numpy.array(found) - bt709(colour)).max() <= 1.5, (name, number)


def test_frames_come_back_in_their_colours(tmp_path: Path) -> None:
    """Each film goes on from the last frame of the one before, so nothing may drift: it got a level or two darker each time."""
    for number, colour in enumerate(PLAIN):
        encode_h264(tmp_path / f"{number}.mp4", plain(colour), 10)
        read = numpy.asarray(video.last_frame(tmp_path / f"{number}.mp4")).astype(int)
        assert numpy.abs(read - colour).max() <= 2
    shades = numpy.random.default_rng(0).integers(0, 256, (400, 3), dtype=numpy.uint8)
    read = [video.from_frame(video.to_frame(plain(shade)[0])).astype(int)[20, 20] - shade for shade in shades]
    assert numpy.abs(numpy.mean(read, axis=0)).max() < 0.2 and numpy.abs(read).max() <= 2


def test_old_films_are_read_as_what_they_are() -> None:
    """Films of this program and its predecessor from before are BT.601, whatever their size, and say nothing."""
    old = Path(__file__).parents[2] / "cases" / "film_768x512_untagged_bt601.mp4"
    read = numpy.asarray(video.last_frame(old)).astype(int)
    assert read.shape == (768, 512, 3)
    found = [read[256, 96], read[256, 192], read[256, 300], read[256, 384]]
    assert numpy.abs(numpy.array(found) - [(220, 30, 30), (30, 180, 30), (224, 172, 140), (30, 60, 200)]).max() <= 4


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'film.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_a_film_opens_no_other_file(text: str, tmp_path: Path) -> None:
    """A playlist under a film's name made the program read other files, or wait for a network."""
    encode_h264(tmp_path / "film.mp4", plain(PLAIN[0]), 10)
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises((av.FFmpegError, OSError)):
        video.last_frame(tmp_path / "list.mp4")
    with pytest.raises((av.FFmpegError, OSError)):
        video.last_frame(tmp_path / "film%d.mp4")
    for name in (f"concat:{tmp_path / 'film.mp4'}", f"file:{tmp_path / 'film.mp4'}", "http://127.0.0.1:9/film.mp4"):
        with pytest.raises(OSError):
            video.last_frame(name)


def test_a_film_without_pictures(tmp_path: Path) -> None:
    """A sound file under a film's name ends as an error that the page can say."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 44100), numpy.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(OSError, match="no pictures"):
        video.last_frame(tmp_path / "a.mp4")


@pytest.mark.parametrize("codec", ["png", "tiff", "jpeg2000"])
def test_frames_of_single_pictures_are_not_decoded(codec: str, tmp_path: Path) -> None:
    """A picture of 750 KB as a film's frame took 736 MB, on opening alone; in six tracks, 4.4 GB."""
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(PLAIN[0])[0], format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(UnsafeError, match="kind"):
        video.last_frame(path)


def test_frames_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the container says that they are small: 8192 x 8192 pixels, 200 KB, took 2.7 GB."""
    path = tmp_path / "a.mp4"
    encode_h264(path, plain(PLAIN[0]), 10)
    monkeypatch.setattr(video, "MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(FilmLimitError, match="megapixels"):
        video.last_frame(path)
    said = struct.pack(">HH", 64, 48)
    assert path.read_bytes().count(said) == 1
    path.write_bytes(path.read_bytes().replace(said, struct.pack(">HH", 16, 16)))
    with pytest.raises((OSError, av.FFmpegError)):
        video.last_frame(path)


def test_a_last_frame_that_needs_a_whole_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one frame that needs none before it, hours of frames were decoded for the last."""
    encode_h264(tmp_path / "a.mp4", plain(PLAIN[0], 30), 10)
    monkeypatch.setattr(video, "MOST_DECODED", 30 * 48 * 64)
    assert video.last_frame(tmp_path / "a.mp4").size == (64, 48)
    monkeypatch.setattr(video, "MOST_DECODED", 29 * 48 * 64)
    with pytest.raises(UnsafeError, match="too many"):
        video.last_frame(tmp_path / "a.mp4")
