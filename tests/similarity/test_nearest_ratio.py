"""The nearest ratio, against its definition in closed form."""

import pytest
import torch

from mnemoscope.data.references import Reference
from mnemoscope.errors import InputError
from mnemoscope.similarity import get_similarity


def _grey(value: float) -> torch.Tensor:
    return torch.full((3, 8, 8), value)


def _references(*values: float) -> list[Reference]:
    return [Reference(f"r{i}", _grey(v)) for i, v in enumerate(values)]


def test_it_is_one_less_the_distance_over_the_smallest_other_one() -> None:
    index = get_similarity("nearest_ratio").index(_references(0.2, 0.5, 0.9))
    # Distances of 0.3 are 0.1, 0.2 and 0.6; of 0.22 they are 0.02, 0.28, 0.68.
    found = index.compare(torch.stack([_grey(0.3), _grey(0.22)]))
    expected = [[1 - 0.1 / 0.2, 1 - 0.2 / 0.1, 1 - 0.6 / 0.1],
                [1 - 0.02 / 0.28, 1 - 0.28 / 0.02, 1 - 0.68 / 0.02]]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=2e-5)
    # The authors' third: the second image is a copy, the first is not.
    assert (found[:, 0] > 2 / 3).tolist() == [False, True]


def test_one_reference_alone_tells_nothing() -> None:
    index = get_similarity("nearest_ratio").index(_references(0.2))
    assert bool(index.compare(_grey(0.2)[None]).isnan().all())


def test_it_takes_no_weights() -> None:
    with pytest.raises(InputError, match="takes no weights"):
        get_similarity("nearest_ratio", weights="x.onnx")
