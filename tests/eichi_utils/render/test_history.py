"""Test history and stitching: both directions mirror each other, and stitching in pieces loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusers_helper.vae.frames import frames_of
from diffusers_helper.vae.latents import on_host, rounded
from eichi_utils.render.history import History, OverlapBlend, joined
from eichi_utils.requests.plan import Ref


def numbered(count: int, first: int = 1) -> Tensor:
    """Return latents whose value is their number, (1, 16, count, 2, 2)."""
    return torch.arange(first, first + count, dtype=torch.float32).view(1, 1, -1, 1, 1).expand(1, 16, -1, 2, 2).clone()


def values(latents: Tensor) -> list[float]:
    return latents[0, 0, :, 0, 0].tolist()


def test_forward_is_reverse_in_a_mirror() -> None:
    """Every edge of one history is the other's with time turned round."""
    reverse, forward = History("front", 2, 2), History("back", 2, 2)
    for number in range(4):
        latents = numbered(5, first=1 + 5 * number)
        shown = number != 0
        reverse.grow(latents, shown=shown)
        forward.grow(latents.flip(2), shown=shown)
        for count, skip in ((1, 0), (2, 1), (16, 3), (5, 0), (3, 2)):
            assert values(reverse.edge(count, skip)) == values(forward.edge(count, skip))[::-1]
        assert reverse.shown == forward.shown
        assert values(reverse.film) == values(forward.film)[::-1]
    assert reverse.shown == 15


