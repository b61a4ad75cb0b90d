"""Filmstrips: which calls, which branches, and that a frame is the estimate decoded."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnemoscope import filmstrip
from mnemoscope.errors import InputError
from mnemoscope.models import load_model
from mnemoscope.plan import make_library, make_plan
from mnemoscope.prompts import Prompt
from mnemoscope.study import Study
from mnemoscope.unit import run_unit


@given(count=st.integers(0, 400), calls=st.integers(1, 1000))
def test_calls_are_spread_from_first_to_last(count, calls):
    chosen = filmstrip.spread(count, calls)
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


def test_frames_stand_where_the_layout_says():
    frames = torch.zeros(3, 4, 3, 16, 16)
    for branch in range(3):
        for call in range(4):
            frames[branch, call, 0] = branch / 4
            frames[branch, call, 1] = call / 4
    data, side = filmstrip.encode(frames)
    grid = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / 255
    for branch in range(3):
        for call in range(4):
            centre = grid[branch * side + side // 2, call * side + side // 2]
            # WebP is lossy; a level of four is told apart at a tenth.
            np.testing.assert_allclose(centre[:2], [branch / 4, call / 4], atol=0.1)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_unit_keeps_the_estimates_it_was_asked_for(guidance):
    model = load_model("oracle:memorizer")
    prompt = Prompt("p", "target 0")
    library = make_library([prompt], model.image_size)
    plan = make_plan(
        model, [prompt], library, seeds=2, guidance=(guidance,), steps=6, scheduler="ddim",
        seed=0, shared_noise=False, probes=False, similarity=("l2",), sscd=None, batch=None,
        filmstrip=3,
    )  # fmt: skip
    parts = run_unit(model, plan, plan.units[0])
    rows = parts["filmstrips"].to_pylist()
    assert [row["calls"] for row in rows] == [[0, 2, 5]] * 2
    names = ["unconditional", "conditional", "guided"][: 2 + (guidance > 1)]
    assert all(row["branches"] == names for row in rows)
    # DDIM's last estimate is nearly where its path ends: the last frame is the sample.
    strip = Image.open(io.BytesIO(rows[0]["image"])).convert("RGB")
    side = rows[0]["side"]
    last = strip.crop((2 * side, (len(names) - 1) * side, 3 * side, len(names) * side))
    sample = Image.open(io.BytesIO(parts["samples"].to_pylist()[0]["image"])).convert("RGB")
    small = sample.resize((side, side), Image.Resampling.BICUBIC)
    # Noise-like pictures lose their colours to WebP first; their brightness stays.
    grey = [np.asarray(one.convert("L"), float).ravel() for one in (last, small)]
    assert np.corrcoef(*grey)[0, 1] > 0.9
    assert "filmstrips" not in run_unit(model, replace(plan, filmstrip=0), plan.units[0])


def test_a_negative_number_is_refused():
    with pytest.raises(InputError, match="filmstrip -1"):
        Study(filmstrip=-1)
