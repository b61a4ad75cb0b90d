"""Where a score lies among ordinary ones, against counting; what is no comparison is refused."""

import numpy as np
import pytest

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError, RunError
from mnemoscope.flows.calibrate import Calibrating, calibrate
from mnemoscope.flows.detect import detect
from mnemoscope.flows.ordinary import Known, Ordinary
from mnemoscope.flows.study import Study, run
from mnemoscope.models import load_model
from mnemoscope.sampling.recipe import Recipe

SMALL = {"seeds": 2, "steps": 3, "detectors": "gap_norm"}


@pytest.fixture(scope="module")
def oracle():
    return load_model("oracle:memorizer")


@pytest.fixture(scope="module")
def known(oracle, tmp_path_factory):
    """Score five prompts that nobody knows, two of them controls."""
    out = tmp_path_factory.mktemp("ordinary") / "run"
    prompts = [
        Prompt(f"q{at}", f"never seen {at}", group="control" if at < 2 else None) for at in range(5)
    ]
    detect(oracle, prompts, out=out, **SMALL)
    return out


def recipe(**changes):
    return Recipe(scheduler="ddim", steps=3, noise="shared", **changes)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 9, 18, 19, 40])
def test_flagged_is_a_conformal_p_value_at_most_the_rate(n, rate):
    rng = np.random.default_rng(n)
    scores = np.sort(rng.normal(size=n))
    ordinary = Ordinary.of(scores[::-1].tolist(), rate)
    for score in (*rng.normal(size=20), *scores):
        above = sum(other < score for other in scores) / n
        assert ordinary.above(score) == above
        p = (1 + sum(other >= score for other in scores)) / (n + 1)
        if 1 / (n + 1) > rate + 1e-12:
            assert ordinary.flagged(score) is None
        else:
            assert ordinary.flagged(score) == (p <= rate + 1e-12)
    assert ("not said" in ordinary.told) == (ordinary.flagged(0.0) is None)


def test_controls_of_a_detection_are_ordinary(oracle, known):
    held = Known.of(known).held(["gap_norm"], oracle.digest, recipe(), 2, 0.5)
    assert len(held["gap_norm"].scores) == 2


def test_all_of_a_detection_without_controls_are(oracle, tmp_path):
    detect(oracle, ["one", "two", "three"], out=tmp_path, **SMALL)
    found = detect(oracle, ["target 0"], ordinary=tmp_path, false_positives=0.25, **SMALL)
    assert len(found.ordinary["gap_norm"].scores) == 3
    assert found.told()["above"].to_pylist() == [1.0]
    assert found.told()["flagged"].to_pylist() == [True]


def test_the_noise_may_differ(oracle, known):
    other = Recipe(scheduler="ddim", steps=3, seed=5)
    assert Known.of(known).held(["gap_norm"], oracle.digest, other, 2, 0.5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"digest": "0" * 64}, "other weights"),
        ({"recipe": recipe(guidance=2.0)}, "guidance: 7.5 there, 2.0 here"),
        ({"seeds": 3}, "scores of 2 seeds, and 3"),
        ({"detectors": ["confidence"]}, "no ordinary prompt that was scored by confidence"),
    ],
)
def test_scores_of_another_question_are_refused(oracle, known, changes, word):
    asked = {
        "detectors": ["gap_norm"], "digest": oracle.digest, "recipe": recipe(), "seeds": 2,
        "rate": 0.5,
    }  # fmt: skip
    with pytest.raises(InputError, match=word):
        Known.of(known).held(**(asked | changes))


def test_it_is_refused_before_anything_is_scored(oracle, known, tmp_path):
    with pytest.raises(InputError, match="guidance"):
        detect(oracle, ["a"], ordinary=known, guidance=2.0, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="no run folder"):
        detect(oracle, ["a"], ordinary=tmp_path / "nothing", **SMALL)


def test_a_calibration_holds_a_threshold(oracle, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"never seen {at}\n" for at in range(4)))
    file = tmp_path / "calibration.json"
    asked = Calibrating("oracle:memorizer", prompts=tmp_path / "list.txt", detector="gap_norm",
                        fpr=0.2, seeds=2, steps=3, out=file)  # fmt: skip
    made = calibrate(asked, model=oracle)
    held = {"ordinary": file, "detectors": "gap_norm", "steps": 3}
    found = detect(oracle, ["target 0", "never seen 9"], seeds=3, **held)
    # The threshold for fewer samples serves more.
    assert found.ordinary["gap_norm"].threshold == made.thresholds[-1].value
    assert found.told()["flagged"].to_pylist() == [True, False]
    assert found.told()["above"].to_pylist() == [None, None]
    with pytest.raises(InputError, match="--detectors gap_norm"):
        detect(oracle, ["a"], **(held | {"detectors": "confidence"}))


def test_a_study_without_images_knows_no_ordinary_prompt(oracle, tmp_path):
    study = Study("oracle:memorizer", seeds=2, steps=3, guidance=(7.5,), noise="shared",
                  prompts=tmp_path / "list.txt", out=tmp_path / "run")  # fmt: skip
    (tmp_path / "list.txt").write_text("target 0\n")
    run(study, model=oracle)
    with pytest.raises(InputError, match="severity"):
        Known.of(tmp_path / "run")
