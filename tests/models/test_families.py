"""Every family: parity with the unmodified pipeline, and what each says of itself."""

import copy
import functools

import diffusers
import pytest
import torch

from mnemoscope.errors import InputError, ModelError
from mnemoscope.models import SCHEDULERS, load_model
from mnemoscope.models.capture import capture, observe
from mnemoscope.sampling.condition import cat
from mnemoscope.sampling.loop import generators_of
from tests.models.sampled import ours
from tests.tiny import LOADED, PIPELINES, tiny_flux, tiny_pipeline

STEPS = 3

BETAS = tuple(sorted(name for name in SCHEDULERS if not name.startswith("flow-")))
UNSCALED = ("ddim", "ddpm", "dpmsolver++", "pndm")
FLOW = ("flow-euler", "flow-heun")

SAMPLERS = {
    "stable-diffusion": BETAS,
    "stable-diffusion v": ("ddim", "dpmsolver++", "euler-ancestral", "pndm"),
    "stable-diffusion zero-snr": ("ddim", "ddpm", "dpmsolver++", "euler"),
    "stable-diffusion 1:2": ("ddim", "pndm"),
    "stable-diffusion-xl": ("ddim", "dpmsolver++", "euler", "heun"),
    "stable-diffusion-3": FLOW,
    "stable-diffusion-3 with t5": ("flow-euler",),
    "flux dev": ("flow-euler",),
    "flux true": ("flow-euler",),
    "flux schnell": ("flow-euler",),
    "dit": UNSCALED,
    "unconditional ddpm": ("ddim", "ddpm", "dpmsolver++"),
    "unconditional ldm": ("ddim", "ddpm", "euler"),
    "text-to-image pixart": ("ddim", "dpmsolver++", "euler"),
    "text-to-image auraflow": FLOW,
}
"""Schedulers that the host pipeline itself can be given."""


@functools.cache
def model(name):
    return load_model(PIPELINES[name](), **LOADED.get(name, {}))


def prompts_of(name):
    return ["goldfish", ""] if name == "dit" else ["noto swan and twemoji bomb", ""]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "scheduler"), [(name, one) for name, many in SAMPLERS.items() for one in many]
)
def test_recording_leaves_the_pipelines_latents_bit_for_bit(name, scheduler, guidance):
    one, prompts = model(name), prompts_of(name)
    path = one.make_scheduler(scheduler, STEPS)
    expected = one.host_latents(prompts, path, STEPS, guidance, generators_of(range(len(prompts))))
    got = ours(one, prompts, path, guidance)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", list(PIPELINES))
def test_guidance_does_something_wherever_there_is_any(name):
    one, prompts = model(name), prompts_of(name)
    path = one.make_scheduler("auto", STEPS)
    plain, again, guided = (ours(one, prompts, path, scale) for scale in (1.0, 1.0, 4.0))
    # The scheduler is not used up either.
    assert torch.equal(plain, again)
    assert torch.equal(plain, guided) == (one.guidance == "none")


@pytest.mark.parametrize(
    ("name", "built"),
    [
        ("stable-diffusion", "DDIMScheduler"),
        ("stable-diffusion-xl", "EulerDiscreteScheduler"),
        ("stable-diffusion-3", "FlowMatchEulerDiscreteScheduler"),
        ("text-to-image pixart", "DPMSolverMultistepScheduler"),
    ],
)
def test_host_latents_are_what_the_pipeline_returns(name, built):
    # The pipeline is built anew and called as its users call it; nothing of ours touches it.
    one, prompts = model(name), prompts_of(name)
    scheduler = next(key for key, kind in SCHEDULERS.items() if kind == built)
    path = one.make_scheduler(scheduler, STEPS)
    pipeline = PIPELINES[name]()
    pipeline.scheduler = getattr(diffusers, built).from_config(path.config)
    options = {"use_resolution_binning": False} if "pixart" in name else {}
    expected = pipeline(
        prompts,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=generators_of(range(len(prompts))),
        output_type="latent",
        **options,
    ).images
    host = one.host_latents(prompts, path, STEPS, 4.0, generators_of(range(len(prompts))))
    assert torch.equal(host, expected)


def test_flux_returns_its_latents_packed():
    one = model("flux true")
    pipeline = tiny_flux()
    packed = pipeline(
        prompts_of("flux true"),
        negative_prompt=["", ""],
        true_cfg_scale=4.0,
        height=16,
        width=24,
        num_inference_steps=STEPS,
        generator=generators_of(range(2)),
        output_type="latent",
    ).images
    got = ours(one, prompts_of("flux true"), one.make_scheduler("auto", STEPS), 4.0)
    assert torch.equal(one.pack(got), packed)
    assert torch.equal(one.unpack(one.pack(got)), got)


