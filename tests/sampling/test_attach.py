"""Attachment: the loop's own stream from live pipelines, which it neither changes nor misreads."""

import copy
import inspect
import re
from pathlib import Path

import accelerate
import diffusers
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PerturbedAttentionGuidance,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLAutoBlocks,
)
from hypothesis import given
from hypothesis import strategies as st

from mnemoscope.core.level import levels_of
from mnemoscope.core.record import Recorder
from mnemoscope.errors import InputError, ModelError
from mnemoscope.models.base import make_scheduler
from mnemoscope.sampling.attach import Output, attach, split
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, sample
from tests.sampling import pipelines
from tests.tiny import tiny_pipeline


class Network:
    """A UNet as a bare network, written without the package's own."""

    def __init__(self, unet, kind):
        self.unet, self.kind = unet, kind

    def __call__(self, x, timestep, condition):
        states = condition.parts["states"]
        return self.unet(x, timestep, encoder_hidden_states=states).sample


def state_of(live):
    """Return what an attachment must leave as it was."""
    pipe = live.pipe
    network = getattr(pipe, "unet", None) or pipe.transformer
    return set(vars(pipe.scheduler)), dict(network._forward_hooks), pipe.scheduler.step


def recorded(live, guidance, **options):
    recorder = Recorder()
    with attach(live.pipe, recorder) as attachment:
        latents = live.run(guidance, **options)
    return latents, recorder.trajectory(), attachment


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun", "dpmsolver++"]
)
def test_stream_is_that_of_our_own_loop(name, kind, guidance):
    pipe, steps, prompts = tiny_pipeline(kind), 5, ["a cat", "a dog"]
    scheduler = make_scheduler(name, steps, pipe.scheduler.config)
    cond, uncond = pipe.encode_prompt(prompts, "cpu", 1, True)
    noise = initial_noise(generators_of([1, 2]), (4, 8, 8))
    ours = Recorder()
    sampled = sample(
        Network(pipe.unet, "eps" if kind == "epsilon" else "v"),
        scheduler,
        noise,
        Branches(Condition.of(cond), Condition.of(uncond)),
        guidance,
        generators_of([3, 4]),
        observers=[ours],
    )
    pipe.scheduler = copy.deepcopy(scheduler)
    theirs = Recorder()
    with attach(pipe, theirs) as attachment:
        latents = pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise,
            generator=generators_of([3, 4]),
            output_type="latent",
        ).images
    assert torch.equal(latents, sampled.latents)
    assert torch.equal(attachment.latents, latents)
    one, other = ours.trajectory(sampled.latents), theirs.trajectory(attachment.latents)
    assert torch.equal(one.level.alpha, other.level.alpha)
    assert torch.equal(one.level.sigma, other.level.sigma)
    for part in ("x", "v_c", "v_g", "x_T", "x_0"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part
    if guidance == 1:
        assert other.v_u.isnan().all()
        assert attachment.guidance == [1] * other.calls
        assert "guidance is off" in attachment.no_uncond
    else:
        assert torch.equal(one.v_u, other.v_u)
        assert attachment.guidance == pytest.approx([7.5] * other.calls, rel=1e-5)
        assert attachment.no_uncond == ""
    assert attachment.calls == other.calls == len(scheduler.timesteps)


@pytest.mark.parametrize("name", pipelines.GUIDED)
def test_pipelines_are_read_right_and_left_alone(name):
    live = pipelines.GUIDED[name]()
    bare, before = live.run(4.0), state_of(live)
    latents, guided, attachment = recorded(live, 4.0)
    assert torch.equal(latents, bare)
    assert state_of(live) == before
    assert attachment.guidance == pytest.approx([4.0] * guided.calls, rel=1e-5)
    # With guidance off there is the prompt alone, which tells the branches apart for certain.
    _, plain, off = recorded(live, 1.0)
    assert off.order == ("cond",)
    assert plain.v_u.isnan().all()
    off_cond, off_uncond = (
        float((said[:, 0] - plain.v_c[:, 0]).norm()) for said in (guided.v_c, guided.v_u)
    )
    assert off_cond < off_uncond / 10
    torch.testing.assert_close(
        guided.v_g, guided.v_u + 4 * (guided.v_c - guided.v_u), atol=2e-4, rtol=0
    )
    assert torch.equal(plain.v_g, plain.v_c)
    assert len(guided.x) == len(plain.x) == 2


@pytest.mark.parametrize("name", pipelines.UNGUIDED)
def test_unconditional_pipelines_have_one_branch(name):
    live = pipelines.UNGUIDED[name]()
    bare = live.run()
    image, tape, attachment = recorded(live, 1.0)
    assert torch.equal(image, bare)
    assert attachment.order == ("cond",)
    assert "conditioned on nothing" in attachment.no_uncond
    assert tape.v_u.isnan().all()


def test_embedded_guidance_says_why_there_is_no_other_branch():
    _, _, attachment = recorded(pipelines.flux(), 1.0)
    assert "input of this network" in attachment.no_uncond
    _, _, attachment = recorded(pipelines.flux(embedded=False), 1.0)
    assert "guidance is off" in attachment.no_uncond


def modular(guider):
    live = pipelines.GUIDED["sdxl"]()
    cond, uncond, pooled, unpooled = live.pipe.encode_prompt(pipelines.PROMPTS)
    blocks = StableDiffusionXLAutoBlocks()
    for part in ("text_encoder", "ip_adapter", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(part)
    pipe = blocks.init_pipeline()
    pipe.update_components(
        unet=live.pipe.unet, scheduler=live.pipe.scheduler, vae=live.pipe.vae, guider=guider
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe, lambda: pipe(
        num_inference_steps=3,
        generator=generator.manual_seed(0),
        output="latents",
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=unpooled,
        height=16,
        width=16,
    )


@pytest.mark.parametrize("guidance", [4.0, 0.5, -2.0])
def test_modular_pipelines_state_their_scale(guidance):
    pipe, call = modular(ClassifierFreeGuidance(guidance_scale=guidance))
    bare = call()
    with attach(pipe) as attachment:
        assert torch.equal(call(), bare)
    assert attachment.order == ("cond", "uncond")
    assert attachment.guidance == pytest.approx([guidance] * 3, rel=1e-4)


def test_guiders_of_other_branches_are_refused():
    pipe, call = modular(PerturbedAttentionGuidance(perturbed_guidance_layers="mid_block"))
    with pytest.raises(ModelError, match="PerturbedAttentionGuidance"), attach(pipe):
        call()


def test_rows_of_several_images_are_prompt_major():
    live = pipelines.stable_diffusion()
    noise = pipelines.noise(1, 4, 8, 8).expand(6, -1, -1, -1)
    _, tape, _ = recorded(live, 4.0, num_images_per_prompt=3, latents=noise)
    said = tape.v_c[:, 0]
    for same in (said[:3], said[3:]):
        torch.testing.assert_close(same, same[:1].expand(3, -1), atol=1e-5, rtol=0)
    assert float((said[0] - said[3]).abs().max()) > 1e-4


def test_calls_are_told_by_position_and_paths_by_their_first_call():
    live = pipelines.stable_diffusion()
    seen = []
    with attach(live.pipe, lambda call: seen.append(call.point)) as attachment:
        live.run(4.0)
        live.run(4.0, prompt=["one", "two", "three"], steps=3)
        assert attachment.paths == 2
        assert attachment.calls == 4
        assert attachment.latents.shape[0] == 3
    # PNDM asks twice at its second timestep.
    assert [point.call for point in seen] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert seen[1].timestep == seen[2].timestep
    assert seen[0].level.sigma > seen[4].level.sigma


def test_path_restarts_without_new_timesteps():
    live = pipelines.stable_diffusion()
    pipe = live.pipe
    pipe.scheduler = make_scheduler("ddim", 3, pipe.scheduler.config)
    states = pipe.encode_prompt(["a"], "cpu", 1, False)[0]
    with attach(pipe) as attachment, torch.no_grad():
        for _ in range(2):
            x = pipelines.noise(1, 4, 8, 8)
            for t in pipe.scheduler.timesteps:
                x = pipe.scheduler.step(pipe.unet(x, t, states).sample, t, x).prev_sample
        assert attachment.paths == 2
        assert attachment.calls == 3


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_a_path_that_begins_midway_has_the_levels_of_its_place(scheduler):
    parts = tiny_pipeline().components
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    levels, times = [], []

    def observe(call):
        levels.append(call.point.level)
        times.append(float(call.point.timestep))

    with attach(pipe, observe):
        pipe("a cat", image=torch.rand(1, 3, 16, 16), strength=0.5, num_inference_steps=8)
    pipe.scheduler.set_timesteps(8)
    skipped = len(pipe.scheduler.timesteps) - len(levels)
    assert skipped > 0
    assert times == pipe.scheduler.timesteps[skipped:].tolist()
    sigmas = pipe.scheduler.sigmas[skipped:-1].double()
    told = torch.stack([level.sigma / level.alpha for level in levels])
    torch.testing.assert_close(told, sigmas, atol=0, rtol=1e-6)


def test_a_flow_that_begins_midway_has_the_levels_of_its_place():
    live = pipelines.stable_diffusion_3()
    pipe = StableDiffusion3Img2ImgPipeline(**live.pipe.components)
    pipe.set_progress_bar_config(disable=True)
    levels = []
    with attach(pipe, lambda call: levels.append(call.point.level)):
        pipe(
            image=torch.rand(2, 3, 16, 16),
            strength=0.5,
            num_inference_steps=6,
            output_type="latent",
            guidance_scale=4.0,
            **live.arguments,
        )
    sigmas = pipe.scheduler.sigmas[-len(levels) - 1 : -1].double()
    told = torch.stack([level.sigma / (level.alpha + level.sigma) for level in levels])
    assert 0 < len(levels) < 6
    torch.testing.assert_close(told, sigmas, atol=0, rtol=1e-6)


def test_levels_do_not_depend_on_what_the_scheduler_was_told():
    # Euler answers for the step it is at once it was told where to begin.
    _, tape, _ = recorded(pipelines.GUIDED["sdxl"](), 4.0)
    scheduler = pipelines.GUIDED["sdxl"]().pipe.scheduler
    scheduler.set_timesteps(4)
    assert torch.equal(tape.level.sigma, levels_of(scheduler).unit().sigma)


class Stop(Exception):
    """What a test throws."""


def raising(error, at=0):
    left = iter(range(100))

    def act(*_args, **_options):
        if next(left) == at:
            raise error

    return act


@pytest.mark.parametrize("error", [Stop("now"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["observer", "callback", "network", "scheduler", "block"])
def test_everything_is_restored_when_something_is_raised(where, error, monkeypatch):
    live = pipelines.stable_diffusion()
    bare = live.run(4.0)
    # Whoever is asked only for a look is not stopped at once.
    act, observers, options = raising(error, at=int(where in ("observer", "network"))), [], {}
    if where == "observer":
        observers = [act]
    if where == "callback":
        options["callback_on_step_end"] = act
    if where == "network":
        live.pipe.unet.conv_in.register_forward_hook(act)
    if where == "scheduler":
        monkeypatch.setattr(live.pipe.scheduler, "_get_prev_sample", act)
    before = state_of(live)

    def block():
        with attach(live.pipe, *observers):
            if where == "block":
                raise error
            live.run(4.0, **options)

    with pytest.raises(type(error)):
        block()
    assert state_of(live) == before
    monkeypatch.undo()
    live.pipe.unet.conv_in._forward_hooks.clear()
    latents, _, _ = recorded(live, 4.0)
    assert torch.equal(latents, bare)


def test_a_run_after_one_that_was_broken_off_begins_anew():
    live = pipelines.stable_diffusion()
    recorder = Recorder()
    with attach(live.pipe, recorder) as attachment:
        broken = live.pipe.unet.conv_out.register_forward_hook(raising(Stop(), at=2))
        with pytest.raises(Stop):
            live.run(4.0)
        broken.remove()
        # A call beside the pipeline, which belongs to no path.
        live.pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 32))
        recorder.calls.clear()
        live.run(4.0)
        assert attachment.paths == 2
    assert recorder.trajectory().calls == 5


def test_a_step_of_somebody_elses_is_put_back():
    live = pipelines.stable_diffusion()
    scheduler = live.pipe.scheduler
    own, told = scheduler.step, []

    def step(model_output, timestep, sample, **options):
        told.append(timestep)
        return own(model_output, timestep, sample, **options)

    scheduler.step = step
    recorded(live, 4.0)
    assert len(told) == 5
    assert scheduler.step is step


def test_nested_and_shared_attachments_are_refused():
    live, other = pipelines.stable_diffusion(), pipelines.stable_diffusion()
    pipe = live.pipe
    with attach(pipe):
        with pytest.raises(InputError, match="already"), attach(pipe):
            pass
        other.pipe.scheduler, kept = pipe.scheduler, other.pipe.scheduler
        with pytest.raises(InputError, match="already"), attach(other.pipe):
            pass
        # Not attached to, and its steps follow no call that was seen.
        with pytest.raises(ModelError, match="attach to the pipeline that runs"):
            other.run(4.0)
        other.pipe.scheduler, other.pipe.unet = kept, pipe.unet
        with pytest.raises(InputError, match="already"), attach(other.pipe):
            pass
        with pytest.raises(ModelError, match="its scheduler not once"):
            other.run(4.0, steps=20)
        live.run(4.0)
    with attach(pipe), attach(pipelines.stable_diffusion().pipe):
        live.run(4.0)


def test_copies_of_the_scheduler_step_by_themselves():
    live = pipelines.stable_diffusion()
    seen = []
    with attach(live.pipe, seen.append):
        copied = copy.deepcopy(live.pipe.scheduler)
        copied.set_timesteps(2)
        x = torch.zeros(1, 4, 8, 8)
        copied.step(x, copied.timesteps[0], x)
        assert copied.step.__self__ is copied
        assert list(inspect.signature(live.pipe.scheduler.step).parameters) == list(
            inspect.signature(copied.step).parameters
        )
    assert seen == []


@pytest.mark.slow
def test_compiled_denoisers():
    live = pipelines.stable_diffusion()
    live.pipe.unet = torch.compile(live.pipe.unet, backend="eager")
    bare = live.run(4.0, steps=2)
    latents, tape, _ = recorded(live, 4.0, steps=2)
    assert torch.equal(latents, bare)
    assert tape.calls == 3


def test_denoisers_compiled_in_place_are_refused():
    live = pipelines.stable_diffusion()
    live.pipe.unet.compile(backend="eager")
    with pytest.raises(ModelError, match=r"torch\.compile"), attach(live.pipe):
        pass


def test_offloaded_denoisers():
    live = pipelines.stable_diffusion()
    accelerate.cpu_offload(live.pipe.unet, execution_device="cpu")
    bare = live.run(4.0)
    latents, tape, _ = recorded(live, 4.0)
    assert torch.equal(latents, bare)
    assert tape.calls == 5


def test_half_precision_is_read_and_told_in_full():
    live = pipelines.stable_diffusion()
    live.pipe.to(torch.bfloat16)
    bare = live.run(7.5)
    latents, tape, attachment = recorded(live, 7.5)
    assert torch.equal(latents, bare)
    assert tape.v_c.dtype == torch.float32
    assert attachment.guidance == pytest.approx([7.5] * 5, rel=1e-2)


def test_equal_branches_have_no_scale():
    _, tape, attachment = recorded(pipelines.stable_diffusion(), 4.0, prompt=["", ""])
    assert attachment.order == ("uncond", "cond")
    assert all(scale != scale for scale in attachment.guidance)
    assert torch.equal(tape.v_u, tape.v_c)


def test_a_sample_that_is_not_finite_does_not_hide_the_others():
    live = pipelines.stable_diffusion()

    def spoil(_module, _args, out):
        out[0][0] = torch.nan
        return out

    live.pipe.unet.register_forward_hook(spoil)
    _, tape, attachment = recorded(live, 4.0)
    assert attachment.guidance == pytest.approx([4.0] * 5, rel=1e-5)
    assert tape.v_u[0].isnan().all()
    assert tape.v_g[1].isfinite().all()


def perturbed():
    parts = tiny_pipeline().components
    pipe = StableDiffusionPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    return pipelines.Live(pipe, {"prompt": ["a", "b"], "pag_scale": 3.0})


@pytest.mark.parametrize(
    ("make", "guidance", "options", "words"),
    [
        (pipelines.stable_diffusion, 7.5, {"guidance_rescale": 0.7}, "guidance_rescale=0"),
        (pipelines.stable_diffusion, 7.5, {"guidance_rescale": 0.05}, "no guidance of two"),
        (
            pipelines.stable_diffusion_3,
            7.0,
            {
                "skip_guidance_layers": [0],
                "skip_layer_guidance_start": 0.0,
                "skip_layer_guidance_stop": 1.0,
            },
            "skip-layer",
        ),
        (perturbed, 4.0, {}, "3 branches"),
        # The unperturbed branch and the perturbed one, neither of them unconditional.
        (perturbed, 1.0, {}, "guidance scale above 1"),
        (pipelines.latent_diffusion, -2.0, {}, "guidance scale above 1"),
        (pipelines.latent_diffusion, 0.5, {}, "guidance scale above 1"),
    ],
)
def test_guidance_that_is_not_understood_is_refused(make, guidance, options, words):
    live = make()
    live.run(guidance, **options)
    before = state_of(live)
    with pytest.raises(ModelError, match=words), attach(live.pipe):
        live.run(guidance, **options)
    assert state_of(live) == before


def test_outputs_that_are_changed_on_the_way_are_refused():
    live = pipelines.stable_diffusion()
    with attach(live.pipe), torch.no_grad():
        scheduler, x = live.pipe.scheduler, pipelines.noise(2, 4, 8, 8)
        scheduler.set_timesteps(3)
        t = scheduler.timesteps[0]
        out = live.pipe.unet(x, t, torch.zeros(2, 77, 32)).sample
        with pytest.raises(ModelError, match="changed before"):
            scheduler.step(-out, t, x)
        with pytest.raises(ModelError, match="no call that was seen"):
            scheduler.step(out, t, x)
        live.pipe.unet(x, t, torch.zeros(2, 77, 32))
        with pytest.raises(ModelError, match="shaped"):
            scheduler.step(out[:1], t, x)
        live.pipe.unet(x, t, torch.zeros(2, 77, 32))
        scheduler.step(out, t, x)
        live.pipe.unet(x, t, torch.zeros(2, 77, 32))
        with pytest.raises(ModelError, match="out of the order"):
            scheduler.step(out, scheduler.timesteps[-1], x)


def test_schedulers_that_cannot_be_read_are_refused():
    live = pipelines.stable_diffusion()
    config = live.pipe.scheduler.config
    for name, words in {
        "EDMEulerScheduler": "EDM",
        "CMStochasticIterativeScheduler": "consistency",
        "KDPM2DiscreteScheduler": "between the levels",
        "IPNDMScheduler": "neither add_noise nor scale_noise",
        "KarrasVeScheduler": "expected model_output, timestep and sample",
    }.items():
        live.pipe.scheduler = getattr(diffusers, name).from_config(config)
        with pytest.raises(ModelError, match=words), attach(live.pipe):
            pass
    live.pipe.scheduler = DDIMScheduler(prediction_type="epsilon")
    live.pipe.scheduler.register_to_config(prediction_type="charm")
    with pytest.raises(ModelError, match="charm"), attach(live.pipe):
        pass


def test_what_is_no_pipeline_is_refused():
    live = pipelines.stable_diffusion()

    class Holder:
        def __init__(self, **parts):
            vars(self).update(parts)

    with (
        pytest.raises(InputError, match="str given; expected a pipeline of diffusers"),
        attach("x"),
    ):
        pass
    with pytest.raises(InputError, match="give its `pipeline`"), attach(Holder(pipeline=live.pipe)):
        pass
    with (
        pytest.raises(ModelError, match="no denoiser"),
        attach(Holder(scheduler=live.pipe.scheduler)),
    ):
        pass
    with pytest.raises(ModelError, match="no `scheduler`"), attach(Holder(unet=live.pipe.unet)):
        pass


def test_exchanged_schedulers_and_odd_outputs_are_refused():
    live = pipelines.stable_diffusion()
    kept = live.pipe.scheduler
    with attach(live.pipe):
        live.pipe.scheduler = DDIMScheduler.from_config(kept.config)
        with pytest.raises(ModelError, match="exchanged"):
            live.run(4.0)
    assert "step" not in vars(kept)
    live.pipe.unet.register_forward_hook(lambda _module, _args, out: [out[0]])
    with pytest.raises(ModelError, match="returned list"), attach(live.pipe):
        live.run(4.0)


WAYS = ("joint", "separate", "doubled")


def laid_out(way, first, second, used, x):
    """Return what a pipeline of some way of calling shows, with learned variances behind."""
    variance = torch.ones_like(x)
    outs = [torch.cat([part, variance], dim=1) for part in (first, second)]
    if way == "separate":
        return [Output(out, False, False) for out in outs], used, x
    both = [Output(torch.cat(outs), False, False)]
    return both, *((used, x) if way == "joint" else (used.repeat(2, 1, 1), x.repeat(2, 1, 1)))


@given(st.sampled_from(WAYS), st.floats(1.0, 30.0), st.integers(0, 99), st.booleans())
def test_split_finds_order_and_scale(way, scale, seed, turned):
    u, c, x = pipelines.noise(3, 2, 5, 4, seed=seed)
    scale += turned
    used = u + scale * (c - u)
    usual = ("uncond", "cond") if way == "joint" else ("cond", "uncond")
    order = usual[::-1] if turned else usual
    shown = laid_out(way, *({"uncond": u, "cond": c}[name] for name in order), used, x)
    if turned:
        # The unusual order is believed only where the pipeline states the scale.
        with pytest.raises(ModelError, match="does not say which"):
            split(*shown)
    seen = split(*shown, stated=scale if turned else None)
    assert (seen.way, seen.order) == (way, order)
    assert seen.guidance == pytest.approx(scale, rel=1e-4)
    assert torch.equal(seen.raw["cond"], c)
    assert torch.equal(seen.raw["uncond"], u)
    assert torch.equal(seen.used, used)
    assert torch.equal(seen.x, x)


def test_split_refuses_a_branch_of_skipped_layers_for_the_unconditional_one():
    u, c, x = pipelines.noise(3, 2, 5, 4)
    outputs = [Output(c, False, False), Output(u, False, True)]
    with pytest.raises(ModelError, match="skip-layer"):
        split(outputs, u + 3 * (c - u), x)


def test_split_keeps_an_order_once_found_between_zero_and_one():
    u, c, x = pipelines.noise(3, 2, 5, 4)
    shown = laid_out("joint", u, c, u + 0.5 * (c - u), x)
    with pytest.raises(ModelError, match="above 1"):
        split(*shown)
    for order in (("uncond", "cond"), ("cond", "uncond")):
        assert split(*shown, before=order).order == order
    assert split(*shown, stated=0.5).order == ("uncond", "cond")


def test_code_of_the_how_to_page_runs():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "attach.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 1
    names: dict = {}
    for block in blocks:
        exec(compile(block, "attach.md", "exec"), names)
    assert names["tape"].calls == 30
