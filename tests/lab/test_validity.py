"""Published facts: told from runs whose truth is known, and seen failing where nothing leaks."""

from collections import Counter
from typing import Any

import pytest

from mnemoscope import mechanism
from mnemoscope.lab.validity import FACTS, Evidence, validity
from mnemoscope.mechanism import columns
from tests.mechanism.synthetic import record

NAMES = [f"p{i}" for i in range(10)]
GROUPS = {"memorized": frozenset(NAMES[:5]), "not memorized": frozenset(NAMES[5:])}
TRIVIAL = "the conditional estimate alone does not over-estimate (k of the conditional)"
UNTOLD = {
    "the conditional noise points away from the image at the first call (cosine)",
    "the variance across seeds of memorized prompts is below others' early",
}
"""What five prompts a group are too few for."""


def _evidence(strengths: dict[str, float], aucs: dict[str, float], rise: float) -> Evidence:
    tables = columns(mechanism.analyse(record(strengths, GROUPS, seeds=2)))
    rows = {
        name: [
            dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)
        ]
        for name, table in tables.items()
    }
    ranking: list[dict[str, Any]] = [
        {"detector": name, "metric": "auc", "population": "all", "value": auc,
         "low": auc - 0.001, "high": auc + 0.001}
        for name, auc in aucs.items()
    ]  # fmt: skip
    groups = [
        {"family": "verbatim", "level": level, "reproduced": rise * level / 100}
        for level in (1, 2, 3)
    ]
    return Evidence(rows["statistics"], rows["curves"], ranking, groups)


DETECTORS = {
    "gap_norm": 0.96, "gap_norm:10": 0.98, "gap_norm:all": 0.99, "sharpness": 0.97,
    "anisotropy": 0.975, "dsm:1": 0.97, "hessian_difference": 0.95, "curvature_difference": 0.98,
    "bright_ending": 0.97, "bright_ending:attention": 0.9, "update_band": 0.97,
    "attention_entropy": 0.8, "attention_entropy:path": 0.6, "generate_and_cluster": 0.95,
}  # fmt: skip


@pytest.fixture(scope="module")
def leaking() -> Evidence:
    return _evidence({p: 0.7 + 0.05 * i if i < 5 else 0.01 * i for i, p in enumerate(NAMES)},
                     DETECTORS, 1.0)  # fmt: skip


@pytest.fixture(scope="module")
def innocent() -> Evidence:
    return _evidence(dict.fromkeys(NAMES, 0.0), {d: 0.5 for d in DETECTORS}, -1.0)


def test_every_fact_is_told_from_a_whole_run(leaking: Evidence) -> None:
    assert not [fact.about for fact in FACTS if fact.find(leaking)[0] == "not measured"]


def test_facts_agree_where_images_leak_and_fail_where_none_does(
    leaking: Evidence, innocent: Evidence
) -> None:
    assert {fact.about for fact in FACTS if not fact.find(leaking)[1]} <= UNTOLD
    assert {fact.about for fact in FACTS if fact.find(innocent)[1]} == {TRIVIAL}


def test_the_table_counts_what_agrees(leaking: Evidence) -> None:
    told = validity(leaking)
    verdicts = Counter(fact.find(leaking)[1] for fact in FACTS)
    assert told.startswith(
        f"Of {len(FACTS)} facts {verdicts[True]} agree and {verdicts[False]} do not; the others"
    )
    assert told.count("| yes |") == verdicts[True]
    assert told.count("| **no** |") == verdicts[False]


def test_what_a_run_lacks_is_not_measured_and_not_counted() -> None:
    assert {fact.find(Evidence((), (), (), ())) for fact in FACTS} == {("not measured", None)}
    assert validity(Evidence((), (), (), ())).startswith(f"Of {len(FACTS)} facts 0 agree and 0 ")