def test_flux_latents_are_unpacked_as_the_pipeline_does():
    one = model("flux dev")
    tokens = torch.randn(2, 4 * 6, 16)
    expected = one.pipeline._unpack_latents(tokens, 16, 24, one.pipeline.vae_scale_factor)
    assert torch.equal(one.unpack(tokens), expected)


@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux dev", "flux true"])
def test_a_flow_is_set_up_by_its_pipeline(name):
    one = model(name)
    path = one.make_scheduler("auto", 4)
    options = one.options(prompts_of(name), 1.0, 4, torch.Generator().manual_seed(0))
    _, own = capture(one.pipeline, one.network, options)
    assert torch.equal(path.timesteps, own.timesteps)
    assert torch.equal(path.sigmas, own.sigmas)


@pytest.mark.parametrize("name", list(PIPELINES))
def test_the_pipelines_own_arithmetic_agrees_with_what_a_family_declares(name):
    one, prompts = model(name), prompts_of(name)
    options = one.options(prompts, 3.0, 4, torch.Generator().manual_seed(0))
    turns = observe(one.pipeline, one.network, options)
    rows = len(prompts)
    for turn in turns:
        parts = [out for answer in turn.answers for out in answer.split(rows)]
        if one.guidance == "free":
            assert len(turn.asked) == (1 if one.joint else 2)
            branch = dict(zip(one.order, parts, strict=True))
            made = branch["uncond"] + 3.0 * (branch["cond"] - branch["uncond"])
        else:
            assert len(turn.asked) == 1
            made = parts[0]
        assert torch.equal(made[:, : turn.used.shape[1]], turn.used[:rows])
        # Replayed at the same state, the network answers the same.
        state = one.unpack(turn.asked[0].x)
        conditions = {"cond": one.encode_prompts(prompts, 3.0)}
        if one.has_uncond:
            conditions["uncond"] = one.encode_blank(rows)
        order = one.order if one.joint else one.order[:1]
        condition = cat([conditions[branch] for branch in order if branch in conditions])
        replayed = one.denoiser(state, torch.as_tensor(turn.timestep), condition)
        answered = one.unpack(turn.answers[0])[:, : state.shape[1]]
        assert torch.equal(replayed, answered)


def test_fluxs_other_branch_is_what_its_pipeline_asks():
    one = model("flux true")
    options = one.options(["a cat"], 3.0, 4, torch.Generator().manual_seed(0))
    asked = observe(one.pipeline, one.network, options, turns=1)[0].asked[1]
    blank = one.encode_blank()
    assert all(torch.equal(blank.parts[name], asked.arguments[name]) for name in blank.parts)
    assert float(blank.parts["guidance"]) == 3.5


def test_an_sdxls_blank_is_zeros():
    one = model("stable-diffusion-xl")
    blank, empty = one.encode_blank(), one.encode_prompts([""])
    assert not blank.embedding.any()
    assert not blank.parts["added_cond_kwargs.text_embeds"].any()
    assert empty.embedding.any()
    ids = blank.parts["added_cond_kwargs.time_ids"]
    assert ids.tolist() == [[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]


def test_embedded_guidance_is_in_the_condition():
    one = model("flux dev")
    low, high = (one.encode_prompts(["a"], scale) for scale in (1.0, 4.0))
    assert low.parts["guidance"].tolist() == [1.0]
    assert high.parts["guidance"].tolist() == [4.0]
    with pytest.raises(ModelError, match="distilled"):
        one.encode_blank()


def test_dits_prompts_are_classes():
    one = model("dit")
    asked = one.encode_prompts(["goldfish", "Tinca tinca", "207", "", " golden retriever "])
    assert asked.parts["class_labels"].tolist() == [1, 0, 207, 1000, 207]
    assert one.encode_blank().parts["class_labels"].tolist() == [1000]
    assert one.token_texts("goldfish") == ["goldfish"]
    assert one.token_counts(["goldfish", ""]) == [1, 0]
    with pytest.raises(InputError, match="'goldfish'"):
        one.encode_prompts(["goldfisch"])
    with pytest.raises(InputError, match="1000"):
        one.encode_prompts(["1000"])


@pytest.mark.parametrize("name", ["unconditional ddpm", "unconditional ldm"])
def test_an_unconditional_model_ignores_its_prompts(name):
    one = model(name)
    x, t = torch.randn(2, *one.latent_shape), torch.tensor(300)
    some = one.denoiser(x, t, one.encode_prompts(["a", "b"]))
    assert torch.equal(some, one.denoiser(x, t, one.encode_prompts(["", "c d e"])))
    with pytest.raises(ModelError, match="unconditional"):
        one.encode_blank()


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("dit", "euler"), ("unconditional ddpm", "heun"), ("unconditional ddpm", "euler")],
)
def test_what_a_pipeline_cannot_drive_is_not_compared(name, scheduler):
    one = model(name)
    path = one.make_scheduler(scheduler, STEPS)
    assert one.host_latents(["1"], path, STEPS, 1.0, generators_of([0])) is None
    assert ours(one, ["1"], path, 1.0).isfinite().all()


