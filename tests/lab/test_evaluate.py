"""The lab's yardsticks, on pictures whose truth is known."""

import numpy as np
import pytest
import torch

from mnemoscope.lab.evaluate import (
    likelihood,
    mistaken,
    pairwise_rmse,
    recognised,
    shows,
    unrelated_threshold,
)
from mnemoscope.lab.scenes import Scenes, render


def test_pairwise_rmse_equals_the_definition() -> None:
    a, b = torch.rand(3, 3, 8, 8), torch.rand(4, 3, 8, 8)
    expected = [[float(((x - y) ** 2).mean() ** 0.5) for y in b] for x in a]
    assert np.allclose(pairwise_rmse(a, b), expected, atol=1e-5)


def test_the_threshold_is_the_quantile_of_unrelated_pairs() -> None:
    images, _ = Scenes(5).batch(120)
    distances = pairwise_rmse(images, images)[tuple(torch.triu_indices(120, 120, 1))]
    # 7,140 pairs: the 0.1 % quantile is the seventh smallest.
    assert unrelated_threshold(120, seed=5) == pytest.approx(float(distances.sort().values[6]))


def test_the_judge_finds_what_a_scene_shows_and_not_what_it_does_not() -> None:
    pictures, captions = Scenes(77, pairs=1.0).batch(48)
    assert float(recognised(pictures, captions).float().mean()) > 0.9
    # Two of 32 emoji would both be among five by chance in 2 % of pictures.
    assert mistaken(pictures, captions) < 0.04


def test_the_judge_finds_nothing_in_backgrounds() -> None:
    layout = Scenes(78).layout(24)
    layout.drawing[:] = -1
    captions = Scenes(79, pairs=1.0).batch(24)[1]
    assert float(recognised(render(layout), captions).float().mean()) < 0.1


def test_an_emoji_is_likely_where_it_is_shown() -> None:
    pictures, captions = Scenes(80).batch(64)
    ratios, here = likelihood(pictures), shows(captions)
    # Both artists may have drawn the same emoji.
    named = [{name.split()[1] for name in caption.split(" and ")} for caption in captions]
    assert here.sum(1).tolist() == list(map(len, named))
    assert float((ratios[here] > 0).float().mean()) > 0.8
    assert float((ratios[~here] < 0).float().mean()) > 0.8
