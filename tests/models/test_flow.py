"""Levels and exact paths of flow schedulers, and of schedules that begin at pure noise."""

import pytest
import torch

from mnemoscope.core.level import final_level, levels_of
from mnemoscope.errors import ModelError
from mnemoscope.models import load_model
from mnemoscope.models.base import make_scheduler
from mnemoscope.sampling.exact import exact_path
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, kind_of, sample
from tests.tiny import LOADED, PIPELINES

SHIFTED = {"shift": 3.0, "num_train_timesteps": 1000}


@pytest.mark.parametrize("name", ["flow-euler", "flow-heun"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_exact_path_of_a_flow_in_closed_form(name, steps):
    # With x and x_T known, the state at s is (1 - s)·x + s·eps: w0 = 1 - s/s_T, wT = s/s_T.
    scheduler = make_scheduler(name, steps, SHIFTED)
    assert kind_of(scheduler) == "flow"
    path = exact_path(scheduler)
    own = levels_of(scheduler)
    sigma = torch.cat([own.sigma, final_level(scheduler).sigma[None]])
    scale = torch.hypot(1 - sigma, sigma)
    assert torch.allclose(path.w0, (1 - sigma / sigma[0]) / scale, rtol=0, atol=1e-6)
    expected = sigma / sigma[0] / scale * scale[0]
    assert torch.allclose(path.wT, expected, rtol=0, atol=1e-6)
    assert float(path.w0[-1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["flow-euler", "flow-heun"])
def test_levels_of_a_flow_are_those_its_steps_use(name):
    scheduler = make_scheduler(name, 6, SHIFTED)
    levels = levels_of(scheduler)
    assert torch.allclose(levels.alpha + levels.sigma, torch.ones_like(levels.sigma))
    assert torch.allclose(levels.sigma.float() * 1000, scheduler.timesteps)
    # Asked again, or after a copy has stepped, nothing has moved.
    assert torch.equal(levels_of(scheduler).sigma, levels.sigma)
    assert scheduler.step_index is None


@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux dev", "text-to-image auraflow"])
def test_a_pipelines_flow_has_levels_at_any_of_its_times(name):
    model = load_model(PIPELINES[name](), **LOADED.get(name, {}))
    scheduler = model.make_scheduler("auto", 6)
    some = scheduler.timesteps[[4, 1]]
    assert torch.allclose(
        levels_of(scheduler, some).sigma, levels_of(scheduler).sigma[[4, 1]], atol=1e-7
    )


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmsolver++", "euler"])
def test_a_schedule_may_begin_at_pure_noise(name):
    model = load_model(PIPELINES["stable-diffusion zero-snr"]())
    assert model.kind == "v"
    scheduler = model.make_scheduler(name, 10)
    levels, path = levels_of(scheduler).unit(), exact_path(scheduler)
    # Schedulers that keep sigma/alpha end at 4096 in place of infinity.
    assert float(levels.alpha[0]) == pytest.approx(0, abs=3e-4)
    if name in ("ddim", "ddpm"):
        assert float(levels.alpha[0]) == 0
    assert path.w0.isfinite().all()
    assert path.wT.isfinite().all()
    if name in ("ddim", "dpmsolver++"):
        alpha, sigma = path.level
        ratio = sigma / sigma[0]
        assert torch.allclose(path.wT, ratio, rtol=0, atol=1e-5)
        assert torch.allclose(path.w0, alpha - alpha[0] * ratio, rtol=0, atol=1e-5)
    generators = generators_of(range(2))
    noise = initial_noise(generators, model.latent_shape)
    branches = Branches(model.encode_prompts(["a", "b"]), model.encode_blank(2))
    seen = []
    done = sample(
        model.denoiser, scheduler, noise, branches, 4.0, generators, observers=[seen.append]
    )
    assert done.ok.all()
    assert all(call.cond.x0.isfinite().all() for call in seen)


@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_a_scheduler_that_cannot_begin_at_pure_noise_is_refused(name):
    with pytest.raises(ModelError, match="pure noise"):
        load_model(PIPELINES["stable-diffusion zero-snr"]()).make_scheduler(name, 10)
