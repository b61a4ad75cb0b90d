"""Agreement across seeds: against numpy and scipy, and without losing digits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from mnemoscope.data.prompts import Prompt
from mnemoscope.evidence import Bank, gather
from mnemoscope.evidence.gather import sit
from mnemoscope.evidence.pieces.convergence import Convergence, across_seeds
from mnemoscope.models import load_model
from mnemoscope.sampling.recipe import Recipe


@settings(max_examples=20, deadline=None)
@given(seeds=st.integers(2, 6), d=st.integers(2, 9), salt=st.integers(0, 2**31))
def test_across_seeds_equals_numpy_and_scipy(seeds, d, salt):
    vectors = torch.randn(seeds, 3, d, generator=torch.Generator().manual_seed(salt))
    found = across_seeds(vectors)
    for call in range(3):
        v = vectors[:, call].double().numpy()
        spectrum = np.linalg.eigvalsh(np.cov(v, rowvar=False))
        expected = {
            "variance": v.var(axis=0, ddof=1).mean(),
            "distance": pdist(v).mean() / np.sqrt(d),
            "cosine": 1 - pdist(v, "cosine").mean(),
            "rank": spectrum.sum() ** 2 / (spectrum**2).sum(),
        }
        for name, value in expected.items():
            assert found[name][call].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_nearly_equal_seeds_keep_their_digits():
    """A common part a million times the spread must not eat the spread."""
    spread = torch.randn(4, 1, 50)
    spread -= spread.mean(dim=0)
    shift = 2.0**20
    steps = (spread * 2**10).round() / 2**3
    near = across_seeds(steps + shift)
    far = across_seeds(steps)
    for name in ("variance", "distance", "rank"):
        torch.testing.assert_close(near[name], far[name], rtol=1e-9, atol=0)


def test_prompts_have_rows_of_their_own_and_lone_seeds_have_none():
    model = load_model("oracle:memorizer")
    prompts = [Prompt("a", "target 0"), Prompt("b", "never seen")]
    bank = Bank(model, Recipe(scheduler="ddim", steps=4), 3)
    sitting = sit(bank, prompts, range(2), [Convergence()])
    level, rows = gather(sitting, [Convergence()])[Convergence()]
    assert [(row.prompt, row.seeds) for row in rows] == [(0, 3), (1, 3)]
    assert len(level.alpha) == 4
    for row in rows:
        x = sitting.tape.x[3 * row.prompt : 3 * row.prompt + 3]
        wanted = x.double().var(dim=0).mean(dim=1)
        torch.testing.assert_close(row.values["x_variance"], wanted, rtol=1e-6, atol=1e-12)
        # Of three seeds one is odd, and one has no variance.
        assert "x_variance_odd" not in row.values
    # All seeds of a memorized prompt agree on the picture.
    assert float(rows[0].values["x0_g_cosine"][0]) > float(rows[1].values["x0_g_cosine"][0])
    alone = Bank(model, Recipe(scheduler="ddim", steps=4), 1)
    found = gather(sit(alone, prompts, range(2), [Convergence()]), [Convergence()])
    assert found[Convergence()][1] == ()


def test_odd_seeds_have_a_variance_of_their_own():
    model = load_model("oracle:memorizer")
    bank = Bank(model, Recipe(scheduler="ddim", steps=4), 5)
    sitting = sit(bank, [Prompt("a", "never seen")], range(2), [Convergence()])
    (row,) = gather(sitting, [Convergence()])[Convergence()][1]
    for name, vector in (("x", sitting.tape.x), ("x0_g", sitting.tape.x0("g"))):
        wanted = vector[[1, 3]].double().var(dim=0).mean(dim=1)
        torch.testing.assert_close(row.values[f"{name}_variance_odd"], wanted)
        assert not torch.allclose(wanted, row.values[f"{name}_variance"])
