"""Our own guides: identities that follow from their formulas, on made-up calls."""

import json
from dataclasses import replace

import pytest
import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.mitigations import parse
from mnemoscope.mitigations.base import believed, clean_gap, size
from tests.mitigations.steps import G, drawn, step_of

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
KINDS = ("eps", "v", "x0", "flow")


def outputs(step, **clean):
    """Return the raw outputs of clean estimates at a call's state."""
    alpha, sigma = (part.to(step.x) for part in step.point.level)
    return {
        name: step.raw_of(Prediction(x0, (step.x - alpha * x0) / sigma))
        for name, x0 in clean.items()
    }


def calls(kind="eps", *, first, later):
    """Return two calls of a path from clean estimates under the prompt; without it, 0."""
    steps = []
    for at, cond in ((0, first), (3, later)):
        bare = step_of(at, kind=kind, cond=torch.zeros_like(cond), uncond=torch.zeros_like(cond))
        raw = outputs(bare, cond=cond, uncond=torch.zeros_like(cond))
        start = steps[0] if steps else None
        steps.append(
            step_of(at, kind=kind, cond=raw["cond"], uncond=raw["uncond"], x=bare.x, start=start)
        )
    return steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_believer_says_the_same_whatever_the_state(kind):
    step = step_of(2, kind=kind)
    picture = drawn(4, 2, 4, 8, 8)
    said = Prediction.from_raw(kind, believed(step, picture), step.x, step.point.level)
    torch.testing.assert_close(said.x0, picture, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_that_of_clean_estimates_at_the_first_call(kind):
    picture = drawn(4, 2, 4, 8, 8)
    picture[1] *= 0.2
    first, later = calls(kind, first=picture, later=3 * picture)
    torch.testing.assert_close(size(clean_gap(first)), size(picture), **CLOSE)
    for name in ("gated_opposite", "picture_repulsion"):
        used = parse(f"{name}(threshold=0.5,until=1)").guide(later)
        # The second says little at the first call: it is left bit for bit as it is.
        assert torch.equal(used[1], later.guided()[1])
        assert not torch.allclose(used[0], later.guided()[0], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_repulsion_is_opposite_guidance_where_the_prompt_asks_for_the_picture_alone(kind):
    picture = drawn(4, 2, 4, 8, 8)
    for step in calls(kind, first=picture, later=picture):
        torch.testing.assert_close(
            parse("picture_repulsion(strength=3,until=1)").guide(step), step.guided(-3.0), **CLOSE
        )
        torch.testing.assert_close(
            parse("gated_opposite(strength=3,until=1)").guide(step), step.guided(-3.0), **CLOSE
        )


def test_what_else_the_prompt_asks_for_is_guided_in_full():
    picture = drawn(4, 2, 4, 8, 8)
    other = drawn(5, 2, 4, 8, 8)
    along = (other * picture).flatten(1).sum(1) / picture.flatten(1).square().sum(1)
    other = other - along[:, None, None, None] * picture
    _, later = calls(first=picture, later=other)
    used = parse("picture_repulsion(strength=3,until=1)").guide(later)
    torch.testing.assert_close(used, later.guided(), **CLOSE)
    # A half of each: the picture is turned away from, the rest is not touched.
    _, later = calls(first=picture, later=0.5 * picture + other)
    used = parse("picture_repulsion(strength=3,until=1)").guide(later)
    wanted = outputs(later, used=G * other - 3 * 0.5 * picture)["used"]
    torch.testing.assert_close(used, wanted, atol=1e-3, rtol=1e-3)


def test_the_picture_itself_is_never_attracted_to_by_repulsion():
    picture = drawn(4, 2, 4, 8, 8)
    _, later = calls(first=picture, later=-picture)
    torch.testing.assert_close(
        parse("picture_repulsion(strength=3,until=1)").guide(later), later.guided(), **CLOSE
    )


def test_all_end_in_plain_guidance():
    step = step_of(8, start=step_of(0), groups=torch.tensor([0, 0]))
    for name in ("gated_opposite", "picture_repulsion", "seed_consensus"):
        assert torch.equal(parse(f"{name}(until=0.8)").guide(step), step.guided())
        assert not torch.equal(parse(f"{name}(until=0.9)").guide(step), step.guided())


@pytest.mark.parametrize("kind", KINDS)
def test_consensus_is_taken_out_and_turned(kind):
    shared, apart = drawn(4, 1, 4, 8, 8), drawn(5, 1, 4, 8, 8)
    pull = torch.cat([shared + apart, shared - apart])
    _, step = calls(kind, first=pull, later=pull)
    step = replace(step, groups=torch.tensor([7, 7]))
    for strength in (0.0, 1.0):
        used = parse(f"seed_consensus(strength={strength})").guide(step)
        wanted = outputs(step, used=G * (pull - (1 + strength) * shared))["used"]
        torch.testing.assert_close(used, wanted, atol=1e-3, rtol=1e-3)


def test_consensus_acts_on_what_exceeds_the_ordinary():
    shared, apart = drawn(4, 1, 4, 8, 8), drawn(5, 1, 4, 8, 8)
    pull = torch.cat([shared + apart, shared - apart])
    _, step = calls(first=pull, later=pull)
    step = replace(step, groups=torch.tensor([7, 7]))
    rms = float(size(shared))
    assert torch.equal(parse(f"seed_consensus(threshold={1.01 * rms})").guide(step), step.guided())
    used = parse(f"seed_consensus(strength=0,threshold={rms / 4})").guide(step)
    wanted = outputs(step, used=G * (pull - 0.75 * shared))["used"]
    torch.testing.assert_close(used, wanted, atol=1e-3, rtol=1e-3)


def test_prompts_are_apart_and_a_seed_that_is_not_finite_harms_none():
    cond = drawn(6, 5, 4, 8, 8)
    cond[4] = torch.nan
    step = step_of(cond=cond, groups=torch.tensor([0, 1, 0, 1, 1]))
    used = parse("seed_consensus").guide(step)
    alone = step_of(
        cond=cond[[1, 3]],
        uncond=step.raw["uncond"][[1, 3]],
        x=step.x[[1, 3]],
        groups=torch.tensor([3, 3]),
    )
    torch.testing.assert_close(used[[1, 3]], parse("seed_consensus").guide(alone))
    assert torch.isfinite(used[:4]).all()


def test_a_single_seed_is_refused():
    for groups in (None, torch.tensor([0, 1])):
        with pytest.raises(InputError, match="two or more"):
            parse("seed_consensus").guide(step_of(groups=groups))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_is_capped_at_the_band(kind, tmp_path):
    pull = drawn(4, 2, 4, 8, 8)
    pull[1] *= 0.1
    _, step = calls(kind, first=pull, later=pull)
    wide = float(size(pull)[0])
    alpha = float(step.point.level.alpha)
    band = tmp_path / "band.json"
    # Twice as wide at one end as at the other, and as wide as wanted at the call.
    rows = [[alpha - 0.1, 0.3 * wide], [alpha + 0.1, 0.7 * wide]]
    band.write_text(json.dumps({"band": rows}))
    used = parse(f"capped_guidance(strength=2,band={band})").guide(step)
    wanted = outputs(step, used=G * 0.25 * pull)["used"]
    torch.testing.assert_close(used[0], wanted[0], **CLOSE)
    assert torch.equal(used[1], step.guided()[1])
    flat = parse(f"capped_guidance(strength=2,threshold={0.5 * wide})").guide(step)
    torch.testing.assert_close(flat[0], wanted[0], **CLOSE)


@pytest.mark.parametrize(
    "text", ["{}", '{"band": []}', '{"band": [[0.5, 1], [0.5, 2]]}', '{"band": [[0.5, NaN]]}', "["]
)
def test_a_file_that_holds_no_band_is_refused(text, tmp_path):
    (tmp_path / "band.json").write_text(text)
    with pytest.raises(InputError, match="no band"):
        parse(f"capped_guidance(band={tmp_path / 'band.json'})")
