"""Test reading films of other programs: colours, the last frame, and files that are no films."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy
import pytest

from eichi_utils.exchange import video
from eichi_utils.exchange.video import FilmStream, FilmWriter, encode_h264, join_segments
from eichi_utils.files.film_boxes import FilmLimitError
from eichi_utils.files.safe_reading import UnsafeError
from tests.eichi_utils.exchange.test_video import moving


def test_the_last_frame_of_a_film(tmp_path: Path) -> None:
    """The last frame is found if the last key frame lies far ahead of it, and in a film joined of segments."""
    parts = [moving(40), moving(300, 40)]
    for number, part in enumerate(parts):
        encode_h264(tmp_path / f"{number}.mp4", part, 10)
    join_segments([tmp_path / "0.mp4", tmp_path / "1.mp4"], tmp_path / "film.mp4", {})
    for name in ("0", "1", "film"):
        film = tmp_path / f"{name}.mp4"
        with av.open(str(film)) as container:
            *_, last = container.decode(video=0)
        assert (numpy.asarray(video.last_frame(film)) == video.from_frame(last)).all()


# Red, green, blue and skin, which BT.601 taken for BT.709 moves by up to 20 levels; black, grey and white.
PLAIN = numpy.array(
    [(220, 30, 30), (30, 180, 30), (30, 60, 200), (224, 172, 140), (0, 0, 0), (128, 128, 128), (255, 255, 255)], numpy.uint8
)


def plain(colour: numpy.ndarray, count: int = 3) -> numpy.ndarray:
    return numpy.broadcast_to(colour, (count, 48, 64, 3)).copy()


def bt709(colour: numpy.ndarray) -> list[float]:
    """Return Y, Cb and Cr of a colour, by ITU-R BT.709-6, items 3.2 to 3.4."""
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
    """Frames that are too large are refused, even if the container says that they are small: 8192 x 8192 pixels in 200 KB
    took 2.7 GB."""
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
    """A film with a single key frame is refused where hours of frames would have to be decoded for the last one."""
    encode_h264(tmp_path / "a.mp4", plain(PLAIN[0], 30), 10)
    monkeypatch.setattr(video, "MOST_DECODED", 30 * 48 * 64)
    assert video.last_frame(tmp_path / "a.mp4").size == (64, 48)
    monkeypatch.setattr(video, "MOST_DECODED", 29 * 48 * 64)
    with pytest.raises(UnsafeError, match="too many"):
        video.last_frame(tmp_path / "a.mp4")