def test_ddim_pipelines_are_served_as_well():
    host = PIPELINES["unconditional ddpm"]()
    one = load_model(diffusers.DDIMPipeline(unet=host.unet, scheduler=host.scheduler))
    path = one.make_scheduler("ddim", STEPS)
    expected = one.host_latents(["a", "b"], path, STEPS, 1.0, generators_of(range(2)))
    assert torch.equal(ours(one, ["a", "b"], path, 1.0), expected)
    other = one.make_scheduler("ddpm", STEPS)
    assert one.host_latents(["a"], other, STEPS, 1.0, generators_of([0])) is None


@pytest.mark.parametrize(
    ("name", "scheduler", "message"),
    [
        ("stable-diffusion-3", "ddim", "flow"),
        ("stable-diffusion", "flow-euler", "betas"),
        ("flux dev", "flow-heun", "FluxPipeline cannot"),
        ("flux dev", "eulr", "'euler'"),
    ],
)
def test_schedulers_of_another_kind_are_refused(name, scheduler, message):
    with pytest.raises(ModelError, match=message):
        model(name).make_scheduler(scheduler, 5)


def test_a_model_of_pixels_clips_as_its_scheduler_says():
    assert model("unconditional ddpm").make_scheduler("ddim", 5).config.clip_sample
    assert not model("stable-diffusion").make_scheduler("ddim", 5).config.clip_sample


def test_pictures_need_not_be_square():
    one = model("stable-diffusion 1:2")
    assert one.latent_shape == (4, 8, 16)
    assert one.image_size == (16, 32)
    assert model("flux dev").image_size == (16, 24)
    sized = load_model(tiny_pipeline(), height=16, width=24)
    assert sized.image_size == (16, 24)
    path = sized.make_scheduler("auto", STEPS)
    expected = sized.host_latents(["a"], path, STEPS, 4.0, generators_of([0]))
    assert torch.equal(ours(sized, ["a"], path, 4.0), expected)


