"""Conformance: every family the registry finds keeps the protocol, and one more takes one file."""

import functools

import pytest
import torch
from torch import nn

from mnemoscope.core.level import levels_of
from mnemoscope.errors import InputError, ModelError
from mnemoscope.models import Model, load_model
from mnemoscope.models.family import families, family_of
from mnemoscope.sampling.condition import cat
from mnemoscope.sampling.loop import Denoiser, generators_of, points_of
from mnemoscope.sampling.probes import gap_in_condition, gap_jvp, predict
from tests.models.sampled import ours
from tests.tiny import LOADED, PIPELINES, tiny_pipeline

NAMES = list(PIPELINES)


@functools.cache
def model(name):
    return load_model(PIPELINES[name](), **LOADED.get(name, {}))


def conditions(one):
    cond = one.encode_prompts(one.examples)
    return cond, (one.encode_blank(len(cond)) if one.has_uncond else None)


def middle(one):
    return points_of(one.make_scheduler("auto", 4))[2]


def test_every_family_has_a_pipeline():
    assert {name.split()[0].rsplit(",")[0] for name in NAMES} >= set(families())


def test_no_two_families_serve_one_pipeline():
    served = [name for kind in families().values() for name in kind.pipelines]
    assert len(served) == len(set(served))


def test_what_is_no_pipeline_has_no_family():
    with pytest.raises(ModelError, match="text-to-image pipeline"):
        family_of(dict)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_model(name):
    one = model(name)
    assert isinstance(one, Model)
    assert isinstance(one.denoiser, Denoiser)
    assert one.family == name.split()[0]
    assert one.denoiser.kind == one.kind
    assert len(one.digest) == 64
    assert int(one.digest, 16)
    assert one.d == torch.zeros(one.latent_shape).numel()
    assert one.has_uncond == (one.guidance == "free")
    assert bool(one.no_uncond) == (not one.has_uncond)
    assert one.scheduler in ("ddim", "flow-euler")
    assert one.device.type == "cpu"
    assert one.dtype == torch.float32
    assert not any(p.requires_grad for p in one.network.parameters())
    assert not one.network.training


@pytest.mark.parametrize("name", NAMES)
def test_images_go_to_latents_and_back(name):
    one = model(name)
    latents = one.encode_images(torch.rand(2, 3, 20, 30))
    assert latents.shape == (2, *one.latent_shape)
    images = one.decode(latents)
    assert images.shape == (2, 3, *one.image_size)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_conditions_stay_rows(name):
    one = model(name)
    cond, _ = conditions(one)
    first, second = cond.take([0]), cond.take([1])
    back = cat([second, first])
    assert len(cond) == len(back) == 2
    for key, part in cond.parts.items():
        assert torch.equal(back.parts[key], part.flip(0))
    x, point = torch.randn(1, *one.latent_shape), middle(one)
    many = one.denoiser(x.expand(3, *x.shape[1:]), point.timestep, second.expand(3))
    alone = one.denoiser(x, point.timestep, second)
    assert torch.allclose(many, alone.expand_as(many), atol=1e-5)
    if one.has_uncond:
        assert len(one.encode_blank()) == 1
        joined = cat([one.encode_blank(), cond])
        assert len(joined) == 3
        assert joined.parts.keys() == cond.parts.keys()
    else:
        with pytest.raises(ModelError):
            one.encode_blank()


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_keeps_shape_and_dtype(name):
    one = model(name)
    cond, _ = conditions(one)
    x, point = torch.randn(2, *one.latent_shape), middle(one)
    before = x.clone()
    raw = one.denoiser(x, point.timestep, cond)
    assert raw.shape == x.shape
    assert raw.dtype == x.dtype
    assert torch.equal(x, before)
    assert one.denoiser(x.double(), point.timestep, cond).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_is_differentiable(name):
    one = model(name)
    cond, uncond = conditions(one)
    x, point = torch.randn(2, *one.latent_shape).requires_grad_(), middle(one)
    eps = predict(one.denoiser, x, point, cond).eps
    gradient = torch.autograd.grad(eps.square().sum(), x)[0]
    assert gradient.isfinite().all()
    assert gradient.any()
    if uncond is None:
        return
    direction = torch.randn_like(x)
    value, along = gap_jvp(one.denoiser, x.detach(), point, cond, uncond, direction)
    assert value.isfinite().all()
    assert along.isfinite().all()
    if cond.embedding is not None:
        free = predict(one.denoiser, x.detach(), point, uncond).eps.detach()
        slope = gap_in_condition(one.denoiser, x.detach(), point, cond, free)
        assert slope.shape == cond.embedding.shape
        assert slope.any()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_counted_and_refused(name):
    one = model(name)
    counts = one.token_counts(one.examples)
    assert len(counts) == len(one.truncated(one.examples)) == len(one.examples)
    assert not any(one.truncated(one.examples))
    if one.tokenizer is not None:
        assert len(one.token_texts(one.examples[1])) <= one.window
        assert one.truncated(["x " * 600]) == [True]
    with pytest.raises(InputError, match="no prompt"):
        one.encode_prompts([])
    with pytest.raises(InputError):
        one.encode_prompts(["\ud800"])