def test_context_is_empty_before_the_film_begins_and_slides_with_it() -> None:
    """The context is 19 zeros at first; then 1x, 2x and 4x are the latents next to the growing edge, in the order of time."""
    history = History("front", 2, 2)
    refs = [Ref("history", range(1)), Ref("history", range(2), skip=1), Ref("history", range(16), skip=3)]
    assert [history.read(ref, {}, {}).abs().max().item() for ref in refs] == [0.0, 0.0, 0.0]
    history.grow(numbered(9))
    one, two, four = (values(history.read(ref, {}, {})) for ref in refs)
    assert (one, two, four) == ([1.0], [2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0, 9.0] + [0.0] * 10)
    forward = History("back", 2, 2)
    forward.grow(numbered(9))
    one, two, four = (values(forward.read(ref, {}, {})) for ref in refs)
    assert (one, two, four) == ([9.0], [7.0, 8.0], [0.0] * 10 + [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_an_opening_is_seen_but_not_shown() -> None:
    """The final frame stands beside the first section and slides into the 4x context later."""
    history = History("front", 2, 2)
    history.grow(numbered(1, first=99), shown=False)
    assert history.shown == 0
    assert values(history.edge(1)) == [99.0]
    history.grow(numbered(9))
    assert values(history.film) == list(range(1, 10))
    assert values(history.edge(16, 3))[6] == 99.0


def test_reading_pictures_with_scale_and_mask() -> None:
    """A reference names a picture, zeros or history; scale and mask are factors on it."""
    history = History("front", 2, 2)
    pictures = {"start": numbered(1, first=8)}
    masks = {"half": torch.tensor([[1.0, 0.0], [0.5, 1.0]]).view(1, 1, 1, 2, 2)}
    assert values(history.read(Ref("start", range(1)), pictures, masks)) == [8.0]
    assert values(history.read(Ref("start", range(1), scale=0.25), pictures, masks)) == [2.0]
    masked = history.read(Ref("start", range(1), scale=0.5, mask="half"), pictures, masks)
    assert masked[0, 7, 0].tolist() == [[4.0, 0.0], [2.0, 4.0]]
    zeros = history.read(Ref("zeros", range(16)), pictures, masks)
    assert zeros.shape == (1, 16, 16, 2, 2)
    assert not zeros.any()
    # Reading changes nothing.
    assert values(pictures["start"]) == [8.0]


def test_joining_on_either_side() -> None:
    """New latents are joined in front if the film grows at the front, and otherwise behind."""
    assert values(joined(numbered(1, 5), numbered(2), "front")) == [5.0, 1.0, 2.0]
    assert values(joined(numbered(1, 5), numbered(2), "back")) == [1.0, 2.0, 5.0]


def stretches(side: str, latents: int, sections: int) -> list[Tensor]:
    """Return decoded stretches as the driver makes them: each but the first overlaps the film by a section."""
    torch.manual_seed(sections)
    lengths = []
    for number in range(sections):
        own = latents if number == 0 else 2 * latents
        # Reverse adds the start picture's latent to its last section, forward has it in its first.
        lengths.append(own + (number == (sections - 1 if side == "front" else 0)))
    return [torch.rand(1, 3, frames_of(length), 2, 2) for length in lengths]


def crossfade(first: Tensor, second: Tensor, overlap: int) -> Tensor:
    """Blend two whole clips in float32, as the reference does."""
    weights = torch.linspace(1, 0, overlap).view(1, 1, -1, 1, 1)
    faded = weights * first[:, :, -overlap:] + (1 - weights) * second[:, :, :overlap]
    return torch.cat([first[:, :, :-overlap], faded, second[:, :, overlap:]], dim=2)


def stitched(stitch: OverlapBlend, pixels: Tensor, length: int) -> Tensor:
    """Stitch a stretch that comes in pieces of `length` frames, and return the finished frames."""
    stitch.begin(pixels.shape[2])
    for piece in pixels.split(length, dim=2):
        stitch.add(piece)
    return stitch.end()[0]


@pytest.mark.parametrize("length", [1, 12, 100])
@pytest.mark.parametrize("sections", [1, 2, 3, 4])
@pytest.mark.parametrize("latents", [9, 5])
@pytest.mark.parametrize("side", ["front", "back"])
def test_stitching_equals_fading_whole_films(side: str, latents: int, sections: int, length: int) -> None:
    """The reference blends each stretch into the whole film; here final frames are never touched again. After every
    section the film is the same, frame by frame, in whatever pieces the stretch comes."""
    overlap = frames_of(latents)
    stitch, final, slow = OverlapBlend(side, latents, on_host), [], None
    for pixels in stretches(side, latents, sections):
        if slow is None:
            slow = pixels
        else:
            slow = crossfade(pixels, slow, overlap) if side == "front" else crossfade(slow, pixels, overlap)
        piece = stitched(stitch, pixels, length)
        final = [piece, *final] if side == "front" else [*final, piece]
        assert stitch.open.shape[2] == overlap
        parts = [stitch.open, *final] if side == "front" else [*final, stitch.open]
        assert torch.equal(torch.cat(parts, dim=2), slow)
    assert slow.shape[2] == 4 * (latents * sections + 1) - 3


@pytest.mark.parametrize("latents", [9, 5])
def test_stitched_films_are_mirror_images(latents: int) -> None:
    """The blend is symmetric: stitching backwards in time gives the same film backwards."""
    films = {}
    forward = stretches("back", latents, 3)
    for side in ("back", "front"):
        stitch, film = OverlapBlend(side, latents, on_host), []
        for pixels in forward:
            piece = stitched(stitch, pixels if side == "back" else pixels.flip(2), pixels.shape[2])
            film = [*film, piece] if side == "back" else [piece, *film]
        film = [*film, stitch.open] if side == "back" else [stitch.open, *film]
        films[side] = torch.cat(film, dim=2)
    torch.testing.assert_close(films["front"].flip(2), films["back"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["front", "back"])
def test_final_frames_are_levels_and_the_same_as_rounding_the_whole_film(side: str) -> None:
    """Final frames are held as rounded levels, equal to rounding the whole film; only frames to be blended stay unrounded."""
    exact, stitch = OverlapBlend(side, 5, on_host), OverlapBlend(side, 5)
    for pixels in stretches(side, 5, 3):
        half = (2.2 * pixels - 1.1).half()
        wanted = stitched(exact, half, 12)
        final = stitched(stitch, half, 12)
        assert final.dtype == torch.uint8 and torch.equal(final, rounded(wanted))
        assert stitch.open.dtype == torch.float16 and torch.equal(stitch.open.float(), exact.open.float())
        assert stitch.open.untyped_storage().nbytes() == stitch.open.numel() * 2
