"""Laws: the measures against slow routes, on samples of which the answer is known."""

import math

import numpy as np
import pytest
import torch

from mnemoscope.core.panels import BarPanel, CurvePanel
from mnemoscope.lab.kept import Kept
from mnemoscope.lab.laws import (
    Laws,
    copies,
    energy,
    estimate,
    labelled_of,
    passing,
    sizes_of,
    slope,
)
from mnemoscope.lab.planted import load_planted
from mnemoscope.lab.small import Drawn, Lesson, pictures_of
from mnemoscope.models.shipped import EVALUATION

SAMPLES = 24


def _drawn(lesson: Lesson, onset: int, step: int) -> Drawn:
    """Return samples that are copies from a step on, and other pictures before."""
    copied = pictures_of(lesson.half, lesson.pictures)
    new = pictures_of(3, SAMPLES)
    at = torch.arange(SAMPLES) % lesson.pictures
    # The loss on other pictures turns where memorizing begins.
    unseen = torch.full((4,), abs(math.log(step / onset)))
    return Drawn(step, copied[at] * 0.98 if step >= onset else new, torch.zeros(4), unseen)


def _found(sizes: dict[int, int], looks=(50, 100, 200, 400, 800, 1600)):
    found = {
        lesson: [_drawn(lesson, onset, step) for step in looks]
        for n, onset in sizes.items()
        for lesson in (Lesson(n), Lesson(n, 1))
    }
    n = max(sizes)
    return found | {Lesson(n, labelled=True): [_drawn(Lesson(n), 100, step) for step in looks]}


def test_copies_equal_a_slow_route() -> None:
    known, new = pictures_of(0, 12), pictures_of(2, 8)
    between = 0.5 * known[:4] + 0.5 * known[4:8]
    # As far from its own as a part of the way to another picture.
    moved = torch.cat([torch.lerp(known[:4], known[4:8], share) for share in (0.1, 0.2, 0.3, 0.4)])
    samples = torch.cat([known[:4], new, between, moved])
    expected = []
    for sample in samples.double():
        distances = sorted(float((sample - one).square().sum().sqrt()) for one in known.double())
        expected.append(3 * distances[0] < distances[1])
    found = copies(samples, known)
    assert found.tolist() == expected
    assert found[:4].all()
    assert not found[4:16].any()
    assert 0 < found[16:].mean() < 1


def test_pictures_that_were_not_learned_are_not_copied() -> None:
    for n in (8, 64):
        assert copies(pictures_of(2, 128), pictures_of(0, n)).mean() <= 0.02


def test_a_level_is_passed_between_two_looks() -> None:
    steps = np.array([10.0, 100.0, 1000.0])
    values = np.array([[0.0, 0.25, 0.75], [0.0, 0.1, 0.2], [0.9, 1.0, 1.0]])
    found = passing(steps, values, 0.5)
    assert found[0] == pytest.approx(10**2.5)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(10)


def test_the_slope_is_that_of_numpy() -> None:
    sizes = [8, 16, 32, 64]
    steps = 30 * np.array(sizes) ** 0.9 * np.array([[1.1, 0.9, 1.0, 1.2], [1.0, 1.0, 1.0, 1.0]])
    expected = [np.polyfit(np.log(sizes), np.log(row), 1)[0] for row in steps]
    assert slope(sizes, steps) == pytest.approx(expected)
    assert math.isnan(slope(sizes, np.array([[1.0, 2.0, np.nan, 4.0]]))[0])


def test_the_distance_to_scenes_equals_sums_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, scenes = (torch.randn(n, 4, generator=generator) for n in (5, 7))

    def gap(a, b) -> float:
        return float((a - b).square().mean().sqrt())

    def mean(pairs) -> float:
        values = [gap(a, b) for a, b in pairs]
        return sum(values) / len(values)

    across = mean([(s, x) for s in samples for x in scenes])
    own, theirs = (
        mean([(a, b) for i, a in enumerate(part) for j, b in enumerate(part) if i != j])
        for part in (samples, scenes)
    )
    found = energy(np.full((1, 5), 0.2), samples, scenes)
    assert found[0] == pytest.approx(2 * across - own - theirs, abs=1e-6)
    # The weights of a resample that holds the first sample three times and the second twice.
    found = energy(np.array([[0.6, 0.4, 0, 0, 0]]), samples, scenes)
    three = mean([(samples[i], x) for i in (0, 0, 0, 1, 1) for x in scenes])
    apart = gap(samples[0], samples[1])
    assert found[0] == pytest.approx(2 * three - apart - theirs, abs=1e-6)


def test_an_interval_over_samples_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=100)
    found = estimate(lambda weights: weights @ values, 100, "mean")
    assert found.value == pytest.approx(values.mean())
    # Two standard errors either way, as a normal mean has it.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 10, rel=0.1)


def test_onsets_in_proportion_to_the_pictures_are_found() -> None:
    found = _found({4: 100, 8: 200, 16: 400, 32: 9999})
    laws = Laws(sizes_of(found), labelled_of(found), {}, ())
    assert [size.pictures for size in laws.reached] == [4, 8, 16]
    told = {law: shown for law, shown, _ in laws.rows()}
    assert told["slope of log onset in log N (N = 4, 8, 16)"].startswith("1.000 [1.000, 1.000]")
    turned = [told[f"step at which the loss on other pictures is least, N = {n}"] for n in (4, 8)]
    assert turned == ["100", "200"]
    assert told["share at the end, N = 16; of pictures not learned"].startswith("1.000")
    assert told["share at the end, N = 32; of pictures not learned"].startswith("0.000")
    assert told["share at the end, N = 32, without and with labels"].split("; ")[1][:5] == "1.000"
    # Copies of disjoint sets have nothing to do with each other, equal samples everything.
    copied, equal = (told[f"agreement of two networks, N = {n}; from different noise"]
                     for n in (16, 32))  # fmt: skip
    assert abs(float(copied[:5])) < 0.3
    assert equal.startswith("1.000")


def test_figures_show_what_is_there() -> None:
    import json

    found = _found({4: 100, 8: 200})
    rows = [row for row in load_planted() if row.family == "verbatim"][::4]
    kept = [Kept(step, rows, np.ones((len(rows), 1), dtype=bool)) for step in (400, 800)]
    evaluation = json.loads(EVALUATION.read_text("utf-8"))
    laws = Laws(sizes_of(found), labelled_of(found), evaluation, kept)
    told = {law: shown for law, shown, _ in laws.rows()}
    assert told["onset of pictures seen 384 times in all"].startswith("400.000")
    drawn = laws.figures()
    assert {name: [type(panel) for panel in panels] for name, panels in drawn.items()} == {
        "laws-onset": [CurvePanel] * 3,
        "laws-pictures": [CurvePanel, BarPanel, CurvePanel],
        "laws-dose": [CurvePanel] * 3,
    }
    dose = drawn["laws-dose"][0]
    assert isinstance(dose, CurvePanel)
    for series in dose.series:
        groups = [g for g in evaluation["groups"] if g["family"] == "verbatim"
                  and g["kind"] in series.label]  # fmt: skip
        assert series.x.tolist() == [g["repetitions"] for g in groups]
        assert series.y.tolist() == pytest.approx([g["reproduced"] for g in groups])
        assert series.low is not None
        assert bool(np.all(series.low <= series.y))
    assert Laws([], [], {}, ()).figures() == {}
