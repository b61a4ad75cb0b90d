"""Severity against numpy and scipy, and worlds in which the right answer is known."""

import math
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mnemoscope.data.images import decode, pixels_id, thumbnail
from mnemoscope.runs.tables import TABLES
from mnemoscope.severity import grade
from mnemoscope.severity import null as null_module
from mnemoscope.severity.grade import assess, image_severity, severities
from mnemoscope.severity.null import Null
from mnemoscope.similarity import get_similarity
from mnemoscope.similarity import pixels as pixels_module
from tests.severity.chance import chance
from tests.views import view


def null(measure="l2", own=0.8, nearest=0.9):
    """Make two nulls with given thresholds."""
    made = []
    for relation, threshold in (("own", own), ("nearest", nearest)):
        made.append(
            Null(
                measure, relation, 9999, 0.0, 0.0, 0.0, 0.0, 0.0, threshold, 1e-3, "order statistic"
            )
        )
    return made


def sample(seed, status="ok", prompt="p", guidance=7.5):
    return {"prompt_id": prompt, "seed": seed, "guidance": guidance, "status": status}


def similar(seed, value, reference="r", relation="own", measure="l2", prompt="p"):
    return {
        "prompt_id": prompt,
        "seed": seed,
        "guidance": 7.5,
        "measure": measure,
        "reference_id": reference,
        "relation": relation,
        "value": value,
    }


# --- severity ---------------------------------------------------------------------------------


def test_image_severity_is_the_closest_own_image():
    values = np.array([[0.1, 0.9, 0.5], [0.7, np.nan, 0.99], [np.nan, np.nan, 0.4]])
    got = image_severity(values, np.array([True, True, False]))
    np.testing.assert_array_equal(got, [0.9, 0.7, np.nan])
    assert np.isnan(image_severity(values, np.zeros(3, bool))).all()


def test_prompt_severity_reduces_over_ok_seeds():
    values = {0: 0.95, 1: 0.5, 2: 0.85, 3: 0.99}
    rows = [similar(s, v) for s, v in values.items()] + [similar(0, 0.2, "r2")]
    samples = [sample(s, "nonfinite" if s == 3 else "ok") for s in values]
    (got,) = severities(samples, rows, null())
    assert (got.n, got.excluded) == (3, 1)
    assert got.mean == pytest.approx(np.mean([0.95, 0.5, 0.85]))
    assert got.max == 0.95
    assert got.share == pytest.approx(2 / 3)
    assert (got.threshold, got.grade, got.nearest_reference_id) == (0.8, "matching verbatim", "r")


def test_prompts_and_guidances_stay_apart():
    samples = [sample(0), sample(0, prompt="q"), sample(0, guidance=1.0)]
    rows = [similar(0, 0.9), similar(0, 0.3, prompt="q")]
    got = {(s.prompt_id, s.guidance): s for s in severities(samples, rows, null())}
    assert got["p", 7.5].share == 1
    assert got["q", 7.5].share == 0
    assert math.isnan(got["p", 1.0].mean)
    assert got["p", 1.0].grade is None


def test_recipes_at_one_guidance_stay_apart():
    samples = [sample(0) | {"recipe": name} for name in ("plain", "guarded")]
    # Where a recipe is named, it is the key; a guidance scale beside it adds nothing.
    values = {"plain": 0.9, "guarded": 0.3}
    rows = [similar(0, value) | {"recipe": name} for name, value in values.items()]
    del rows[1]["guidance"]
    got = {s.recipe: s for s in severities(samples, rows, null())}
    assert {name: one.share for name, one in got.items()} == {"plain": 1, "guarded": 0}
    assert {one.guidance for one in got.values()} == {7.5}


@pytest.mark.parametrize(
    ("own", "nearest", "template_own", "template_other", "expected"),
    [
        (0.95, 0.95, 0.95, 0.95, "template verbatim"),
        (0.95, 0.95, None, 0.95, "template verbatim"),
        (0.95, 0.95, None, 0.85, "matching verbatim"),
        (0.85, None, None, None, "matching verbatim"),
        (0.7, 0.95, None, None, "retrieved verbatim"),
        # 0.85 would match an own image; the nearest of many must be closer.
        (0.7, 0.85, None, None, "none"),
        (None, 0.95, None, None, "retrieved verbatim"),
        (None, 0.1, None, None, "none"),
        (0.8, 0.9, None, None, "none"),
    ],
)
def test_grades_follow_websters_order(own, nearest, template_own, template_other, expected):
    rows = []
    for value, reference, relation, measure in (
        (own, "r", "own", "l2"),
        (nearest, "other", "nearest", "l2"),
        (template_own, "t", "own", "masked_l2"),
        (template_other, "u", "nearest", "masked_l2"),
    ):
        if value is not None:
            rows.append(similar(1, value, reference, relation, measure))
    first, _ = severities([sample(0), sample(1)], rows, [*null(), *null("masked_l2")])
    assert (first.measure, first.grade) == ("l2", expected)


