"""The adversary's view on closed forms: what must come back comes back, what must not does not."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mnemoscope.core.predict import Prediction
from mnemoscope.errors import InputError
from mnemoscope.flows.adversary import Attacking, Seen, attack, metrics, told
from mnemoscope.flows.perturbation import Perturbation
from mnemoscope.mitigations.base import size
from mnemoscope.models import load_model
from mnemoscope.models.oracle import Oracle
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.condition import Condition
from tests.flows.test_bench import known_and_strangers
from tests.mitigations.steps import drawn, start_of

GATE = "gated_opposite(strength=3,threshold=0.4,until=1)"
BELIEF = 6.0
"""How much likelier than any other a prompt takes its target to be, in logarithms."""


@pytest.fixture(scope="module")
def model():
    """Return a memorizer whose prompts only all but rule other pictures out."""
    hard = load_model("oracle:memorizer")
    rows = {"": hard.beliefs[""]}
    for at, name in enumerate(hard.prompts):
        rows[name] = torch.full((9,), -BELIEF)
        rows[name][at] = 0.0
    return Oracle("oracle:memorizer", hard.denoiser, rows, [8])


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversary")
    return attack(
        model,
        known_and_strangers(model, folder),
        mitigations=("none", GATE),
        radii=(0.02, 0.5),
        spaces=("condition",),
        searches=("random", "hide"),
        seeds=2,
        steps=8,
        rounds=4,
        tries=1,
        out=folder / "out",
    )


def value(found, setting, search="none", radius=0.0, metric="back"):
    (row,) = [
        row
        for row in found.rows
        if (row.setting.split("(")[0], row.search, row.radius) == (setting, search, radius)
    ]
    return row.values[metric].value


def test_without_a_mitigation_everything_comes_back(found):
    assert found.prompts == 8
    for search in ("random", "hide"):
        assert value(found, "", search, 0.02, "samples") == 1
    assert value(found, "") == value(found, "", metric="samples") == 1


def test_a_gate_is_passed_by_who_looks_for_the_way_and_not_by_who_hardly_moves(found):
    shut = value(found, "gated_opposite", metric="samples")
    # Turned away from their target, a few samples end on another one.
    assert shut < 0.2
    assert value(found, "gated_opposite", "random", 0.02, "samples") == shut
    chance, found_out = (
        value(found, "gated_opposite", search, 0.5, "samples") for search in ("random", "hide")
    )
    assert found_out > chance + 0.2
    assert value(found, "gated_opposite", "hide", 0.5) == 1


def test_the_folder_holds_what_is_said(found):
    rows = pq.read_table(found.path / "adversary.parquet")
    assert rows.schema.equals(TABLES["adversary"].schema)
    # Two radii of two searches and none, two mitigations, four metrics.
    assert rows.num_rows == 5 * 2 * 4
    assert {row["prompts"] for row in rows.to_pylist()} == {8}
    text = (found.path / "adversary.md").read_text()
    assert text == told(found)
    assert text.count("| hide |") == 4


def test_what_a_try_hides_it_must_bring_back_itself():
    first = Seen(np.array([1.0, 0.0, 0.5, np.nan]), np.array([9.0, 0.0, 0.0, 0.0]))
    second = Seen(np.array([0.0, 0.0, 0.0, np.nan]), np.array([0.0, 0.0, 9.0, 0.0]))
    got = {name: one.value for name, one in metrics([first, second], 1.0).items()}
    # The first prompt copies in one try and hides in the other; the last is not judged.
    assert got == pytest.approx({"samples": 0.25, "back": 2 / 3, "hidden": 1.0, "both": 1 / 3})


def linear(x, condition, rows):
    """Return clean estimates that a prompt's embedding adds to, and its noise scales."""
    states = condition.parts["states"]
    pull = states.sum(dim=(1, 2))[:, None, None, None] * torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    return Prediction(pull * (1 + x.square().mean(dim=(1, 2, 3), keepdim=True)), x)


def begun():
    cond = Condition.of(drawn(5, 2, 6, 3) + 1)
    blank = Condition.of(torch.zeros(2, 6, 3))
    return start_of(["a cat", "a dog"], linear, cond=cond, uncond=blank)


def changed(start, **settings):
    one = Perturbation(**settings)
    return one.condition(start).embedding, one.noise(start)


@pytest.mark.parametrize("search", ["random", "hide", "recall"])
def test_changes_stay_within_the_radius(search):
    start = begun()
    before = start.cond.embedding
    after, noise = changed(start, search=search, radius=0.3)
    assert torch.equal(noise, start.noise)
    moved = (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
    assert (moved <= 0.3 * (1 + 1e-5)).all()
    if search == "random":
        torch.testing.assert_close(moved, torch.full((2,), 0.3))
    same, noise = changed(start, space="noise", search=search, radius=0.3)
    assert torch.equal(same, before)
    # What is drawn lies at about a right angle in many dimensions; in 16, less so.
    cosine = torch.cosine_similarity(noise.flatten(1), start.noise.flatten(1))
    assert (cosine > 0.8).all()
    fresh = changed(start, space="noise", search=search, radius=1.0)[1]
    torch.testing.assert_close(fresh.flatten(1).norm(dim=1), torch.full((2,), 4.0))


def test_searches_reach_their_ends_better_than_chance():
    start = begun()

    def score(cond):
        return size(linear(start.noise, start.cond.embedded(cond), None).x0)

    plain = score(start.cond.embedding)
    by = {
        name: score(changed(start, search=name, radius=0.3, rounds=20)[0])
        for name in ("random", "hide", "recall")
    }
    # The score is |sum of the embedding| times a constant: the steepest way is along ones.
    total = start.cond.embedding.sum(dim=(1, 2)).abs()
    least = 0.3 * start.cond.embedding.flatten(1).norm(dim=1) * 18**0.5
    torch.testing.assert_close(by["hide"], plain * (1 - least / total), rtol=0.02, atol=1e-3)
    assert (by["hide"] < by["random"]).all()
    torch.testing.assert_close(by["recall"], plain * (1 + least / total), rtol=0.02, atol=1e-3)


def test_draws_differ_and_repeat():
    start = begun()
    first, again, other = (
        changed(start, search="random", draw=draw, radius=0.3)[0] for draw in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_means_nothing_is_refused():
    with pytest.raises(InputError, match="Did you mean 'noise'"):
        Attacking(spaces=("noisy",))
    with pytest.raises(InputError, match="radius 2"):
        Attacking(spaces=("noise",), radii=(2.0,))
    with pytest.raises(InputError, match="tries 0"):
        Attacking(tries=0)
    with pytest.raises(InputError, match="Did you mean"):
        attack("oracle:memorizer", mitigations=("gard",))
