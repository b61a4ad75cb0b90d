"""Sampling: exact paths in closed form, oracles, failures of single samples, the guide."""

import pytest
import torch

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import final_level, levels_of
from mnemoscope.core.predict import combine
from mnemoscope.core.record import Recorder
from mnemoscope.sampling.loop import exact_path, generators_of, initial_noise, sample
from mnemoscope.errors import InputError, ModelError
from mnemoscope.models import load_model
from mnemoscope.models.base import SCHEDULERS, make_scheduler
from mnemoscope.models.oracle import SCHEDULE, memorizer

EVERY = sorted(SCHEDULERS)
DETERMINISTIC = [name for name in EVERY if name not in ("ddpm", "euler-ancestral")]


def run(model, name, prompts, guidance, steps=20, seeds=None, **options):
    generators = generators_of(range(len(prompts)) if seeds is None else seeds)
    noise = initial_noise(generators, model.latent_shape)
    scheduler = model.make_scheduler(name, steps)
    recorder = Recorder()
    sampled = sample(
        model.denoiser,
        scheduler,
        noise,
        model.encode_prompts(prompts),
        model.encode_prompts([""] * len(prompts)),
        guidance,
        generators,
        observers=[recorder],
        **options,
    )
    return sampled, recorder.trajectory(sampled.latents), scheduler


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


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_perfect_memorizer_ends_on_its_target(name, kind):
    if name == "pndm" and kind == "v":
        pytest.skip("PNDM averages v of different levels, which is exact only in the limit")
    targets = {f"target {k}": torch.randn(3, 4, 4) for k in range(2)}
    model = memorizer(targets, kind=kind)
    # Other seeds than the fixture's, or the initial noise would be the target itself.
    sampled, path, scheduler = run(model, name, list(targets), 1.0, seeds=[10, 11])
    x_0 = torch.stack(list(targets.values())).flatten(1)
    exact = exact_path(scheduler)
    expected = exact.w0[-1] * x_0.double() + exact.wT[-1] * path.x_T.double()
    assert sampled.ok.all()
    # float32 steps; Euler's states reach 50.
    assert torch.allclose(sampled.latents.flatten(1).double(), expected, atol=2e-4)
    if name in DETERMINISTIC:
        final = final_level(scheduler).unit()
        gram = Gram.of(path, target=x_0, mean=None, guidance=1.0, final=final)
        fit = gram.states().fit("x", ["target", "x_T"])
        assert torch.allclose(fit.weights[..., 0], exact.w0[1:].expand(2, -1), atol=1e-4)
        assert torch.allclose(fit.weights[..., 1], exact.wT[1:].expand(2, -1), atol=1e-4)
        assert float(fit.residual.max()) < 1e-3


def test_a_batch_agrees_with_its_samples_alone():
    model = load_model("oracle:mixture")
    prompts = ["component 1", "component 2", "component 3"]
    together, _, _ = run(model, "ddpm", prompts, 3.0)
    for i, prompt in enumerate(prompts):
        alone, _, _ = run(model, "ddpm", [prompt], 3.0, seeds=[i])
        assert torch.allclose(alone.latents[0], together.latents[i], atol=5e-6)


def test_the_record_is_the_same_in_every_scale():
    # Same path from the same noise under a variance-preserving and a variance-exploding sampler.
    model = load_model("oracle:memorizer")
    options = {"steps": 10}
    _, ddim, _ = run(model, "ddim", ["target 3"], 1.0, **options)
    _, euler, _ = run(model, "euler", ["target 3"], 1.0, **options)
    noise = initial_noise(generators_of([0]), model.latent_shape).flatten(1)
    assert torch.allclose(ddim.x_T, noise)
    share = float(euler.level.sigma[0])
    # Euler starts at its largest sigma, not at the same level, so its noise has that weight.
    assert torch.allclose(euler.x_T, noise, atol=1 - share + 1e-6)
    for path in (ddim, euler):
        alpha, sigma = (part.float()[:, None] for part in path.level)
        rebuilt = alpha * path.x0_g + sigma * path.eps_g
        assert torch.allclose(rebuilt, path.x, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_sample_that_breaks_is_named_and_disturbs_no_other(guidance):
    model = load_model("oracle:mixture")

    class Breaks:
        kind = "eps"
        calls = 0

        def __call__(self, x, timestep, condition):
            raw = model.denoiser(x, timestep, condition)
            if int(timestep) < 500:
                rows = range(1, len(x), 2)
                raw[list(rows)] = torch.nan
            return raw

    prompts = ["component 1", "component 2"]
    generators = generators_of([0, 1])
    scheduler = model.make_scheduler("ddim", 10)
    first = int((scheduler.timesteps >= 500).sum())
    arguments = (
        initial_noise(generators, model.latent_shape),
        model.encode_prompts(prompts),
        model.encode_prompts(["", ""]),
        guidance,
    )
    whole = sample(model.denoiser, scheduler, *arguments)
    broken = sample(Breaks(), scheduler, *arguments)
    assert broken.nonfinite.tolist() == [-1, first]
    assert broken.ok.tolist() == [True, False]
    assert torch.equal(broken.latents[0], whole.latents[0])
    assert whole.ok.all()


def test_the_guide_replaces_guidance_at_the_calls_it_wants():
    model = load_model("oracle:mixture")
    prompts = ["component 1", "component 2"]
    seen = []

    def delayed(uncond, cond, point):
        seen.append(point.call)
        return combine(uncond, cond, 0.0 if point.call < 3 else 5.0)

    guided, path, _ = run(model, "ddim", prompts, 1.0, guide=delayed)
    assert seen == list(range(20))
    assert torch.allclose(path.eps_g[:, :3], path.eps_u[:, :3], atol=1e-6)
    constant, _, _ = run(model, "ddim", prompts, 5.0, guide=lambda u, c, _: combine(u, c, 5.0))
    plain, _, _ = run(model, "ddim", prompts, 5.0)
    assert torch.equal(constant.latents, plain.latents)
    assert not torch.equal(guided.latents, plain.latents)


def test_guidance_that_has_no_meaning_is_refused():
    model = load_model("oracle:mixture")
    with pytest.raises(InputError, match="below 1"):
        run(model, "ddim", ["a"], 0.5)
    scheduler = model.make_scheduler("ddim", 5)
    noise = initial_noise(generators_of([0]), model.latent_shape)
    cond = model.encode_prompts(["a"])
    with pytest.raises(ModelError, match="unconditional"):
        sample(model.denoiser, scheduler, noise, cond, None, 2.0)
    recorder = Recorder()
    sampled = sample(model.denoiser, scheduler, noise, cond, None, 1.0, observers=[recorder])
    assert recorder.trajectory(sampled.latents).eps_u.isnan().all()