def test_latents_are_shifted_and_scaled_as_the_pipeline_does():
    one = model("stable-diffusion-3")
    images = torch.rand(1, 3, 16, 16)
    mode = one.pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    latents = one.encode_images(images)
    assert torch.allclose(latents, (mode - 0.06) * 1.5, atol=1e-6)
    decoded = one.pipeline.vae.decode(latents / 1.5 + 0.06).sample
    assert torch.allclose(one.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_latents_with_moments_of_their_own():
    pipeline = tiny_pipeline()
    pipeline.vae.register_to_config(
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.0]
    )
    one = load_model(pipeline)
    images = torch.rand(1, 3, 16, 16)
    mode = pipeline.vae.encode(2 * images - 1).latent_dist.mode()
    latents, scale = one.encode_images(images), pipeline.vae.config.scaling_factor
    mean = torch.tensor([0.1, -0.2, 0.3, 0.0]).reshape(1, 4, 1, 1)
    std = torch.tensor([1.0, 2.0, 0.5, 1.0]).reshape(1, 4, 1, 1)
    assert torch.allclose(latents, (mode - mean) * scale / std, atol=1e-6)
    # As Stable Diffusion XL's pipeline denormalizes.
    own = pipeline.vae.decode(latents * std / scale + mean).sample
    assert torch.allclose(one.decode(latents), (own / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_a_pipeline_in_half_precision_stays_as_it_is():
    pipeline = tiny_pipeline().to(torch.bfloat16)
    one = load_model(pipeline)
    assert one.dtype == torch.bfloat16
    latents = ours(one, ["a", "b"], one.make_scheduler("auto", STEPS), 4.0)
    assert latents.dtype == torch.float32
    assert one.decode(latents).dtype == torch.float32
    assert pipeline.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["flux true", "stable-diffusion-xl", "text-to-image pixart"])
def test_half_precision_of_the_network_alone_keeps_parity(name):
    half = load_model(PIPELINES[name](), dtype="bfloat16", **LOADED.get(name, {}))
    prompts, path = prompts_of(name), half.make_scheduler("auto", STEPS)
    host = half.host_latents(prompts, path, STEPS, 4.0, generators_of(range(2)))
    got = ours(half, prompts, path, 4.0)
    assert host.dtype == got.dtype == torch.float32
    assert torch.equal(got, host)


class Tripled(diffusers.StableDiffusionPipeline):
    """A pipeline that calls its network for three branches."""

    def __call__(self, prompt=None, guidance_scale=7.5, num_inference_steps=4, generator=None):
        states = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(len(prompt), 4, 8, 8, generator=generator)
        many = 3 if guidance_scale > 1 else 1
        for t in self.scheduler.timesteps:
            out = self.unet(
                torch.cat([x] * many), t, encoder_hidden_states=torch.cat([states] * many)
            ).sample
            x = self.scheduler.step(out[: len(x)], t, x).prev_sample


class Rescaled(Tripled):
    """A pipeline that combines its branches in a way of its own."""

    def __call__(self, prompt=None, guidance_scale=7.5, num_inference_steps=4, generator=None):
        states = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(len(prompt), 4, 8, 8, generator=generator)
        many = 2 if guidance_scale > 1 else 1
        for t in self.scheduler.timesteps:
            both = torch.cat([states] * many)
            both[: len(x)] *= 0.5
            out = self.unet(torch.cat([x] * many), t, encoder_hidden_states=both).sample
            out = out[: len(x)] * out[-len(x) :]
            x = self.scheduler.step(out, t, x).prev_sample


class Hasty(Tripled):
    """A pipeline that tells its network the time in a way of its own."""

    def __call__(self, prompt=None, guidance_scale=7.5, num_inference_steps=4, generator=None):
        states = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(len(prompt), 4, 8, 8, generator=generator)
        for t in self.scheduler.timesteps:
            out = self.unet(x, 1000 - t, encoder_hidden_states=states).sample
            x = self.scheduler.step(out, t, x).prev_sample


class Silent(Tripled):
    """A pipeline that never calls its network."""

    def __call__(self, prompt=None, guidance_scale=7.5, num_inference_steps=4, generator=None):
        return prompt


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Tripled, "6 rows in all"),
        (Rescaled, "combines its branches"),
        (Hasty, "the time in a way"),
        (Silent, "0 times"),
    ],
)
def test_networks_called_in_a_way_not_understood_are_refused(kind, message, monkeypatch):
    from mnemoscope.models import family
    from mnemoscope.models.families.text_to_image import TextToImage

    monkeypatch.setattr(family, "families", lambda: {"text-to-image": TextToImage})
    pipeline = tiny_pipeline()
    host = kind(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(ModelError, match=message):
        load_model(host)
    assert not host.unet._forward_hooks
    assert not host.unet._forward_pre_hooks


def test_the_generic_family_finds_what_the_others_declare(monkeypatch):
    from mnemoscope.models import family
    from mnemoscope.models.families.text_to_image import TextToImage

    monkeypatch.setattr(family, "families", lambda: {"text-to-image": TextToImage})
    for name in ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"):
        found, declared = load_model(PIPELINES[name]()), model(name)
        assert found.family == "text-to-image"
        for what in ("joint", "order", "clock", "guidance", "kind", "latent_shape", "image_size"):
            assert getattr(found, what) == getattr(declared, what)


def test_inpainting_networks_are_refused():
    with pytest.raises(ModelError, match=r"9 channels.*inpainting"):
        load_model(tiny_pipeline(in_channels=9))


def test_pipelines_that_are_shown_a_picture_are_refused():
    parts = tiny_pipeline().components
    host = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ModelError, match="shown a picture"):
        load_model(host)


def test_schedulers_without_levels_are_refused():
    host = tiny_pipeline()
    host.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ModelError, match="no noise levels"):
        load_model(host)


def test_objects_that_are_no_pipelines_are_refused():
    with pytest.raises(ModelError, match="a dict was given"):
        load_model({})
    with pytest.raises(ModelError, match="loaded already"):
        load_model(tiny_pipeline(), variant="fp16")
    with pytest.raises(ModelError, match="both height and width"):
        load_model(tiny_pipeline(), height=16)
    with pytest.raises(ModelError, match="divisible"):
        load_model(tiny_pipeline(), height=15, width=15)


def test_an_objects_digest_follows_its_parameters():
    pipeline = tiny_pipeline()
    first, again = load_model(pipeline), load_model(copy.deepcopy(pipeline))
    assert first.digest == again.digest
    assert first.source is None
    with torch.no_grad():
        pipeline.unet.conv_out.bias[0] += 1
    assert load_model(pipeline).digest != first.digest
