"""Published methods against the authors' formulas, by another route or by recorded values."""

from math import cos, exp, pi

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.magnitude_aware_guidance import mambo_guidance
from diffusers.guiders.tangential_classifier_free_guidance import (
    normalized_guidance as tangential_guidance,
)

from mnemoscope.errors import ModelError
from mnemoscope.mitigations import parse
from tests.mitigations.steps import G, attended, drawn, path_of, step_of

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def raw(step):
    return step.raw["cond"], step.raw["uncond"]


# Guides that diffusers has as well


def test_magnitude_aware_is_the_formula_of_diffusers():
    step = step_of()
    cond, uncond = raw(step)
    # Its function takes a matrix a sample: torch refuses a norm over three dimensions.
    wanted = mambo_guidance(cond.flatten(2), uncond.flatten(2), G, 8.0).reshape(cond.shape)
    used = parse("magnitude_aware").guide(step)
    torch.testing.assert_close(used, wanted, **CLOSE)
    gap, size = float((cond[1] - uncond[1]).norm()), float(uncond[1].norm())
    scale = 1 + (G - 1) * exp(-8 * gap / size)
    torch.testing.assert_close(used[1], uncond[1] + scale * (cond[1] - uncond[1]), **CLOSE)


@pytest.mark.parametrize(
    ("text", "eta", "radius", "momentum"),
    [
        ("adaptive_projected", 0.0, 15.0, -0.5),
        ("adaptive_projected(strength=0.25,radius=2,momentum=0.3)", 0.75, 2.0, 0.3),
        ("adaptive_projected(strength=1,radius=0,momentum=0)", 0.0, 0.0, 0.0),
    ],
)
def test_adaptive_projected_is_that_of_diffusers_along_a_path(text, eta, radius, momentum):
    buffer, history = MomentumBuffer(momentum), ()
    for call in range(3):
        step = step_of(call, history=history)
        cond, uncond = raw(step)
        wanted = normalized_guidance(cond, uncond, G, buffer, eta, radius)
        torch.testing.assert_close(parse(text).guide(step), wanted, **CLOSE)
        history = (*history, step)


def test_adaptive_projected_without_its_parts_is_plain_guidance():
    step = step_of()
    used = parse("adaptive_projected(strength=0,radius=0,momentum=0)").guide(step)
    torch.testing.assert_close(used, step.guided(), **CLOSE)


def test_tangential_is_that_of_diffusers():
    step = step_of()
    cond, uncond = raw(step)
    torch.testing.assert_close(
        parse("tangential").guide(step),
        tangential_guidance(cond, uncond, G),
        atol=2e-4,
        rtol=2e-4,
    )


def test_zero_star_is_that_of_diffusers():
    guider = ClassifierFreeZeroStarGuidance(G, zero_init_steps=1)
    for call in range(2):
        step = step_of(call)
        guider.set_state(step=call, num_inference_steps=10, timestep=step.point.timestep)
        wanted = guider.forward(*raw(step)).pred
        torch.testing.assert_close(parse("zero_star").guide(step), wanted, **CLOSE)
    assert not parse("zero_star").guide(step_of(0)).any()


def test_frequency_decoupled_has_the_values_of_diffusers_with_kornia():
    g = torch.Generator().manual_seed(7)
    uncond = torch.randn(1, 1, 8, 8, generator=g)
    cond = uncond + 0.3 * torch.randn(1, 1, 8, 8, generator=g)
    used = parse("frequency_decoupled(strength=0.5)").guide(step_of(cond=cond, uncond=uncond))
    # Scales 7.5 and 4.25, kornia 0.9.0.
    recorded = [
        -0.612661,
        0.720050,
        -0.300806,
        0.485143,
        -2.759455,
        -3.327349,
        -1.744682,
        -2.108104,
    ]
    torch.testing.assert_close(used[0, 0, 0], torch.tensor(recorded), atol=2e-5, rtol=0)
    assert float(used.sum()) == pytest.approx(-8.232950, abs=1e-4)
    assert float(used.square().sum()) == pytest.approx(288.514221, abs=1e-3)


def test_frequency_decoupled_takes_pictures_alone():
    flat = drawn(3, 2, 16, 4)
    with pytest.raises(ModelError, match="height and width"):
        parse("frequency_decoupled").guide(step_of(cond=flat))


# Transition points


@pytest.mark.parametrize(
    ("norms", "turn"),
    [
        ([5, 4, 3, 4, 2, 1, 2, 3], 3),
        ([1, 2, 1, 2, 3, 4, 5, 6], 3),
        ([5, 4, 3, 2, 1, 0.5, 0.4, 0.3], None),
        ([1, 2, 3, 4, 5, 6, 7, 8], None),
    ],
)
def test_the_dynamic_transition_is_the_first_local_minimum_or_the_fallback(norms, turn):
    method = parse("dynamic_transition(strength=0.7,before=1)")
    for call, step in enumerate(path_of(norms)):
        guided = call >= 7 or (turn is not None and call >= turn)
        cond, uncond = raw(step)
        wanted = uncond + (G if guided else 1.0) * (cond - uncond)
        torch.testing.assert_close(method.guide(step), wanted, **CLOSE)