def test_an_own_image_is_never_retrieved():
    rows = [similar(0, 0.7), similar(0, 0.95, "r", "nearest")]
    (got,) = severities([sample(0)], rows, null(own=0.97))
    assert got.grade == "none"


def test_broken_samples_are_not_called_unmemorized():
    (got,) = severities([sample(0, "nonfinite")], [similar(0, 0.99)], null())
    assert (got.n, got.excluded, got.grade) == (0, 1, None)
    assert math.isnan(got.mean)


def test_a_withheld_threshold_withholds_share_and_grade():
    (got,) = severities([sample(0)], [similar(0, 0.99)], null(own=math.nan, nearest=math.nan))
    assert got.mean == 0.99
    assert math.isnan(got.share)
    assert got.grade is None


def test_a_grade_takes_half_of_the_samples():
    values = [0.95, 0.95, 0.3, 0.3, 0.3]
    for copies, expected in ((values, "retrieved verbatim"), (values[:4], "matching verbatim")):
        rows = [similar(seed, value) for seed, value in enumerate(copies)]
        rows += [similar(seed, 0.95, "far", "nearest") for seed in range(len(copies))]
        (got,) = severities([sample(seed) for seed in range(len(copies))], rows, null())
        assert got.own_seeds == (0, 1)
        # The others copy another image: three of five, two of four.
        assert got.elsewhere_seeds == tuple(range(2, len(copies)))
        assert got.share_elsewhere == pytest.approx(1 - got.share)
        assert got.grade == expected


@pytest.mark.parametrize(
    "world",
    [{}, {"alike": 0.9}, {"contrast": 0.2, "alike": 0.9}, {"blur": 0.2}],
    ids=["plain", "alike", "grey", "blurred"],
)
@pytest.mark.parametrize("seeds", [4, 10])
def test_chance_gives_no_grade(world, seeds):
    found, bare = chance(40, seeds, 0, **world)
    assert [one.grade for one in found] == ["none"] * 40
    # A rate of 1 in 1000 a sample gives at most 2 in 1000 prompts a grade.
    assert np.mean([one.share for one in found]) < 2e-3
    if "contrast" in world:
        # By thresholds of training images alone a grey picture passes for a copy of anything.
        assert np.mean([one.grade != "none" for one in bare]) > 0.9
    if "blur" in world:
        assert any(one.own_seeds or one.elsewhere_seeds for one in bare)


def test_what_a_sample_is_nearer_to_everything_by_is_taken_off():
    rows = [similar(0, 0.85), similar(0, 0.7, "x", "typical"), similar(1, 0.85)]
    rows.append(similar(1, 0.55, "x", "typical"))
    nulls = [replace(one, typical=0.6) for one in null()]
    (got,) = severities([sample(0), sample(1)], rows, nulls)
    assert got.own_seeds == (1,)
    assert got.mean == pytest.approx(0.85)


def test_both_kinds_of_unrelated_pairs_have_to_be_exceeded():
    rows = [similar(0, 0.85) | {"recipe": "g"}]
    own, nearest = null()
    made = replace(own, relation="generated", recipe="g", threshold=0.87, max=0.9)
    for nulls, share in (((own, nearest), 1), ((own, nearest, made), 0)):
        (got,) = severities([sample(0) | {"recipe": "g"}], rows, nulls)
        assert got.share == share
    elsewhere = replace(made, recipe="other")
    (got,) = severities([sample(0) | {"recipe": "g"}], rows, [own, nearest, elsewhere])
    assert (got.share, got.threshold) == (1, 0.8)


# --- a whole run ------------------------------------------------------------------------------


