"""Write and read MP4, PNG and animated previews. Every file is written beside its name and then renamed.

Films are BT.709 of limited range, and say so in the stream and in the container. Players assume BT.709 for untagged films of
720 lines or more, and BT.601, which this program once wrote, for smaller ones.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

import av
import numpy
from av.container import InputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusers_helper.vae.frames import FPS
from eichi_utils.files.film_boxes import FilmLimitError, check_boxes
from eichi_utils.files.paths import written_atomically
from eichi_utils.files.safe_reading import UnsafeError, open_regular
from eichi_utils.files.temporary import own_prefix

# Milliseconds of a preview's frame. 7.5 latents per second is the film's own pace (30 frames, 4 to a latent).
PREVIEW_MS = round(1000 * 4 / FPS)
# FFmpeg options for opening a film: read no other file, and decode nothing. By default it decodes a frame of each track.
NO_DECODER = MappingProxyType({"protocol_whitelist": "none", "codec_whitelist": "none"})
# FFmpeg's decoders that films may use. Those of still pictures take gigabytes for a frame of a few kilobytes.
DECODERS = ("h264", "hevc", "mpeg4", "vp9", "libdav1d", "av1")
# Largest number of pixels of a frame (4K; FFmpeg keeps up to 17 of them, 400 MB), and of all frames from the last keyframe to
# the end of a film: two seconds of a processor, or four times x264's longest keyframe distance (250 frames) of a megapixel
# each.
MOST_PIXELS, MOST_DECODED = 4096 * 2304, 2**30
# FFmpeg's numbers of colour matrices (ITU-T H.273) -> those of swscale, which converts. All others count as BT.601.
BT709 = 1
MATRICES = {
    BT709: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
# Rounds to the nearest level, with the same result on every processor.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT

# A file's path, or a file that is open for reading and writing.
Place = Path | IO[bytes]


def write_png(path: Path, picture: Image.Image, info: PngInfo) -> None:
    """Write a picture as PNG with its texts, whole or not at all. Raises OSError."""
    with written_atomically(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def animated_webp(frames: numpy.ndarray) -> bytes:
    """Return an endless WebP animation of the frames (frames, height, width, 3) uint8."""
    pictures = [Image.fromarray(frame) for frame in frames]
    stream = io.BytesIO()
    pictures[0].save(
        stream,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=PREVIEW_MS,
        loop=0,
        lossless=True,
        quality=0,
        method=0,
    )
    return stream.getvalue()


@contextmanager
def open_container(place: Place | str) -> Iterator[InputContainer]:
    """Open an MP4 or MOV for reading, if it is a regular file. Raises OSError, UnsafeError or av.FFmpegError.

    place: a path, or an open file, which is read from its beginning. FFmpeg gets an open file without a name in both cases, so
    it knows no folder, device or network to read more from. Bytes of the film's texts that are no UTF-8 become surrogates (PEP
    383), so that one text in another encoding does not hide the others.
    """
    with open_regular(place) if isinstance(place, (str, Path)) else nullcontext(place) as file:
        check_boxes(file)
        file.seek(0)
        with av.open(file, "r", format="mov", options=dict(NO_DECODER), metadata_errors="surrogateescape") as container:
            yield container


def last_frame(path: Path) -> Image.Image:
    """Return the last frame of a film. Raises OSError, UnsafeError or av.FFmpegError if there is none to be read."""
    with open_container(path) as container:
        if not container.streams.video:
            raise OSError(f"{path} has no pictures")
        stream = container.streams.video[0]
        _limit(stream)
        # Seeks to the last keyframe.
        container.seek(stream.duration or 0, stream=stream)
        last, left = None, MOST_DECODED
        for last in container.decode(stream):
            left -= last.width * last.height
            if left < 0:
                raise UnsafeError("its last frame needs too many before it")
        if last is None:
            raise OSError(f"{path} has no frames")
        return Image.fromarray(from_frame(last))


def _limit(stream: av.VideoStream) -> None:
    """Allow a film's frames to be decoded within limits. Raises UnsafeError; FilmLimitError for frames that are too large."""
    context = stream.codec_context
    if context is None or context.name not in DECODERS:
        raise UnsafeError("its frames are not of a kind that is read here")
    if context.width * context.height > MOST_PIXELS:
        raise FilmLimitError("megapixels", MOST_PIXELS // 1_000_000)
    # The frames may be larger than the container says.
    context.options = {"max_pixels": str(MOST_PIXELS)}


def to_frame(array: numpy.ndarray) -> av.VideoFrame:
    """Return a film's frame (yuv420p, BT.709, limited range) of an RGB array (height, width, 3) uint8."""
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=EXACT
    )
    frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return frame


def from_frame(frame: av.VideoFrame) -> numpy.ndarray:
    """Return a film's frame as RGB (height, width, 3) uint8, by the matrix and range that it is tagged with.

    Untagged frames are BT.601 of limited range, as this program and its predecessor wrote before films were tagged.
    """
    if frame.format.is_rgb:
        return frame.to_ndarray(format="rgb24")
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return frame.reformat(
        format="rgb24",
        src_colorspace=MATRICES.get(frame.colorspace, Colorspace.ITU601),
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
    ).to_ndarray()


