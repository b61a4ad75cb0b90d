"""Probes: their states, their estimates, and the derivative against finite differences."""

import pytest
import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import final_level
from mnemoscope.core.predict import Prediction
from mnemoscope.models import load_model
from mnemoscope.sampling.loop import generators_of, initial_noise, points_of
from mnemoscope.sampling.probes import forward_noised, gap, gap_jvp, pure_noise
from tests.tiny import tiny_folder

STEPS = 6


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request, tmp_path_factory):
    return load_model(str(tiny_folder(tmp_path_factory.mktemp("tiny") / "m", request.param)))


def inputs(model, n=2):
    noise = initial_noise(generators_of(range(n)), model.latent_shape)
    target = initial_noise(generators_of(range(50, 50 + n)), model.latent_shape)
    prompts = [f"prompt {i}" for i in range(n)]
    return target, noise, model.encode_prompts(prompts), model.encode_prompts([""] * n)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_forward_noised_states_and_estimates(model, name):
    scheduler = model.make_scheduler(name, STEPS)
    points = points_of(scheduler)[::2]
    target, noise, cond, uncond = inputs(model)
    tape = forward_noised(model.denoiser, points, target, noise, cond, uncond)
    for k, point in enumerate(points):
        alpha, sigma = (float(part) for part in point.level)
        x = alpha * target + sigma * noise
        assert torch.allclose(tape.x[:, k], x.flatten(1), atol=1e-6)
        states = cond.embedding
        raw = model.pipeline.unet(x, point.timestep, encoder_hidden_states=states).sample
        eps = Prediction.from_raw(model.kind, raw, x, point.level).eps
        # One call of four rows against two: a batch split.
        assert torch.allclose(tape.eps("c")[:, k], eps.detach().flatten(1), atol=5e-6)
    assert torch.equal(tape.x_T, noise.flatten(1))
    final = final_level(scheduler).unit()
    gram = Gram.of(tape, final=final, target=target.flatten(1))
    assert gram.rms("x0_c").isfinite().all()
    assert gram.rms("x_0").isnan().all()
    assert gram.rms("eps_g").isnan().all()
    # The state is made of the target and the noise, with the level as its weights.
    fit = gram.fit("x", ["target", "x_T"]).weights
    levels = torch.stack([torch.stack(list(point.level)) for point in points])
    assert torch.allclose(fit, levels.expand(2, -1, -1), atol=1e-5)


def test_pure_noise_is_the_same_state_everywhere(model):
    points = points_of(model.make_scheduler("ddim", STEPS))
    _, noise, cond, uncond = inputs(model)
    tape = pure_noise(model.denoiser, points, noise, cond, uncond)
    assert tape.x.shape[1] == STEPS
    assert (tape.x == noise.flatten(1)[:, None]).all()
    assert not torch.equal(tape.v_c[:, 0], tape.v_u[:, 0])


def test_jvp_equals_a_central_difference(model):
    point = points_of(model.make_scheduler("ddim", STEPS))[2]
    target, x, cond, uncond = inputs(model)
    model.pipeline.unet.double()
    try:
        x, direction = x.double(), target.double()
        cond, uncond = (part.embedded(part.embedding.double()) for part in (cond, uncond))
        value, derivative = gap_jvp(model.denoiser, x, point, cond, uncond, direction)
        h = 1e-5
        with torch.no_grad():
            ahead, behind = (
                gap(model.denoiser, x + side * h * direction, point, cond, uncond)
                for side in (1, -1)
            )
            assert torch.allclose(value, gap(model.denoiser, x, point, cond, uncond), atol=1e-12)
    finally:
        model.pipeline.unet.float()
    difference = (ahead - behind) / (2 * h)
    # Truncation h² and rounding 1e-16/h leave about 1e-10 of an order-one derivative; the UNet's
    # own time embedding is float32.
    assert float((derivative - difference).abs().max()) < 1e-6 * float(derivative.abs().max() + 1)
    assert float(derivative.abs().max()) > 0


def test_gradients_reach_the_state(model):
    point = points_of(model.make_scheduler("ddim", STEPS))[0]
    _, x, cond, uncond = inputs(model, 1)
    x = x.clone().requires_grad_()
    gap(model.denoiser, x, point, cond, uncond).square().sum().backward()
    assert float(x.grad.abs().max()) > 0
