"""Oracles: posterior means against Bayes' rule by other routes, and what sampling makes of them."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mnemoscope.core.level import levels_of
from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.models import load_model
from mnemoscope.models.base import SCHEDULERS
from mnemoscope.models.oracle import MixtureDenoiser, gaussian, memorizer, mixture
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample

NAMES = ["oracle:memorizer", "oracle:gaussian", "oracle:mixture"]


def test_posterior_mean_equals_bayes_rule():
    means = torch.randn(3, 2, dtype=torch.float64)
    spreads = torch.tensor([0.3, 0.7, 0.0], dtype=torch.float64)
    weights = np.array([0.2, 0.5, 0.3])
    oracle = MixtureDenoiser(means, spreads)
    level = oracle.level(torch.tensor(300))
    alpha, sigma = (float(part) for part in level)
    x = torch.randn(5, 2, dtype=torch.float64)
    log_weights = torch.tensor(weights).log().expand(5, 3)
    got = oracle.posterior_mean(x, level, log_weights)
    for i in range(5):
        density = np.array(
            [
                w * multivariate_normal(alpha * m, alpha**2 * s**2 + sigma**2).pdf(x[i].numpy())
                for w, m, s in zip(weights, means.numpy(), spreads.numpy(), strict=True)
            ]
        )
        # Conditional mean of a joint Gaussian: m + cov(x0, x)/var(x)·(x - alpha·m).
        parts = [
            m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x[i].numpy() - alpha * m)
            for m, s in zip(means.numpy(), spreads.numpy(), strict=True)
        ]
        expected = (density / density.sum()) @ np.stack(parts)
        assert np.allclose(got[i].numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("name", sorted(n for n in SCHEDULERS if not n.startswith("flow-")))
def test_its_levels_are_the_schedulers(name):
    model = load_model("oracle:gaussian")
    scheduler = model.make_scheduler(name, 10)
    levels = levels_of(scheduler).unit()
    for i, t in enumerate(scheduler.timesteps):
        own = model.denoiser.level(t)
        # Schedulers keep float32 products.
        assert float(own.alpha) == pytest.approx(float(levels.alpha[i]), abs=1e-6)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_the_raw_output_is_of_its_kind(kind):
    model = mixture(torch.randn(3, 2, 4, 4), 0.2, kind=kind)
    x, t = torch.randn(2, 2, 4, 4), torch.tensor(400)
    condition = model.encode_prompts(["", "component 2"])
    level = model.denoiser.level(t)
    raw = model.denoiser(x, t, condition)
    seen = Prediction.from_raw(model.kind, raw, x, level)
    expected = model.denoiser.posterior_mean(x, level, condition.parts["log_weights"])
    assert torch.allclose(seen.x0.double(), expected, atol=1e-5)


def test_gaussian_samples_have_the_moments_of_the_law():
    mean, spread, n = torch.tensor([0.5, -1.0, 2.0, 0.0]), 0.5, 4000
    model = gaussian(mean, spread)
    generators = generators_of(range(n))
    noise = initial_noise(generators, model.latent_shape)
    rows = model.encode_prompts([""] * n)
    scheduler = model.make_scheduler("dpmsolver++", 50)
    latents = sample(model.denoiser, scheduler, noise, Branches(rows, rows), 1.0).latents
    # The probability-flow path of a Gaussian in closed form, from pure noise at a first level that
    # is not quite noise: x_0 = m + sqrt(V_0 / V_T)·(x_T - alpha_T·m), V = alpha²·s² + sigma².
    alpha, sigma = levels_of(scheduler).at(0)
    ratio = float(spread / (alpha**2 * spread**2 + sigma**2).sqrt())
    # Standard error 0.5/sqrt(4000) = 0.008, four of them.
    assert torch.allclose(latents.mean(dim=0), mean * (1 - ratio * float(alpha)), atol=0.032)
    assert torch.allclose(latents.std(dim=0), torch.full((4,), ratio), atol=0.032)
    exact = mean + ratio * (noise - float(alpha) * mean)
    # The 50-step solver's own error.
    assert float((latents - exact).square().mean().sqrt()) < 0.02


def test_mixture_samples_reach_a_component():
    means = 3 * torch.randn(4, 12)
    model = mixture(means, 0.05)
    prompts = [f"component {k}" for k in range(4)]
    noise = initial_noise(generators_of(range(4)), model.latent_shape)
    cond, uncond = model.encode_prompts(prompts), model.encode_prompts([""] * 4)
    scheduler = model.make_scheduler("dpmsolver++", 30)
    named = sample(model.denoiser, scheduler, noise, Branches(cond, uncond), 1.0).latents
    assert torch.equal(torch.cdist(named, means).argmin(dim=1), torch.arange(4))
    free = sample(model.denoiser, scheduler, noise, Branches(uncond, uncond), 1.0).latents
    # Without a prompt each ends in some component: within a few spreads a coordinate.
    assert float(torch.cdist(free, means).min(dim=1).values.max()) < 0.05 * 12**0.5 * 4


def test_memorizer_knows_only_its_prompts():
    targets = {"a cat": torch.randn(3, 4, 4), "a dog": torch.randn(3, 4, 4)}
    model = memorizer(targets)
    assert model.prompts == ("a cat", "a dog")
    x, t = torch.randn(3, 3, 4, 4), torch.tensor(900)
    level = model.denoiser.level(t)
    raw = model.denoiser(x, t, model.encode_prompts(["a cat", "a bird", ""]))
    x0 = Prediction.from_raw("eps", raw, x, level).x0
    assert torch.allclose(x0[0], targets["a cat"], atol=1e-5)
    assert not torch.allclose(x0[1], targets["a cat"], atol=0.1)
    own = model.denoiser.posterior_mean(x[1:2], level, model.encode_blank().parts["log_weights"])
    assert torch.allclose(x0[1].double(), own[0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_built_in_oracles_are_full_models(name):
    model, again = load_model(name), load_model(name)
    assert model.digest == again.digest
    assert len({load_model(other).digest for other in NAMES}) == 3
    images = torch.rand(2, 3, *model.image_size)
    latents = model.encode_images(images)
    assert latents.shape[1:] == model.latent_shape
    assert torch.allclose(model.decode(latents), images, atol=1e-6)
    assert model.encode_images(torch.rand(1, 3, 20, 30)).shape[1:] == model.latent_shape
    # Hostile text is a prompt like any other.
    assert len(model.encode_prompts(["\ud800", "x" * 10_000])) == 2
    assert model.truncated(["a b"]) == [False]
    assert model.token_counts(["a b"]) == [2]


def test_latents_that_are_no_pictures_have_no_codec():
    with pytest.raises(InputError, match="not pictures"):
        gaussian(torch.zeros(4), 1.0).encode_images(torch.rand(1, 3, 8, 8))