class World:
    """A run with references of noise: one prompt copied, one not, one from another's image."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)

        def picture():
            # 8-bit, so that what is stored is what was drawn.
            return torch.rand(3, 16, 16, generator=generator).mul(255).round().div(255)

        pictures = {f"p{i}": picture() for i in range(60)}
        mask = torch.zeros(16, 16)
        mask[:8] = 1
        template = pictures["p3"].clone()
        template[:, 8:] = picture()[:, 8:]
        shown = {"p0": pictures["p0"], "p1": picture(), "p2": pictures["p9"], "p3": template}
        prompts, references, samples, similarities = [], [], [], []
        for name, pixels in pictures.items():
            masked = name == "p3"
            prompts.append({"prompt_id": name, "family": "template" if masked else "verbatim"})
            prompts[-1] |= {"prompt": name, "tokens": 1, "truncated": False}
            prompts[-1] |= {"references": [pixels_id(pixels)]}
            references.append(
                {
                    "reference_id": pixels_id(pixels),
                    "prompt_ids": [name],
                    "digest": "",
                    "width": 16,
                    "height": 16,
                    "image": thumbnail(pixels, mask if masked else None),
                    "masked": masked,
                }
            )
        for name, pixels in shown.items():
            row = {"prompt_id": name, "seed": 0, "guidance": 7.5}
            more = {"status": "ok", "network_calls": 2, "seconds": 0.1}
            samples.append(row | more | {"image": thumbnail(pixels)})
            for other, reference in pictures.items():
                weight = mask if other == "p3" else None
                for measure in ("l2", "masked_l2"):
                    if measure == "masked_l2" and weight is None:
                        continue
                    square = (pixels - reference).square().mean(0)
                    region = square if measure == "l2" else square[:8]
                    similarities.append(
                        row
                        | {
                            "measure": measure,
                            "reference_id": pixels_id(reference),
                            "relation": "own" if other == name else "nearest",
                            "value": 1 - region.mean().sqrt().item(),
                        }
                    )
        self.whole = []
        self.tables = {
            "prompts": prompts,
            "references": references,
            "samples": samples,
            "similarities": similarities,
        }

    def table(self, name, columns=None) -> pa.Table:
        self.whole.append(name if columns is None else (name, *columns))
        return self._table(name, columns)

    def _table(self, name, columns) -> pa.Table:
        rows = view(name, self.tables[name])
        return rows if columns is None else rows.select(list(columns))

    def units(self, name):
        """Cut a table of a prompt each; pictures of training images go two at a time."""
        rows = self.tables[name]
        if name == "references":
            return {f"{at:02}": len(rows[at : at + 2]) for at in range(0, len(rows), 2)}
        return dict(Counter(row["prompt_id"] for row in rows))

    def part(self, name, unit, columns=None) -> pa.Table:
        whole = self._table(name, columns)
        if name == "references":
            return whole.slice(int(unit), 2)
        return whole.filter([row["prompt_id"] == unit for row in self.tables[name]])


def test_a_run_is_assessed_from_its_tables():
    world = World()
    got = assess(world, rate=1e-2)
    assert got["severity"].schema == TABLES["severity"].schema
    assert got["null"].schema == TABLES["null"].schema
    rows = {(r["prompt_id"], r["measure"]): r for r in got["severity"].to_pylist()}
    assert {name: rows[name, "l2"]["grade"] for name in ("p0", "p1", "p2", "p3")} == {
        "p0": "matching verbatim",
        "p1": "none",
        "p2": "retrieved verbatim",
        "p3": "template verbatim",
    }
    assert rows["p0", "l2"]["share"] == 1
    assert rows["p1", "masked_l2"]["mean"] is None
    nulls = {r["measure"]: r for r in got["null"].to_pylist()}
    assert set(nulls) == {
        f"{measure}{kind}"
        for measure in ("l2", "masked_l2")
        for kind in ("", ":nearest", ":generated")
    }
    # Four samples against 59 images that are not their prompt's own; one copies one of them.
    assert nulls["l2:generated"]["n"] + nulls["l2:generated"]["copies"] == 4 * 59
    assert nulls["l2:generated"]["copies"] == 1
    assert nulls["l2"]["n"] == 60 * 59 // 2
    assert nulls["masked_l2"]["n"] == 59
    # Two independent uniform colours differ by sqrt(1/6) in the root mean square.
    assert nulls["l2"]["q50"] == pytest.approx(1 - math.sqrt(1 / 6), abs=0.01)


def test_a_measure_without_its_network_is_withheld(monkeypatch):
    monkeypatch.delenv("MNEMOSCOPE_SSCD", raising=False)
    world = World()
    for row in world.tables["similarities"]:
        row["measure"] = "sscd:wen_224"
    got = assess(world)
    assert got["null"]["threshold"].null_count == 2
    assert got["severity"]["share"].null_count == 4
    assert got["severity"]["mean"].null_count == 0


def test_a_loaded_similarity_is_used():
    class Other:
        name = "l2"

        def index(self, references):
            return get_similarity("tiled_l2").index(references)

    plain, other = (assess(World(), loaded=loaded) for loaded in (None, {"l2": Other()}))
    q50 = [t["null"]["q50"][0].as_py() for t in (plain, other)]
    assert q50[1] < q50[0]


def test_pictures_are_decoded_a_few_at_a_time(monkeypatch):
    alive, most = weakref.WeakSet(), 0

    def counting(data):
        nonlocal most
        pixels = decode(data)
        alive.add(pixels)
        most = max(most, len(alive))
        return pixels

    monkeypatch.setattr(grade, "decode", counting)
    monkeypatch.setattr(grade, "HELD", 0)
    monkeypatch.setattr(pixels_module, "CHUNK", 4)
    monkeypatch.setattr(null_module, "COMPARED", 4 * 4 * 3 * 16 * 16)
    blocks = assess(World(), rate=1e-2)
    assert most <= 5
    monkeypatch.undo()
    for name, table in assess(World(), rate=1e-2).items():
        assert table.equals(blocks[name])


def test_no_table_of_samples_is_read_whole():
    world = World()
    assess(world, rate=1e-2)
    assert world.whole == [
        ("prompts", "prompt_id", "family", "overfit_type"),
        ("references", "reference_id", "prompt_ids", "masked"),
    ]


def test_an_empty_run():
    world = World()
    world.tables = {name: [] for name in world.tables}
    got = assess(world)
    assert got["severity"].num_rows == got["null"].num_rows == 0
