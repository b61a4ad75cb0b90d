"""Predictions: the identity alpha·x0 + sigma·eps = x, and each kind against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.core.level import Level
from mnemoscope.core.predict import KINDS, Prediction, combine, shown, to_raw
from mnemoscope.errors import ModelError


@st.composite
def cases(draw):
    angle = draw(st.floats(0.05, 1.5))
    scale = draw(st.floats(0.1, 20.0))
    seed = draw(st.integers(0, 2**31))
    angle = torch.tensor(angle, dtype=torch.float64)
    level = Level(scale * angle.cos(), scale * angle.sin())
    generator = torch.Generator().manual_seed(seed)
    x0, eps, other = torch.randn(3, 2, 4, 3, generator=generator, dtype=torch.float64)
    return level, x0, eps, other


@pytest.mark.parametrize("kind", KINDS)
@given(case=cases())
def test_a_prediction_makes_the_state(kind, case):
    level, x0, eps, raw = case
    x = level.alpha * x0 + level.sigma * eps
    seen = Prediction.from_raw(kind, raw, x, level)
    # float64 at magnitudes up to 1e3 leaves 1e-13 a term.
    assert torch.allclose(level.alpha * seen.x0 + level.sigma * seen.eps, x, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "define"),
    [
        ("eps", lambda x0, eps, level: eps),
        ("x0", lambda x0, eps, level: x0),
        ("v", lambda x0, eps, level: (level.alpha * eps - level.sigma * x0) / level.scale),
        ("flow", lambda x0, eps, level: eps - x0),
    ],
)
@given(case=cases())
def test_the_true_output_gives_the_truth(kind, define, case):
    level, x0, eps, _ = case
    x = level.alpha * x0 + level.sigma * eps
    raw = define(x0, eps, level)
    seen = Prediction.from_raw(kind, raw, x, level)
    assert torch.allclose(seen.x0, x0, atol=1e-10)
    assert torch.allclose(seen.eps, eps, atol=1e-10)
    assert torch.allclose(to_raw(kind, seen, level), raw, atol=1e-10)


@given(case=cases(), g=st.floats(-2, 15))
def test_guidance_commutes_with_interpretation(case, g):
    level, u, c, x = case
    for kind in KINDS:
        first = Prediction.from_raw(kind, combine(u, c, g), x, level)
        apart = [Prediction.from_raw(kind, raw, x, level) for raw in (u, c)]
        # Clean estimates reach 1e3 where alpha is small, and g multiplies the rounding.
        assert torch.allclose(first.x0, combine(apart[0].x0, apart[1].x0, g), atol=1e-9)
        assert torch.allclose(first.eps, combine(apart[0].eps, apart[1].eps, g), atol=1e-9)


def test_eps_without_signal_is_refused():
    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    x = torch.randn(1, 2)
    with pytest.raises(ModelError, match="alpha is 0"):
        Prediction.from_raw("eps", x, x, Level(zero, one))
    # v has an answer there: raw = -x0.
    assert torch.equal(Prediction.from_raw("v", x, x, Level(zero, one)).x0, -x)


@pytest.mark.parametrize("kind", KINDS)
@given(case=cases())
def test_a_network_is_shown_states_in_its_own_form(kind, case):
    """Weights add up to one for a flow, their squares do for every other network."""
    level, x0, eps, _ = case
    unit = level.unit()
    total = level.alpha + level.sigma if kind == "flow" else level.scale
    own = (level.alpha * x0 + level.sigma * eps) / total
    assert torch.allclose(shown(kind, unit.alpha * x0 + unit.sigma * eps, unit), own, atol=1e-12)
