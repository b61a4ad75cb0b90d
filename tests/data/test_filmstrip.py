"""Filmstrips: which calls, which branches, and that a frame is the estimate decoded."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnemoscope.data import filmstrip
from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError
from mnemoscope.evidence import Bank, gather
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.filmstrip import Filmstrip
from mnemoscope.flows.study import Study
from mnemoscope.models import load_model
from mnemoscope.sampling.recipe import Recipe


@given(count=st.integers(0, 400), calls=st.integers(1, 1000))
def test_calls_are_spread_from_first_to_last(count, calls):
    chosen = filmstrip.evenly(count, calls)
    assert len(chosen) == len(set(chosen)) == min(count, calls, filmstrip.LONGEST)
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, calls - 1)
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1


def test_a_strip_keeps_its_size_whatever_it_shows():
    noise = torch.rand(3, 30, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    data, side = filmstrip.encode(noise)
    assert len(data) <= filmstrip.BYTES
    assert side < 64
    assert Image.open(io.BytesIO(data)).size == (30 * side, 3 * side)
    flat, side = filmstrip.encode(torch.full((2, 5, 3, 96, 96), 0.5))
    assert (side, len(flat) < 2000) == (64, True)


@pytest.mark.parametrize(("size", "tolerance"), [(16, 0.5 / 255), (64, 0.1)])
def test_frames_stand_where_the_layout_says(size, tolerance):
    frames = torch.zeros(3, 4, 3, size, size)
    for branch in range(3):
        for call in range(4):
            frames[branch, call, 0] = branch / 4
            frames[branch, call, 1] = call / 4
    data, side = filmstrip.encode(frames)
    assert side == size
    grid = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / 255
    for branch in range(3):
        for call in range(4):
            centre = grid[branch * side + side // 2, call * side + side // 2]
            # Small frames are exact to a level of 8 bits; in lossy ones four levels are told apart.
            np.testing.assert_allclose(centre, [branch / 4, call / 4, 0], atol=tolerance + 1e-9)


def test_small_frames_keep_the_colour_of_every_pixel():
    frames = torch.rand(3, 5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data, side = filmstrip.encode(frames)
    grid = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
    expected = frames.permute(0, 3, 1, 4, 2).reshape(3 * side, 5 * side, 3).numpy() * 255
    np.testing.assert_allclose(grid, expected, atol=0.5 + 1e-3)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_piece_holds_the_estimates_it_was_asked_for(guidance):
    model = load_model("oracle:memorizer")
    bank = Bank(model, Recipe(scheduler="ddim", steps=6, guidance=guidance), seeds=2)
    sitting = sit(bank, [Prompt("p", "target 0")], [0], [Filmstrip(3)])
    strips = gather(sitting, [Filmstrip(3)])[Filmstrip(3)]
    assert [strip.calls for strip in strips] == [(0, 2, 5)] * 2
    names = ("unconditional", "conditional", "guided")[: 2 + (guidance > 1)]
    assert all(strip.branches == names for strip in strips)
    # Back from the end of the path: DDIM's last update adds the final level's noise.
    final, eps = bank.final, sitting.tape.eps("g")[:, -1]
    estimate = (sitting.tape.x_0 - final.sigma * eps) / final.alpha
    expected = model.decode(estimate.reshape(2, *model.latent_shape)).permute(0, 2, 3, 1) * 255
    for strip, picture in zip(strips, expected, strict=True):
        image, side = Image.open(io.BytesIO(strip.image)).convert("RGB"), strip.side
        last = image.crop((2 * side, (len(names) - 1) * side, 3 * side, len(names) * side))
        # Exact to a level of 8 bits, in float32 arithmetic.
        np.testing.assert_allclose(np.asarray(last, float), picture, atol=0.51)


def test_a_negative_number_is_refused():
    with pytest.raises(InputError, match="filmstrip -1"):
        Study(filmstrip=-1)
