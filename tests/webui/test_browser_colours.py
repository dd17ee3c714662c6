"""Test whether a browser shows films and pictures in the colours that went in."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from eichi_utils.exchange.video import FilmStream, FilmWriter, last_frame
from tests.webui.browsing import PATIENCE
from tests.webui.conftest import CHROMIUM, FLAGS

pytestmark = pytest.mark.browser

PATCHES = (
    (220, 30, 30),
    (30, 180, 30),
    (30, 60, 200),
    (250, 150, 20),
    (224, 172, 140),
    (128, 128, 128),
    (12, 12, 12),
    (255, 255, 255),
)
# Across the middle of each of the eight patches, which lie one above the other. All frames are the same. A busy machine
# presents a frame some time after it was sought, or leaves it out; until there is one, what is drawn is transparent.
SHOWN = """async ([film, patience]) => {
  const video = document.createElement('video'), canvas = document.createElement('canvas');
  const context = canvas.getContext('2d', { willReadFrequently: true });
  video.muted = true;
  document.body.append(video);
  await new Promise((done, fail) => {
    video.onerror = () => fail(new Error(video.error.message));
    video.onloadeddata = done;
    video.src = film; });
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const colour = patch => [...context.getImageData(
    canvas.width / 2, Math.floor((patch + 0.5) * canvas.height / 8), 1, 1).data];
  for (let tries = 0, end = performance.now() + patience; !colour(0)[3] && performance.now() < end; tries++) {
    await new Promise(done => {
      video.onseeked = done;
      setTimeout(done, 1000);
      video.currentTime = tries % 2 ? 0.15 : 0.1; });
    await new Promise(done => setTimeout(done, 50));
    context.drawImage(video, 0, 0);
  }
  video.remove();
  return [0, 1, 2, 3, 4, 5, 6, 7].map(patch => colour(patch).slice(0, 3)); }"""


def patches(width: int, height: int, count: int) -> numpy.ndarray:
    rows = numpy.array(PATCHES, numpy.uint8)[numpy.arange(height) * len(PATCHES) // height]
    return numpy.broadcast_to(rows[None, :, None], (count, height, width, 3)).copy()


@pytest.fixture(scope="module")
def exact_browser(browser) -> Iterator:
    """Start a browser that shows films as on a machine with a graphics card.

    Without one, Chromium's short cut rounds BT.709's largest factor, 2.11, to 2: strong blue and yellow are 8 levels off.
    """
    drawn = "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist"
    chromium = browser.browser_type.launch(
        executable_path=str(CHROMIUM), args=[*FLAGS.replace("--disable-gpu ", "").split(), *drawn.split()]
    )
    yield chromium
    chromium.close()


@pytest.mark.parametrize(("width", "height"), [(416, 960), (640, 608), (768, 512)])
def test_a_film_s_colours(width: int, height: int, exact_browser, tmp_path: Path) -> None:
    """Films were BT.601 without saying so. Browsers take 720 lines or more for BT.709: red 220, 30, 30 was 236, 49, 31."""
    frames = patches(width, height, 4)
    with FilmWriter(tmp_path, "front", 16, {}) as writer, FilmStream(tmp_path, 16, {}) as stream:
        writer.add(frames)
        writer.write(tmp_path / "growing.mp4", frames)
        stream.add(frames)
        stream.write(tmp_path / "appended.mp4")
    page = exact_browser.new_page()
    for name in ("growing.mp4", "appended.mp4"):
        data = base64.b64encode((tmp_path / name).read_bytes()).decode()
        shown = numpy.array(page.evaluate(SHOWN, [f"data:video/mp4;base64,{data}", PATIENCE]))
        assert numpy.abs(shown - PATCHES).max() <= 3, (name, shown)
        read = numpy.asarray(last_frame(tmp_path / name)).astype(int)
        middles = read[[(2 * patch + 1) * height // 16 for patch in range(len(PATCHES))], width // 2]
        assert numpy.abs(middles - PATCHES).max() <= 3, (name, middles)
    page.close()
