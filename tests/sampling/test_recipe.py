"""Recipes: what names a way of sampling, and which noise a sample starts from."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from mnemoscope.errors import InputError
from mnemoscope.mitigations.guidance_interval import GuidanceInterval
from mnemoscope.options import help_of
from mnemoscope.sampling.recipe import Recipe, Sampling, seed_of

OTHER = {
    "scheduler": "euler",
    "steps": 49,
    "eta": 0.5,
    "seed": 1,
    "noise": "shared",
    "intervention": GuidanceInterval(),
    "guidance": 3.0,
}


def test_a_recipe_is_a_value():
    one, same = Recipe(steps=7), Recipe(steps=7)
    assert one == same
    assert hash(one) == hash(same)
    assert hash(Recipe(intervention=GuidanceInterval())) == hash(
        Recipe(intervention=GuidanceInterval())
    )
    with pytest.raises(FrozenInstanceError):
        one.steps = 8


def test_it_can_be_printed_and_read_again():
    recipe = Recipe(**OTHER)
    assert eval(repr(recipe), {"Recipe": Recipe, "GuidanceInterval": GuidanceInterval}) == recipe
    row = json.loads(json.dumps(recipe.row))
    assert row == recipe.row
    assert row["intervention"] == "guidance_interval(strength=0.2,stop=1.0)"


def test_every_field_is_an_option_and_part_of_the_name():
    assert {f.name for f in fields(Recipe)} == set(OTHER)
    assert all(help_of(f) for f in fields(Recipe))


@pytest.mark.parametrize("name", OTHER)
def test_the_key_changes_with_every_field(name):
    plain = Recipe()
    other = replace(plain, **{name: OTHER[name]})
    assert other.key != plain.key
    assert other.row[name] != plain.row[name]


def test_the_key_changes_with_a_setting_of_the_intervention():
    keys = {Recipe(intervention=GuidanceInterval(strength=s)).key for s in (0.1, 0.2, 0.3)}
    assert len(keys) == 3


def test_the_key_is_fixed():
    # Another value would part a table from the recipes it was written with.
    assert Recipe(scheduler="ddim").key == "g7.5-b9d6e65a"
    assert Recipe(guidance=1.0).key.startswith("g1-")


def seeds(noise, named):
    recipe = Recipe(noise=noise, seed=5)
    return [recipe.sample_seed(*one) for one in named]


def test_independent_noise_goes_by_prompt_and_index():
    same = seeds("independent", [("a", 0, 1), ("a", 99, 1)])
    assert same[0] == same[1]
    assert len(set(seeds("independent", [("a", 0, 0), ("a", 0, 1), ("b", 0, 0)]))) == 3


def test_shared_noise_goes_by_index_alone():
    same = seeds("shared", [("a", 0, 1), ("b", 7, 1)])
    assert same[0] == same[1]
    assert len(set(seeds("shared", [("a", 0, 0), ("a", 0, 1)]))) == 2


def test_fresh_noise_goes_by_place_so_that_equal_prompts_differ():
    same = seeds("fresh", [("a", 3, 1), ("b", 3, 1)])
    assert same[0] == same[1]
    assert len(set(seeds("fresh", [("a", 0, 0), ("a", 1, 0), ("a", 0, 1)]))) == 3


def test_noise_depends_on_the_seed_and_on_the_policy():
    found = {
        Recipe(noise=noise, seed=seed).sample_seed("a", 0, 0)
        for noise in ("independent", "shared", "fresh")
        for seed in range(3)
    }
    assert len(found) == 9


def test_seeds_stay():
    # Fixed: another value would change every table of every study. SHA-256, halved.
    assert seed_of(0, "p0", 0) == seed_of("0", "p0", "0")
    assert Recipe().sample_seed("p0", 0, 0) == KNOWN >> 1
    assert all(0 <= seed_of(k) < 2**63 for k in range(100))


KNOWN = 0x7D4B28A7FC40A5FC
"""First 16 hex digits of SHA-256 of "0", "p0" and "0", joined by 0x1f."""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"guidance": 0.5}, "1 or more"),
        ({"guidance": float("nan")}, "1 or more"),
        ({"guidance": float("inf")}, "finite"),
        ({"steps": 0}, "steps 0"),
        ({"eta": -1.0}, "eta -1.0"),
        ({"eta": float("nan")}, "eta nan"),
        ({"noise": "share"}, "Did you mean 'shared'"),
    ],
)
def test_values_that_mean_nothing_are_refused(changes, word):
    with pytest.raises(InputError, match=word):
        Recipe(**changes)


def test_sampling_refuses_as_well():
    with pytest.raises(InputError, match="steps"):
        Sampling(steps=0)
