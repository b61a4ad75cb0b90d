"""Levels: against each scheduler's own clean estimate, and the final level against an exact run."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from mnemoscope.core.level import Level, final_level, levels_of, log_snr
from mnemoscope.core.predict import Prediction
from mnemoscope.models.base import SCHEDULERS, make_scheduler
from mnemoscope.models.oracle import SCHEDULE
from mnemoscope.sampling.exact import exact_path
from mnemoscope.sampling.loop import kind_of, points_of

EVERY = sorted(SCHEDULERS)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def build(name, steps=50, prediction="epsilon"):
    config = FLOW if name.startswith("flow") else {**SCHEDULE, "prediction_type": prediction}
    return make_scheduler(name, steps, config)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler-ancestral", "heun"])
def test_levels_give_the_schedulers_own_clean_estimate(name, prediction):
    if (name, prediction) == ("euler-ancestral", "sample"):
        pytest.skip("diffusers has no such combination")
    scheduler = build(name, 6, prediction)
    levels = levels_of(scheduler)
    x = torch.randn(2, 4, 3, 3) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        raw = torch.randn_like(x)
        scheduler.scale_model_input(x, t)
        # Heun's second call of a step estimates from the step's first state: compare the first.
        second = name == "heun" and i % 2 == 1
        out = scheduler.step(raw, t, x)
        if not second:
            seen = Prediction.from_raw(kind_of(scheduler), raw, x, levels.at(i))
            error = (seen.x0 - out.pred_original_sample).abs().max()
            # 5e-7 of the largest term, which is sigma·raw/alpha.
            size = (x.abs() + raw.abs() * levels.sigma[i]).max() / levels.alpha[i]
            assert float(error / size) < 1e-6
        x = out.prev_sample


@pytest.mark.parametrize("name", [name for name in EVERY if name != "flow-heun"])
def test_asking_all_timesteps_at_once_equals_asking_each(name):
    # FlowMatchHeun's scale_noise ignores the timestep, so it cannot be asked for one.
    scheduler = build(name, 7)
    together = levels_of(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        alone = levels_of(scheduler, t[None])
        assert float(alone.alpha[0]) == float(together.alpha[i])
        assert float(alone.sigma[0]) == float(together.sigma[i])


@pytest.mark.parametrize("name", EVERY)
def test_asking_changes_nothing(name):
    scheduler = build(name, 7)
    before = copy.deepcopy(vars(scheduler))
    levels_of(scheduler)
    points_of(scheduler)
    exact_path(scheduler)
    after = vars(scheduler)
    for key, value in before.items():
        array = torch.is_tensor(value) or isinstance(value, np.ndarray)
        same = np.array_equal(value, after[key]) if array else value == after[key]
        assert same, key


@pytest.mark.parametrize("name", EVERY)
def test_points_are_in_the_unit_form(name):
    for point in points_of(build(name, 5)):
        # float32 schedules, so one rounding of the stored product.
        assert abs(float(point.level.scale) - 1) < 1e-7


@pytest.mark.parametrize("name", EVERY)
def test_final_level_is_where_the_exact_predictor_ends(name):
    scheduler = build(name)
    final = final_level(scheduler).unit()
    path = exact_path(scheduler)
    # With x_T of variance 1 and x known, a state's noise is what is left of x_T: the weights of a
    # deterministic sampler are (alpha - alpha_T·sigma/sigma_T, sigma/sigma_T) at the final level.
    first = levels_of(scheduler).unit().at(0)
    if name in ("ddpm", "euler-ancestral"):
        assert float(final.sigma) == 0
    assert float(path.w0[-1]) == pytest.approx(
        float(final.alpha - first.alpha * final.sigma / first.sigma), abs=1e-6
    )
    assert float(path.wT[-1]) == pytest.approx(float(final.sigma / first.sigma), abs=1e-6)


def test_stable_diffusions_ddim_does_not_end_clean():
    final = final_level(build("ddim"))
    assert float(final.alpha) == pytest.approx(0.99957, abs=1e-5)
    assert float(final.sigma) == pytest.approx(0.02916, abs=1e-5)


@pytest.mark.parametrize("name", ["flow-euler", "flow-heun"])
def test_a_flow_mixes_with_weights_that_add_up_to_one(name):
    scheduler = build(name, 6)
    levels = levels_of(scheduler)
    assert torch.equal(levels.alpha, 1 - levels.sigma)
    assert float(levels.sigma[0]) == 1
    assert torch.equal(levels.sigma, scheduler.sigmas[: len(levels.sigma)].double())


def test_a_schedule_that_ends_at_pure_noise_says_so():
    zero = {**SCHEDULE, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = make_scheduler("ddim", 5, {**zero, "rescale_betas_zero_snr": True})
    first = points_of(scheduler)[0].level
    assert float(first.alpha) == 0
    assert float(first.sigma) == 1
    assert torch.isfinite(levels_of(scheduler).unit().alpha).all()


def test_ends_of_log_snr():
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert float(log_snr(Level(one, zero))) == float("inf")
    assert float(log_snr(Level(zero, one))) == float("-inf")
    assert float(log_snr(Level(one, one))) == 0


def test_levels_of_a_sampler_that_repeats_a_timestep_are_its_own():
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    scheduler.set_timesteps(50)
    assert len(scheduler.timesteps.unique()) < 50
    alpha, sigma = levels_of(scheduler)
    ratio = sigma / alpha
    assert (ratio.diff() < 0).all()
    assert torch.allclose(ratio, scheduler.sigmas[:-1].double(), rtol=1e-12)
