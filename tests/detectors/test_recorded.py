"""Published scores equal recorded values: of their authors' code, or of the formula written out.

`recorded.json` says of each score which of the two; neither was computed by this package.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.detectors import all_detectors, get_detector
from mnemoscope.detectors.edge_consistency import slope
from mnemoscope.evidence import Bank, Evidence
from mnemoscope.evidence.pieces.end_attention import EndAttention
from mnemoscope.evidence.pieces.gap_maps import GapMaps
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.pieces.text import Text, TextFacts
from mnemoscope.evidence.pieces.token_attention import TokenAttention
from mnemoscope.evidence.values import LatentMaps
from mnemoscope.flows.detect import detect
from mnemoscope.sampling.condition import Condition
from tests.detectors import toy

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
PARTS = ("slope",)
"""Recorded parts of a score."""
BY_HAND = (
    "noise_similarity", "attention_entropy", "attention_entropy:path", "bright_ending",
    "bright_ending:attention",
)  # fmt: skip
ON_PATH = sorted(set(RECORDED) - set(BY_HAND) - set(PARTS))
ELSEWHERE = {"local_severity", "seed_agreement:sscd", "sharpness:difference", "update_band"}
"""Scores after others' ideas, or of a network that is not here, which other tests hold."""


def large() -> tuple[Tensor, Tensor]:
    """Return noise estimates and states of latents that allow three scales."""
    shape = (2, 3, 4, 48, 48)
    common = toy.waves(2, 1, *shape[2:], pitch=0.013)
    return common + 0.3 * toy.waves(*shape, pitch=1.9), 0.4 * toy.waves(*shape, pitch=0.77)


def seen() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return attention to tokens, to the end token, squared gaps and lengths in tokens."""
    tokens = torch.softmax(2 * toy.waves(2, 3, 10, 5, 9, pitch=1.3), dim=-1)
    mask = (toy.waves(2, 3, 8, 8, pitch=0.6) + 1.1) / 9
    square = toy.waves(2, 3, 10, 8, 8, pitch=0.47).square() * 4
    return tokens, mask, square, torch.tensor([5.0, 2.0], dtype=torch.float64)


class Earlier:
    """The toy network, which knows no prompt: every one is of the third branch."""

    name = "oracle:toy-before"

    def __init__(self) -> None:
        self.model = toy.toy()

    def __getattr__(self, name):
        return getattr(self.model, name)

    def encode_prompts(self, texts, guidance=1.0) -> Condition:
        return self.model.encode_prompts(["nothing known"] * len(texts))


@pytest.fixture(scope="module")
def scores():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mnemoscope.evidence.bank.initial_noise",
            lambda generators, shape, device: toy.noise(
                [g.initial_seed() for g in generators]
            ).float(),
        )
        patch.setattr(Bank, "signs", lambda self, name, probes: toy.signs(name, probes))
        yield detect(
            toy.toy(), toy.prompts(), detectors=ON_PATH, earlier=Earlier(),
            seeds=toy.SEEDS, steps=toy.STEPS, guidance=toy.GUIDANCE,
        )  # fmt: skip


@pytest.mark.parametrize("name", ON_PATH)
def test_score_is_the_recorded_one(scores, name):
    # The network is evaluated in float32 states on six steps of a nonlinear path.
    np.testing.assert_allclose(scores.of(name), RECORDED[name]["values"], rtol=2e-4, atol=1e-7)


def by_hand() -> Evidence:
    """Return evidence of a network with attention, and of larger latents."""
    eps, x = large()
    tokens, mask, square, counts = seen()
    level = Level(*torch.tensor([0.6, 0.8], dtype=torch.float64))
    pieces = {
        Maps("first"): LatentMaps(level, x, eps, eps, x, x),
        TokenAttention(1): tokens[:, :, :1],
        TokenAttention(None): tokens,
        Text(): TextFacts(("a", "b"), counts, (False, False), {}),
        EndAttention(): mask,
        GapMaps(): square,
    }
    return Evidence(2, 3, pieces)


@pytest.mark.parametrize("name", BY_HAND)
def test_score_of_given_evidence_is_the_recorded_one(name):
    found = get_detector(name).score(by_hand())
    # torchmetrics computes in the precision it is given; both are float64 here.
    np.testing.assert_allclose(found, RECORDED[name]["values"], rtol=1e-6)


def test_slope_blurs_across_channels():
    edges = toy.waves(3, 3, 24, 20, pitch=0.9) > 0.2
    pictures = edges * toy.waves(3, 3, 24, 20, pitch=0.31).abs()
    found = slope(pictures)[:, ::5, ::7].flatten()
    np.testing.assert_allclose(found, RECORDED["slope"]["values"], rtol=1e-9)


def test_every_published_score_is_recorded():
    published = {d.name for d in all_detectors() if not d.source.startswith("ours")}
    assert published - ELSEWHERE <= set(RECORDED)
    assert all(record["from"] for record in RECORDED.values())
