"""Test what a page shows of a result on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from eichi_utils.exchange import video
from eichi_utils.exchange.video import encode_h264
from eichi_utils.problems import UserError
from tests.eichi_utils.helpers import found
from webui.panels.result_panel import frame_of


def test_a_last_frame_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that was replaced or cut off since was told as a fault of the program, with FFmpeg's words."""
    path = tmp_path / "a.mp4"
    encode_h264(path, numpy.zeros((3, 32, 48, 3), numpy.uint8), 20)
    assert frame_of(path).size == (48, 32)
    whole = path.read_bytes()
    for data in (b"", whole[:-200], b"no film at all"):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            frame_of(path)
        assert found(error.value.problems) == {("", "film_without_frame")}
    path.write_bytes(whole)
    monkeypatch.setattr(video, "MOST_PIXELS", 1000)
    with pytest.raises(UserError) as error:
        frame_of(path)
    assert found(error.value.problems) == {("", "film_too_large")}
