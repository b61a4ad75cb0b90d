"""The guider, in diffusers' own modular blocks."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLAutoBlocks
from diffusers.hooks import HookRegistry

from mnemoscope.core.level import levels_of
from mnemoscope.errors import InputError, RefusedError
from mnemoscope.guarding.guider import HOOK, MemorizationGuider, guider
from mnemoscope.guarding.live import guard
from tests.sampling import pipelines


def modular(steps=3):
    """Return SDXL's modular pipeline, its text encoded beforehand, and how it is run."""
    live = pipelines.GUIDED["sdxl"]()
    cond, uncond, pooled, unpooled = live.pipe.encode_prompt(pipelines.PROMPTS)
    blocks = StableDiffusionXLAutoBlocks()
    for part in ("text_encoder", "ip_adapter", "vae_encoder", "decode"):
        blocks.sub_blocks.pop(part)
    pipe = blocks.init_pipeline()
    pipe.update_components(
        unet=live.pipe.unet, scheduler=live.pipe.scheduler, vae=live.pipe.vae,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe, lambda: pipe(
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output="latents",
        prompt_embeds=cond,
        negative_prompt_embeds=uncond,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=unpooled,
        height=16,
        width=16,
    )


def hooks(pipe):
    return set(HookRegistry.check_if_exists_or_initialize(pipe.unet).hooks)


def test_what_is_not_suspicious_is_bit_for_bit_the_usual_guiders():
    pipe, call = modular()
    bare = call()
    made = guider(pipe, threshold=1e9)
    pipe.update_components(guider=made)
    assert torch.equal(call(), bare)
    assert [record.suspicious for record in made.records] == [False, False]
    assert HOOK not in hooks(pipe)


def test_it_scores_as_a_guard_of_the_same_pipeline_does():
    pipe, call = modular()
    with guard(pipe) as watched:
        call()
    made = guider(pipe)
    pipe.update_components(guider=made)
    call()
    expected = [record.score for record in watched.records]
    assert [record.score for record in made.records] == pytest.approx(expected, rel=1e-4)
    assert [record.prompt for record in made.records] == [0, 1]


def test_suspicious_samples_are_steered_as_a_guard_steers_them():
    pipe, call = modular()
    chosen = "guidance_interval(strength=0.4)"
    with guard(pipe, threshold=0.0, mitigation=chosen):
        expected = call()
    bare = call()
    pipe.update_components(guider=guider(pipe, threshold=0.0, mitigation=chosen))
    made = call()
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(made, bare)


def test_it_is_saved_and_loaded(tmp_path):
    pipe, call = modular()
    made = guider(
        pipe, threshold=0.0, mitigation="guidance_interval(strength=0.4)", guidance_scale=3.0
    )
    made.save_pretrained(tmp_path)
    loaded = MemorizationGuider.from_pretrained(tmp_path)
    for name, value in made.config.items():
        assert name.startswith("_") or loaded.config[name] == value, name
    pipe.update_components(guider=made)
    expected = call()
    pipe.update_components(guider=loaded)
    assert torch.equal(call(), expected)


def test_an_exception_leaves_nothing_that_a_next_run_would_stumble_over():
    pipe, call = modular()
    bare = call()
    pipe.update_components(guider=guider(pipe, threshold=0.0, action="refuse"))
    for _ in range(2):
        with pytest.raises(RefusedError):
            call()
    broken = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call()
    broken.remove()
    pipe.update_components(guider=guider(pipe, threshold=1e9))
    assert torch.equal(call(), bare)


def test_levels_are_the_schedulers():
    pipe, _ = modular()
    made = guider(pipe)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(5)
    unit = levels_of(scheduler).unit()
    for call, t in enumerate(scheduler.timesteps):
        made.set_state(call, 5, t)
        level = made._level().unit()
        torch.testing.assert_close(level.alpha, unit.alpha[call], atol=2e-3, rtol=2e-2)


def test_what_cannot_be_done_is_refused():
    pipe, _ = modular()
    with pytest.raises(InputError, match="cannot regenerate"):
        guider(pipe, threshold=1.0, action="regenerate")
    with pytest.raises(InputError, match=r"guard any other by `mnemoscope\.guard`"):
        guider(pipelines.stable_diffusion().pipe)
