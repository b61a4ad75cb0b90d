"""Variants of released codes differ from the correct form as said."""

import numpy as np
import torch

from benchmarks.released import RELEASED, VARIANTS
from mnemoscope.detectors import all_detectors
from mnemoscope.flows.detect import detect
from mnemoscope.models import load_model
from tests.tiny import tiny_pipeline

PROMPTS = ["a cat", "a dog on the moon"]
SEEDS, STEPS = 3, 12


def test_each_stands_beside_a_detector_of_the_package():
    known = {detector.name for detector in all_detectors()}
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) == 5
    for variant in VARIANTS:
        assert variant.name.removesuffix(RELEASED) in known
        assert variant.name not in known
        assert variant.formula not in {detector.formula for detector in all_detectors()}


def test_they_differ_from_the_correct_form_as_said():
    model = load_model(tiny_pipeline("v_prediction"), device="cpu")
    names = ["gap_norm", "confidence", "sharpness", "attention_entropy:path",
             "anisotropy:norm", "anisotropy:cosine"]  # fmt: skip
    found = detect(model, PROMPTS, detectors=[*names, *VARIANTS], seeds=SEEDS, steps=STEPS)
    fewer = detect(model, PROMPTS, detectors=names, seeds=2, steps=STEPS)

    def released(name: str) -> np.ndarray:
        return found.of(name + RELEASED)

    # Seed s means the same noise however many there are, so means tell what the last one had.
    last = SEEDS * found.of("confidence") - 2 * fewer.of("confidence")
    np.testing.assert_allclose(released("confidence"), last, rtol=1e-4)
    root = np.sqrt(SEEDS) * found.of("gap_norm")
    # A root of squares is at least the mean, and equals it only where all seeds agree.
    assert (released("gap_norm") > root).all()
    np.testing.assert_allclose(released("gap_norm"), root, rtol=0.05)
    rounded = released("sharpness")
    assert (rounded == torch.from_numpy(rounded).bfloat16().double().numpy()).all()
    np.testing.assert_allclose(released("sharpness"), found.of("sharpness"), rtol=2**-7)
    sigma = float(found.of("gap_norm")[0] / found.of("anisotropy:norm")[0])
    whole = sigma * found.of("anisotropy:norm") + 2 * found.of("anisotropy:cosine")
    np.testing.assert_allclose(released("anisotropy"), whole, atol=1e-3)
    # Each part is rounded, not their sum: what is left of it is a number of eight digits.
    cosine = torch.from_numpy(found.of("anisotropy:cosine")).bfloat16().double().numpy()
    left = released("anisotropy") - 2 * cosine
    np.testing.assert_array_equal(left, torch.from_numpy(left).bfloat16().double().numpy())
    assert sigma < 1
    entropies = released("attention_entropy:path"), found.of("attention_entropy:path")
    assert (entropies[0] <= entropies[1] + 1e-9).all()
