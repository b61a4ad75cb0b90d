"""The check of a model: levels, parity, price; and that it tells a broken network."""

import pytest
import torch

from mnemoscope.flows.check import check
from mnemoscope.errors import ModelError
from mnemoscope.models import load_model
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_folder(tmp_path_factory.mktemp("tiny") / "m")))


@pytest.mark.parametrize(("name", "calls"), [("ddim", 50), ("pndm", 51), ("heun", 99)])
def test_a_sound_model(model, name, calls):
    report = check(model, name, 50)
    assert report.ok
    assert report.parity == {1.0: 0.0, 7.5: 0.0}
    assert report.calls == calls == len(report.log_snr)
    assert report.network_calls == 2 * calls
    assert report.seconds > 0
    assert "bit for bit" in str(report)
    assert report.digest[:16] in str(report)


def test_ddims_levels(model):
    report = check(model)
    assert report.first == pytest.approx((0.0760, 0.9971), abs=1e-4)
    assert report.final == pytest.approx((0.99957, 0.02916), abs=1e-5)


def test_an_oracle_has_no_host():
    report = check(load_model("oracle:memorizer"), steps=2)
    assert report.parity is None
    assert report.ok
    assert "no host pipeline" in str(report)


def test_a_network_that_returns_nan_is_not_ok(model):
    weight = model.pipeline.unet.conv_out.weight
    kept = weight.clone()
    weight.fill_(torch.nan)
    try:
        report = check(model, steps=5)
    finally:
        weight.copy_(kept)
    assert not report.finite
    assert not report.ok


def test_unknown_scheduler(model):
    with pytest.raises(ModelError, match="'ddim'"):
        check(model, "dim")
