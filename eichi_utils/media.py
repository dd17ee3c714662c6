"""Files that people watch: MP4, PNG and animated previews. Everything is written beside its name and then renamed."""

from __future__ import annotations

import io
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eichi_utils.paths import written_atomically
from eichi_utils.plan import FPS
from eichi_utils.temporary import own_prefix

# Preview cells are small; the page scales them up. 7.5 latents a second is the film's own pace (30 frames, 4 to a latent).
PREVIEW_MS = round(1000 * 4 / FPS)


def write_png(path: Path, picture: Image.Image, info: PngInfo) -> None:
    with written_atomically(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def animated_webp(frames: numpy.ndarray) -> bytes:
    """(frames, height, width, 3) uint8 -> an endless animation."""
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


def last_frame(path: Path) -> Image.Image:
    """The last frame of a film. Raises OSError or av.FFmpegError if there is none to be read."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # To the last frame that needs none before it.
        container.seek(stream.duration or 0, stream=stream)
        frames = deque(container.decode(stream), maxlen=1)
        if not frames:
            raise OSError(f"{path} has no frames")
        return frames[0].to_image()


class FilmWriter:
    """An H.264 film that grows at one side, each frame encoded once.

    Final frames become segments; a film is the segments' packets one after another plus the frames that are still open. So a
    film of n sections costs n encodings of a section, not n films, and no frame waits in memory for the end.
    """

    def __init__(self, folder: Path, grows: Literal["front", "back"], crf: int, tags: Mapping[str, str]):
        self._grows, self._crf, self._tags = grows, crf, tags
        self._temporary = tempfile.TemporaryDirectory(prefix=own_prefix(), dir=folder)
        self._segments: list[Path] = []
        self._count = 0

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def add(self, frames: numpy.ndarray) -> None:
        """(frames, height, width, 3) uint8 that will not change any more."""
        if len(frames):
            self._segments = self._in_order(self._encode(frames))

    def write(self, path: Path, open_frames: numpy.ndarray) -> None:
        """The film so far, with the frames at its growing edge that may still change."""
        segments = self._in_order(self._encode(open_frames)) if len(open_frames) else self._segments
        with written_atomically(path) as temporary:
            join_segments(segments, temporary, self._tags)

    def _in_order(self, segment: Path) -> list[Path]:
        return [segment, *self._segments] if self._grows == "front" else [*self._segments, segment]

    def _encode(self, frames: numpy.ndarray) -> Path:
        path = Path(self._temporary.name) / f"{self._count:05d}.mp4"
        self._count += 1
        encode_h264(path, frames, self._crf)
        return path


class FilmStream:
    """An H.264 film whose frames come in the order of playing, each encoded as it comes."""

    def __init__(self, folder: Path, crf: int, tags: Mapping[str, str]):
        self._folder, self._crf, self._tags = folder, crf, tags
        self._files = ExitStack()
        self._encoder: H264 | None = None

    def __enter__(self) -> FilmStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, frames: numpy.ndarray) -> None:
        """(frames, height, width, 3) uint8, even sides. Nothing is on the disk before."""
        if self._encoder is None:
            folder = self._files.enter_context(tempfile.TemporaryDirectory(prefix=own_prefix(), dir=self._folder))
            self._path = Path(folder) / "film.mp4"
            self._encoder = H264(self._path, *frames.shape[1:3], self._crf)
            self._files.callback(self._encoder.container.close)
        self._encoder.add(frames)

    def write(self, path: Path) -> None:
        """All frames as a film; the last call."""
        self._encoder.finish()
        with written_atomically(path) as temporary:
            join_segments([self._path], temporary, self._tags)


class H264:
    """An open file of H.264, yuv420p, 30 frames a second; its sides are even."""

    def __init__(self, path: Path, height: int, width: int, crf: int):
        self.container = av.open(str(path), "w", format="mp4")
        stream = self.container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # The same film on every processor. Without it x264's AVX-512 code gave small pictures other bytes from call to call.
        stream.options = {"crf": str(crf), "preset": "medium", "x264-params": "cpu-independent=1"}
        self._stream = stream

    def add(self, frames: numpy.ndarray) -> None:
        """(frames, height, width, 3) uint8."""
        for array in frames:
            self.container.mux(self._stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))

    def finish(self) -> None:
        self.container.mux(self._stream.encode())
        self.container.close()


def encode_h264(path: Path, frames: numpy.ndarray, crf: int) -> None:
    """(frames, height, width, 3) uint8, even sides -> H.264, yuv420p, 30 frames a second."""
    encoder = H264(path, *frames.shape[1:3], crf)
    try:
        encoder.add(frames)
        encoder.finish()
    finally:
        encoder.container.close()


def join_segments(segments: list[Path], path: Path, tags: Mapping[str, str]) -> None:
    """Films of the same encoder and settings one after another, without encoding again; playable while it loads."""
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata.update(tags)
        target, offset = None, 0
        for segment in segments:
            with av.open(str(segment)) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = container.add_stream_from_template(stream)
                frame = int(Fraction(1, FPS) / stream.time_base)
                for packet in source.demux(stream):
                    # A demuxer ends with an empty packet.
                    if packet.dts is None:
                        continue
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = target
                    container.mux(packet)
                offset += stream.frames * frame
