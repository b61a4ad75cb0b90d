"""Units, seeds and shared material of a plan."""

import pytest
import torch

from mnemoscope.errors import InputError, ModelError
from mnemoscope.models import load_model
from mnemoscope.plan import make_library, make_plan, reference_mean, seconds_a_row
from mnemoscope.data.prompts import Prompt


@pytest.fixture(scope="module")
def model():
    return load_model("oracle:memorizer", device="cpu")


def plan_of(model, count=20, **changes):
    prompts = tuple(Prompt(f"p{k}", f"text {k}") for k in range(count))
    options = {
        "seeds": 2,
        "guidance": (1.0, 7.5),
        "steps": 5,
        "scheduler": "ddim",
        "seed": 0,
        "shared_noise": False,
        "probes": True,
        "similarity": ("l2",),
        "sscd": None,
        "batch": None,
    }
    return make_plan(model, prompts, make_library(prompts, 8), **(options | changes))


def test_units_cover_every_prompt_at_every_guidance_once(model):
    plan = plan_of(model)
    cells = [(p.prompt_id, unit.guidance) for unit in plan.units for p in unit.prompts]
    assert len(cells) == len(set(cells)) == 40
    assert len({unit.name for unit in plan.units}) == len(plan.units)
    probed = [p.prompt_id for unit in plan.units if unit.probed for p in unit.prompts]
    assert len(probed) == len(set(probed)) == 20


def test_units_do_not_depend_on_batch(model):
    assert plan_of(model, batch=1).units == plan_of(model, batch=32).units


def test_units_keep_the_tape_small(model):
    units = plan_of(model, seeds=20_000).units
    assert {len(unit.prompts) for unit in units} == {1}


def test_seeds_of_samples_differ_and_stay(model):
    plan = plan_of(model)
    seeds = {plan.sample_seed(f"p{k}", s) for k in range(20) for s in range(10)}
    assert len(seeds) == 200
    # Fixed: another value would change every table of every study.
    assert plan.sample_seed("p0", 0) == plan_of(model).sample_seed("p0", 0)
    shared = plan_of(model, shared_noise=True)
    assert shared.sample_seed("p0", 1) == shared.sample_seed("p1", 1)
    assert shared.sample_seed("p0", 1) != shared.sample_seed("p0", 2)


def test_reference_mean_does_not_depend_on_batch(model):
    means = [reference_mean(model, plan_of(model, batch=batch)) for batch in (7, 32)]
    torch.testing.assert_close(*means, atol=5e-6, rtol=0)


def test_a_call_takes_time(model):
    assert 0 < seconds_a_row(model, plan_of(model)) < 1


def test_shared_images_are_known_once():
    image, other = torch.rand(3, 8, 8), torch.rand(3, 20, 30)
    prompts = (
        Prompt("a", "a", images=(image, other)),
        Prompt("b", "b", images=(image,), group="control"),
        Prompt("c", "c", images=(torch.rand(3, 8, 8),), group="control"),
        Prompt("d", "d"),
    )
    library = make_library(prompts, 8)
    assert library.own == {"a": (0, 1), "b": (0,), "c": (2,), "d": ()}
    assert library.rows[0]["prompt_ids"] == ["a", "b"]
    assert (library.rows[1]["height"], library.rows[1]["width"]) == (20, 30)
    assert library.references[1].pixels.shape == (3, 8, 8)
    # What one prompt was trained on was trained on, whoever else calls it a control.
    assert library.trained == (True, True, False)


def test_guidance_needs_an_unconditional_branch():
    model = load_model("oracle:memorizer", device="cpu")
    model.has_uncond = False
    with pytest.raises(ModelError, match="--guidance 1"):
        plan_of(model)


def test_batch_must_be_positive(model):
    with pytest.raises(InputError, match="batch 0"):
        plan_of(model, batch=0)
