"""The lab's yardsticks, on pictures whose truth is known."""

import numpy as np
import pytest
import torch

from mnemoscope.lab.evaluate import pairwise_rmse, unrelated_threshold
from mnemoscope.lab.scenes import Scenes


def test_pairwise_rmse_equals_the_definition() -> None:
    a, b = torch.rand(3, 3, 8, 8), torch.rand(4, 3, 8, 8)
    expected = [[float(((x - y) ** 2).mean() ** 0.5) for y in b] for x in a]
    assert np.allclose(pairwise_rmse(a, b), expected, atol=1e-5)


def test_the_threshold_is_the_quantile_of_unrelated_pairs() -> None:
    images, _ = Scenes(5).batch(120)
    distances = pairwise_rmse(images, images)[tuple(torch.triu_indices(120, 120, 1))]
    # 7,140 pairs: the 0.1 % quantile is the seventh smallest.
    assert unrelated_threshold(120, seed=5) == pytest.approx(float(distances.sort().values[6]))