class FilmWriter:
    """Write an H.264 film that grows at one side and encode each frame once.

    Frames that will not change become segments; a film is the segments' packets one after another, and the frames that may
    still change. So a film of n sections costs n encodings of a section, not n films, and no frame waits in memory for the end.

    Segments lie one after another in an unnamed file on the folder's disk, which is open all the time: it survives when the
    folder is deleted or moved, and nobody has to clear it up.
    """

    def __init__(self, folder: Path, grows: Literal["front", "back"], crf: int, tags: Mapping[str, str]):
        self._grows, self._crf, self._tags = grows, crf, tags
        self._file = tempfile.TemporaryFile(prefix=own_prefix(), dir=folder)  # noqa: SIM115 (`__exit__` closes it)
        # Offset and number of bytes of each segment, in the order of playing.
        self._segments: list[tuple[int, int]] = []
        self._end = 0

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing writes what a full disk refused before, and fails again.
        with suppress(OSError):
            self._file.close()

    def add(self, frames: numpy.ndarray) -> None:
        """Encode frames (frames, height, width, 3) uint8 that will not change any more, as a segment."""
        if len(frames):
            segment = self._encode(frames).getbuffer()
            self._file.seek(self._end)
            self._file.write(segment)
            self._file.flush()
            self._segments = self._in_order((self._end, len(segment)), self._segments)
            self._end += len(segment)

    def write(self, path: Path, open_frames: numpy.ndarray) -> None:
        """Write the film so far, with the frames at its growing edge that may still change."""
        segments: list[Any] = self._segments
        if len(open_frames):
            segments = self._in_order(self._encode(open_frames), segments)
        with written_atomically(path) as temporary:
            join_segments(map(self._read, segments), temporary, self._tags)

    def _in_order(self, segment: Any, others: list[Any]) -> list[Any]:
        return [segment, *others] if self._grows == "front" else [*others, segment]

    def _encode(self, frames: numpy.ndarray) -> io.BytesIO:
        segment = io.BytesIO()
        encode_h264(segment, frames, self._crf)
        return segment

    def _read(self, segment: io.BytesIO | tuple[int, int]) -> io.BytesIO:
        if isinstance(segment, io.BytesIO):
            return segment
        begin, size = segment
        self._file.seek(begin)
        return io.BytesIO(self._file.read(size))


class FilmStream:
    """Write an H.264 film whose frames come in the order of playing, and encode each as it comes."""

    def __init__(self, folder: Path, crf: int, tags: Mapping[str, str]):
        self._folder, self._crf, self._tags = folder, crf, tags
        self._files = ExitStack()
        # The encoder and its file, once there are frames.
        self._open: tuple[H264, IO[bytes]] | None = None

    def __enter__(self) -> FilmStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, frames: numpy.ndarray) -> None:
        """Encode frames (frames, height, width, 3) uint8 with even sides. The first call creates folder and file."""
        if self._open is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Open all the time, as in `FilmWriter`.
            file = tempfile.TemporaryFile(prefix=own_prefix(), dir=self._folder)  # noqa: SIM115 (`_files` closes it)
            self._files.enter_context(file)
            encoder = H264(file, frames.shape[1], frames.shape[2], self._crf)
            self._files.callback(encoder.container.close)
            self._open = encoder, file
        self._open[0].add(frames)

    def write(self, path: Path) -> None:
        """Write all frames as a film. It must be the last call. Raises ValueError if no frames were added."""
        if self._open is None:
            raise ValueError("a film needs frames")
        encoder, file = self._open
        encoder.finish()
        with written_atomically(path) as temporary:
            join_segments([file], temporary, self._tags)


class H264:
    """Encode frames into an MP4: H.264, yuv420p, BT.709 of limited range, 30 frames per second; both sides must be even."""

    def __init__(self, place: Place, height: int, width: int, crf: int):
        self.container = av.open(place, "w", format="mp4")
        stream = self.container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # The muxer writes these into the container too, as a box `colr` of the type `nclx`.
        context = stream.codec_context
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.colorspace, context.color_range = BT709, ColorRange.MPEG
        # Makes the same film on every processor. Without it, x264's AVX-512 code gave small pictures other bytes from call to
        # call.
        stream.options = {"crf": str(crf), "preset": "medium", "x264-params": "cpu-independent=1"}
        self._stream = stream

    def add(self, frames: numpy.ndarray) -> None:
        """Encode frames (frames, height, width, 3) uint8."""
        for array in frames:
            self.container.mux(self._stream.encode(to_frame(array)))

    def finish(self) -> None:
        """Write what the encoder still holds, and the end of the container."""
        self.container.mux(self._stream.encode())
        self.container.close()


def encode_h264(place: Place, frames: numpy.ndarray, crf: int) -> None:
    """Encode frames (frames, height, width, 3) uint8 with even sides as H.264, yuv420p, BT.709, 30 frames per second."""
    encoder = H264(place, frames.shape[1], frames.shape[2], crf)
    try:
        encoder.add(frames)
        encoder.finish()
    finally:
        encoder.container.close()


def join_segments(segments: Iterable[Place], path: Path, tags: Mapping[str, str]) -> None:
    """Write films of the same encoder and settings one after another, without encoding again.

    The result's header comes first, so that it plays while it loads. Raises UnsafeError, OSError or av.FFmpegError.
    """
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata.update(tags)
        target, offset = None, 0
        for segment in segments:
            with open_container(segment) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = container.add_stream_from_template(stream)
                if stream.time_base is None:
                    raise UnsafeError("its frames have no times")
                frame = int(Fraction(1, FPS) / stream.time_base)
                for packet in source.demux(stream):
                    # A demuxer ends with an empty packet.
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = target
                    container.mux(packet)
                offset += stream.frames * frame
