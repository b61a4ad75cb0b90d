"""The exact path: closed forms, and schedulers against each other."""

import pytest
import torch

from mnemoscope.core.level import final_level, levels_of
from mnemoscope.models.base import SCHEDULERS, make_scheduler
from mnemoscope.models.oracle import SCHEDULE
from mnemoscope.sampling.exact import exact_path

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
BETAS = sorted(name for name in SCHEDULERS if not name.startswith("flow"))
FLOWS = sorted(set(SCHEDULERS) - set(BETAS))
DETERMINISTIC = [name for name in BETAS if name not in ("ddpm", "euler-ancestral")]


def test_exact_path_of_ddim_in_closed_form():
    scheduler = make_scheduler("ddim", 50, SCHEDULE)
    path, levels, final = exact_path(scheduler), levels_of(scheduler), final_level(scheduler)
    alpha = torch.cat([levels.alpha, final.alpha[None]])
    sigma = torch.cat([levels.sigma, final.sigma[None]])
    ratio = sigma / sigma[0]
    assert torch.allclose(path.wT, ratio, rtol=0, atol=1e-12)
    assert torch.allclose(path.w0, alpha - alpha[0] * ratio, rtol=0, atol=1e-12)
    # The paper's anchors, summed over the 50 destinations (paper.md, section 10).
    assert float((path.w0 - alpha)[1:].sum()) == pytest.approx(-2.743, abs=5e-4)
    assert -float((path.wT - sigma)[1:].sum()) == pytest.approx(-0.104, abs=5e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_schedulers_agree_with_ddim_on_the_exact_predictor(name, prediction):
    # A known clean image makes every deterministic solver exact: its level determines the state.
    if name == "pndm" and prediction != "epsilon":
        pytest.skip("PNDM averages outputs of several levels: exact only where eps is constant")
    scheduler = make_scheduler(name, 20, {**SCHEDULE, "prediction_type": prediction})
    path = exact_path(scheduler)
    alpha, sigma = path.level
    ratio = sigma / sigma[0]
    # Euler and Heun compute in float32 whatever they are given, at sigma up to 14.6.
    assert torch.allclose(path.wT, ratio, rtol=0, atol=5e-6)
    assert torch.allclose(path.w0, alpha - alpha[0] * ratio, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["ddpm", "euler-ancestral"])
def test_stochastic_schedulers_forget_the_initial_noise_faster(name):
    path = exact_path(make_scheduler(name, 50, SCHEDULE))
    ratio = path.level.sigma / path.level.sigma[0]
    assert (path.wT[1:-1] < ratio[1:-1]).all()
    assert float(path.w0[-1]) == pytest.approx(1, abs=1e-5)
    # Independent route for DDPM: its mean multiplies the noise by the posterior's coefficient.
    if name == "ddpm":
        alpha, sigma = path.level
        kept = (alpha[:-1] / alpha[1:]) * (sigma[1:] / sigma[:-1]) ** 2
        assert torch.allclose(path.wT[1:], kept.cumprod(0), atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flows_path_is_a_straight_line(name):
    path = exact_path(make_scheduler(name, 20, FLOW))
    alpha, sigma = path.level
    assert float(sigma[0]) == 1
    # In the unit form the line (1 - s)·x + s·x_T is divided by its length, as the level is.
    assert torch.allclose(path.w0, alpha, rtol=0, atol=1e-6)
    assert torch.allclose(path.wT, sigma, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "dpmsolver++"])
def test_a_path_that_begins_at_pure_noise_is_known(name):
    zero = {**SCHEDULE, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    path = exact_path(make_scheduler(name, 10, {**zero, "rescale_betas_zero_snr": True}))
    assert torch.isfinite(path.w0).all()
    assert torch.isfinite(path.wT).all()
    assert float(path.w0[0]) == pytest.approx(0, abs=1e-6)
    if name == "ddim":
        assert float(path.level.alpha[0]) == 0
        assert torch.allclose(path.w0, path.level.alpha, rtol=0, atol=1e-12)
        assert torch.allclose(path.wT, path.level.sigma, rtol=0, atol=1e-12)
