"""Forgetting: a pipeline on disk, without what was asked for, by either method."""

import pytest
import torch

from mnemoscope.errors import InputError
from mnemoscope.flows.forget import Forgetting, forget
from mnemoscope.models import load_model
from tests.tiny import tiny_pipeline

OWN = {"model": "mine", "prompt": ("a cat",), "steps": 4, "seeds": 2}


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_pipeline(sample_size=16), device="cpu")


@pytest.mark.parametrize("method", ["weights", "neurons"])
def test_what_is_left_is_saved_and_loads(model, method, tmp_path):
    ordinary = tmp_path / "ordinary.txt"
    ordinary.write_text("a dog\na bird\n")
    asked = Forgetting(
        **OWN, method=method, strength=0.1, limit=-1.0, ordinary=ordinary, out=tmp_path / "less"
    )
    left = forget(asked, model)
    assert left.told.split()[1] in ("of", "neurons")
    again = load_model(str(tmp_path / "less"), device="cpu")
    first, second, saved = (
        torch.cat([part.flatten() for part in one.denoiser.network.parameters()])
        for one in (model, left.model, again)
    )
    assert torch.equal(second, saved)
    # What differs is at 0.
    assert int((first != second).sum()) > 0
    assert not second[first != second].any()
    with pytest.raises(InputError, match="holds something"):
        forget(asked, model)


def test_senseless_options_are_refused():
    with pytest.raises(InputError, match="nothing to forget"):
        Forgetting(model="mine")
    with pytest.raises(InputError, match="Did you mean 'neurons'"):
        Forgetting(**OWN | {"method": "neuron"})
    with pytest.raises(InputError, match="one or the other"):
        Forgetting(**OWN, prompts="a.txt")
    with pytest.raises(InputError, match="--ordinary"):
        forget(Forgetting(**OWN), load_model("oracle:mixture"))
