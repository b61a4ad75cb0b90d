"""Calibration: the threshold holds on further ordinary prompts, and what is too little is told."""

import numpy as np
import pytest

from mnemoscope.errors import InputError
from mnemoscope.flows.calibrate import Calibrating, calibrate
from mnemoscope.flows.detect import detect
from mnemoscope.guarding.calibration import Calibration
from mnemoscope.guarding.live import guard
from mnemoscope.models import load_model
from mnemoscope.ranking.thresholds import conformal, fewest
from tests.tiny import tiny_pipeline


def write(path, count):
    path.write_text("".join(f"caption number {i}\n" for i in range(count)))
    return path


def test_thresholds_are_quantiles_of_the_detectors_scores(tmp_path):
    model = load_model(tiny_pipeline())
    prompts = write(tmp_path / "ordinary.txt", 30)
    out = tmp_path / "calibration.json"
    asked = Calibrating(model="tiny", prompts=prompts, fpr=0.1, seeds=2, steps=4, out=out)
    made = calibrate(asked, model)
    assert Calibration.read(out) == made
    assert [level.seeds for level in made.thresholds] == [1, 2]
    for level in made.thresholds:
        scores = detect(
            model, prompts, detectors=made.detector, seeds=level.seeds, steps=4, noise=asked.noise
        ).of(made.detector)
        assert (scores > level.value).sum() == 3 - 1
        assert level.low <= level.value <= level.high
    with guard(model.pipeline, calibration=out) as watched:
        model.pipeline("caption number 1", num_inference_steps=4, output_type="latent")
    assert watched.records[0].threshold == made.thresholds[0].value


def test_a_further_negative_exceeds_it_as_rarely_as_was_asked():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 100))
    further = rng.normal(size=4000)
    over = (further > conformal(draws[:, :99], 0.05)).mean()
    assert over == pytest.approx(0.05, abs=0.012)
    assert fewest(0.01) == 99
    assert np.isnan(conformal(np.zeros(98), 0.01))


def test_what_is_too_little_is_refused(tmp_path):
    few = write(tmp_path / "few.txt", 20)
    asked = {"model": "oracle:memorizer", "prompts": few, "out": tmp_path / "c.json"}
    with pytest.raises(InputError, match="at least 99"):
        calibrate(Calibrating(**asked))
    with pytest.raises(InputError, match="more than a pipeline's first step"):
        calibrate(Calibrating(**asked, detector="gap_norm:all"))
    with pytest.raises(InputError, match="between 0 and 1"):
        Calibrating(**asked, fpr=1.0)
    assert not (tmp_path / "c.json").exists()
