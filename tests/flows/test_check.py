"""The check of a model: family, levels, parity, price; and that it tells a broken network."""

import pytest
import torch

from mnemoscope.errors import ModelError
from mnemoscope.flows.check import check
from mnemoscope.models import load_model
from tests.tiny import LOADED, PIPELINES, tiny_folder


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


@pytest.mark.parametrize(
    ("name", "family", "guidance", "branches"),
    [
        ("stable-diffusion-3", "stable-diffusion-3", "free", 2),
        ("flux dev", "flux", "embedded", 1),
        ("flux true", "flux", "free", 2),
        ("unconditional ddpm", "unconditional", "none", 1),
        ("dit", "dit", "free", 2),
        ("text-to-image auraflow", "text-to-image", "free", 2),
    ],
)
def test_every_kind_of_guidance(name, family, guidance, branches):
    report = check(load_model(PIPELINES[name](), **LOADED.get(name, {})), steps=8)
    assert report.ok
    assert (report.family, report.guidance) == (family, guidance)
    assert set(report.parity.values()) == {0.0}
    assert set(report.parity) == ({1.0} if guidance == "none" else {1.0, 7.5})
    assert report.network_calls == branches * report.calls
    assert family in str(report)
    assert bool(report.no_uncond) == (branches == 1)
    assert report.no_uncond in str(report)


def test_a_scheduler_that_the_host_cannot_drive():
    report = check(load_model(PIPELINES["unconditional ddpm"]()), "euler", steps=5)
    assert report.parity is None
    assert "euler" in str(report)


def test_ddims_levels(model):
    report = check(model)
    assert report.scheduler == "ddim"
    assert report.first == pytest.approx((0.0760, 0.9971), abs=1e-4)
    assert report.final == pytest.approx((0.99957, 0.02916), abs=1e-5)


def test_a_flow_starts_from_pure_noise():
    report = check(load_model(PIPELINES["stable-diffusion-3"]()))
    assert report.scheduler == "flow-euler"
    assert report.first == (0.0, 1.0)
    assert report.final == (1.0, 0.0)


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
    with pytest.raises(ModelError, match="flow"):
        check(model, "flow-euler")