@pytest.mark.parametrize("name", NAMES)
def test_its_own_scheduler_has_levels_and_parity(name):
    one = model(name)
    path = one.make_scheduler("auto", 3)
    levels = levels_of(path)
    assert (levels.sigma.diff() < 0).all()
    assert len(one.make_scheduler("auto", 1).timesteps) == 1
    with pytest.raises(InputError, match="steps 0"):
        one.make_scheduler("auto", 0)
    prompts = list(one.examples)
    expected = one.host_latents(prompts, path, 3, 4.0, generators_of(range(len(prompts))))
    assert torch.equal(ours(one, prompts, path, 4.0), expected)


class _Failure(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind_by_a_failure(name, monkeypatch):
    one = model(name)
    own, pipeline = one.pipeline.scheduler, one.pipeline
    bars = dict(getattr(pipeline, "_progress_bar_config", {}))
    state = torch.random.get_rng_state()

    def fail(*_args, **_options):
        raise _Failure("nothing works")

    def hooks():
        # transformers leaves hooks of its own in its encoders.
        return {
            name: [
                hook
                for module in part.modules()
                for hook in (*module._forward_hooks, *module._forward_pre_hooks)
            ]
            for name, part in pipeline.components.items()
            if isinstance(part, nn.Module)
        }

    before = hooks()

    def clean():
        assert hooks() == before
        assert not one.network._forward_hooks
        assert not one.network._forward_pre_hooks
        assert pipeline.scheduler is own
        assert "step" not in vars(own)
        assert dict(getattr(pipeline, "_progress_bar_config", {})) == bars
        assert torch.equal(torch.random.get_rng_state(), state)

    one.encode_prompts(one.examples)
    clean()
    path = one.make_scheduler("auto", 2)
    with monkeypatch.context() as broken:
        # Pipelines look at the signature.
        broken.setattr(type(own), "set_timesteps", functools.wraps(type(own).set_timesteps)(fail))
        with pytest.raises(ModelError, match="nothing works"):
            one.encode_prompts(one.examples)
    clean()
    with monkeypatch.context() as broken:
        broken.setattr(type(one.network), "forward", fail)
        with pytest.raises(_Failure):
            one.host_latents(one.examples, path, 2, 1.0, generators_of(range(2)))
    clean()


FAMILY = '''
"""A family of one pipeline more."""

from typing import ClassVar

import diffusers

from mnemoscope.models.captured import Captured


class TintedPipeline(diffusers.StableDiffusionPipeline):
    """A pipeline that the package has never heard of."""


class Tinted(Captured):
    """Its family."""

    family: ClassVar[str] = "tinted"
    pipelines: ClassVar[tuple[str, ...]] = ("TintedPipeline",)
'''


def test_a_family_takes_one_file(tmp_path, monkeypatch):
    (tmp_path / "tinted_family.py").write_text(FAMILY)
    told = tmp_path / "tinted-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: tinted\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[mnemoscope.models.families]\ntinted = tinted_family\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "tinted" in families()
    import tinted_family

    pipeline = tinted_family.TintedPipeline(
        **tiny_pipeline().components, requires_safety_checker=False
    )
    added = load_model(pipeline)
    assert isinstance(added, tinted_family.Tinted)
    path = added.make_scheduler("auto", 2)
    expected = added.host_latents(["a"], path, 2, 4.0, generators_of([0]))
    assert torch.equal(ours(added, ["a"], path, 4.0), expected)


def test_without_it_the_pipeline_is_of_the_family_it_derives_from():
    class Derived(type(tiny_pipeline())):
        pass

    assert family_of(Derived).family == "stable-diffusion"
