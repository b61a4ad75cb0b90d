"""The lab's yardsticks, on pictures whose truth is known."""

import numpy as np
import pytest
import torch

from mnemoscope.data.images import thumbnail
from mnemoscope.errors import InputError
from mnemoscope.lab.evaluate import drawn_in, nearest_threshold, pairwise_rmse, unrelated_threshold
from mnemoscope.lab.planted import load_planted
from mnemoscope.lab.scenes import Scenes
from tests.reporting import world
from tests.views import recipe_of


def test_pairwise_rmse_equals_the_definition() -> None:
    a, b = torch.rand(3, 3, 8, 8), torch.rand(4, 3, 8, 8)
    expected = [[float(((x - y) ** 2).mean() ** 0.5) for y in b] for x in a]
    assert np.allclose(pairwise_rmse(a, b), expected, atol=1e-5)


def test_the_threshold_is_the_quantile_of_unrelated_pairs() -> None:
    images, _ = Scenes(5).batch(120)
    distances = pairwise_rmse(images, images)[tuple(torch.triu_indices(120, 120, 1))]
    # 7,140 pairs: the 0.1 % quantile is the seventh smallest.
    assert unrelated_threshold(120, seed=5) == pytest.approx(float(distances.sort().values[6]))


def test_one_fresh_scene_in_a_hundred_is_near_some_picture_by_chance() -> None:
    shown, _ = Scenes(6).batch(40)
    threshold = nearest_threshold(shown, scenes=300, seed=7)
    nearest = pairwise_rmse(Scenes(7).batch(300)[0], shown).amin(1)
    assert float((nearest < threshold).float().mean()) == pytest.approx(0.01, abs=1 / 300)
    # More pictures, a nearer one.
    assert nearest_threshold(torch.cat([shown, Scenes(8).batch(300)[0]]), 300, 7) < threshold


def test_a_studys_samples_are_taken_as_they_were_drawn(tmp_path) -> None:
    planted = load_planted()[:3]
    drawn = torch.rand(3, 2, 3, 64, 64).mul(255).round() / 255
    blank = {"status": "ok", "reason": None, "network_calls": 1, "seconds": 0.1}
    rows = {name: part for name, part in world.rows().items() if name == "recipes"}
    rows["prompts"] = [
        world.rows()["prompts"][0] | {"prompt_id": row.id, "prompt": row.caption} for row in planted
    ]
    rows["samples"] = [
        {"prompt_id": row.id, "seed": seed, "recipe": recipe_of(7.5), **blank}
        | {"image": thumbnail(drawn[i, seed])}
        for i, row in enumerate(planted)
        for seed in range(2)
    ]
    run = world.write(tmp_path / "run", rows)
    found = drawn_in(run, planted[::-1], 7.5)
    assert found is not None
    assert torch.equal(found, drawn.flip(0))
    assert drawn_in(run, planted, 3.0) is None
    with pytest.raises(InputError, match="holds no sample of"):
        drawn_in(run, load_planted()[:4], 7.5)