def test_each_sample_has_a_transition_of_its_own():
    parts = [path_of([5, 4, 3, 4, 5, 6]), path_of([6, 5, 4, 3, 2, 1])]
    steps = []
    for call, (a, b) in enumerate(zip(*parts, strict=True)):
        both = [torch.cat([one.raw[name] for one in (a, b)]) for name in ("cond", "uncond")]
        steps.append(step_of(call, cond=both[0], uncond=both[1], history=tuple(steps)))
    used = parse("dynamic_transition(strength=1,before=0)").guide(steps[-1])
    torch.testing.assert_close(used[0], steps[-1].guided()[0])
    torch.testing.assert_close(used[1], steps[-1].raw["uncond"][1])


def test_static_transition_and_interval_wait_in_different_ways():
    for call in range(10):
        step = step_of(call)
        used = parse("static_transition(strength=0.4)").guide(step)
        assert torch.equal(used, step.guided() if call >= 4 else step.raw["uncond"])
        used = parse("guidance_interval(strength=0.4)").guide(step)
        assert torch.equal(used, step.guided() if call >= 4 else step.raw["cond"])


def test_opposite_guidance_turns_away_first():
    for call, step in enumerate(path_of([5, 4, 3, 4, 5, 6, 7, 8])):
        cond, uncond = raw(step)
        fixed = parse("opposite_guidance(strength=3,until=0.5)").guide(step)
        scale = G if call >= 5 else -3.0
        torch.testing.assert_close(fixed, uncond + scale * (cond - uncond), **CLOSE)
        moving = parse("opposite_guidance(strength=3,until=0.5,dynamic=True)").guide(step)
        scale = G if call >= 3 else -3.0
        torch.testing.assert_close(moving, uncond + scale * (cond - uncond), **CLOSE)


# Attention


def test_guard_repels_by_a_cosine():
    for call in (0, 5, 9):
        step = step_of(call, branches={"attenuated": drawn(300 + call, 2, 4, 8, 8)})
        cond, uncond = raw(step)
        r = 2 * cos(pi * call / 20)
        wanted = uncond + G * (step.raw["attenuated"] - uncond) - r * (cond - uncond)
        torch.testing.assert_close(parse("guard").guide(step), wanted, **CLOSE)


def test_guard_attenuates_spiking_tokens_of_its_own_branch_head_by_head():
    logits = drawn(5, 3, 2, 6, 7)
    made = parse("guard(spike=0.1,factor=0.3)").attention(
        logits, attended(["uncond", "cond", "attenuated"], [1, 4, 4])
    )
    assert torch.equal(made[:2], logits[:2])
    for head in range(2):
        peaks = [max(logits[2, head, :, token].tolist()) for token in range(7)]
        words = torch.tensor(peaks[1:])
        for token in range(7):
            z = (peaks[token] - float(words.mean())) / (float(words.std(correction=1)) + 1e-6)
            factor = 0.3 if token and z > 0.1 else 1.0
            torch.testing.assert_close(made[2, head, :, token], factor * logits[2, head, :, token])


def test_guard_leaves_the_way_up_alone_and_may_look_at_mass():
    logits = drawn(5, 1, 2, 6, 7)
    up = attended(["attenuated"], [4], "up_blocks.1.attentions.0.attn2")
    assert torch.equal(parse("guard").attention(logits, up), logits)
    middle = attended(["attenuated"], [4], "mid_block.attentions.0.attn2")
    by = {text: parse(text).attention(logits, middle) for text in ("guard", "guard(mass=True)")}
    assert not torch.equal(by["guard"], logits)
    assert not torch.equal(*by.values())


def test_rescaling_acts_on_the_prompts_rows_alone():
    logits = drawn(6, 4, 2, 5, 8)
    made = parse("attention_rescaling(strength=0.25)").attention(
        logits, attended(["uncond", "cond", "cond", "attenuated"], [1, 3, 6, 3])
    )
    assert torch.equal(made[[0, 3]], logits[[0, 3]])
    for row, end in ((1, 3), (2, 6)):
        torch.testing.assert_close(made[row, ..., 0], 1.25 * logits[row, ..., 0])
        assert torch.equal(made[row, ..., 1 : end + 1], logits[row, ..., 1 : end + 1])
        assert bool((made[row, ..., end + 1 :] == -torch.inf).all())
    hidden = parse("attention_rescaling(end=True)").attention(
        logits, attended(["cond"] * 4, [3] * 4)
    )
    assert bool((hidden[..., 3:] == -torch.inf).all())
    assert torch.isfinite(hidden[..., :3]).all()


def test_masking_hides_the_end_mark_and_a_share_of_padding():
    logits = drawn(6, 2, 2, 5, 8)
    made = parse("padding_masking(strength=0.5)").attention(
        logits, attended(["cond", "uncond"], [3, 1])
    )
    assert torch.equal(made[1], logits[1])
    gone = (made[0] == -torch.inf).all(dim=0).all(dim=0)
    assert gone.tolist() == [False, False, False, True, False, False, True, True]
    whole = parse("padding_masking(strength=1,end=False)").attention(
        logits[:1], attended(["cond"], [3])
    )
    gone = (whole[0] == -torch.inf).all(dim=0).all(dim=0)
    assert gone.tolist() == [False] * 4 + [True] * 4
