"""Test the arithmetic of the evaluation."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy
import pytest
import torch

from miniature import evaluate
from miniature.clips import render, scenes
from miniature.evaluate import SIDE, Figure, along, decibels, document, joins
from miniature.export import fitted_preview
from miniature.pictures import bank
from miniature.random_checkpoint import build


def test_figures_know_their_bounds():
    assert Figure("a", 2.0, 1.0).holds and not Figure("a", 2.0, 1.0, at_most=True).holds
    assert Figure("a", 2.0).holds is None


def test_figures_as_json():
    """numpy's numbers once ended an evaluation of an hour in a TypeError."""
    figures = [Figure("a", numpy.float64(2.0), 1.0), Figure("b", 3.0)]
    assert json.loads(document(figures))[0] == {"name": "a", "value": 2.0, "bound": 1.0, "at_most": False, "holds": True}


def test_a_miss_is_an_exit_code(monkeypatch, capsys, tmp_path):
    """An evaluation that missed its bounds ended as if all was well."""
    for value, code in ((1.0, 1), (3.0, 0)):
        parts = {"one": lambda value=value: [Figure("a", value, 2.0), Figure("b", 0.0)]}
        monkeypatch.setattr(evaluate, "Evaluation", lambda *settings, parts=parts: SimpleNamespace(parts=parts))
        monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path), "--json"])
        assert evaluate.main() == code
        assert [figure["holds"] for figure in json.loads(capsys.readouterr().out)] == [code == 0, None]


def test_joins_see_a_jump():
    film = (torch.arange(73.0) * 0.01).view(1, 1, 73, 1, 1).expand(1, 3, 73, 4, 4).clone()
    assert joins(film, 2)[0] == pytest.approx(1.0, abs=1e-3)
    film[:, :, 37:] += 0.05
    assert joins(film, 2)[0] == pytest.approx(6.0, abs=1e-2)


def test_decibels():
    assert abs(decibels(torch.zeros(1), torch.full((1,), 0.2)) - 20.0) < 1e-4


def test_tracking_tells_directions_apart():
    pictures = bank(torch.arange(8), 64)
    one = scenes(torch.tensor([3]), 8, {"move": 1.0}, simple=1.0).turned_to(1)
    frames = torch.arange(37)
    right, left = (render(one.turned_to(d), pictures, frames, SIDE, SIDE) for d in (1, 0))
    assert along(right, right, one) > 0.99
    assert along(left, right, one) < 0.2
    assert along(right[:, :, :1].expand_as(right), right, one) < 0.2
    # A film that is grey or noise after its start was once tracked halfway.
    for rest in (torch.zeros_like(right), torch.rand_like(right) * 2 - 1, right[:, :, :, :1, :1].expand_as(right)):
        assert along(torch.cat([right[:, :, :1], rest[:, :, 1:]], dim=2), right, one) < 0.2


def test_a_preview_can_be_fitted(tmp_path):
    from diffusers import AutoencoderKLHunyuanVideo

    vae = AutoencoderKLHunyuanVideo.from_pretrained(build(tmp_path) / "vae").eval()
    rows, bias, explained = fitted_preview(vae, bank(torch.arange(6), 32).float() / 127.5 - 1)
    assert rows.shape == (16, 3) and bias.shape == (3,) and 0 < explained <= 1
