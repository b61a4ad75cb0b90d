"""Every registered analysis keeps the contract, and another distribution's is found like ours."""

from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest

from mnemoscope import mechanism
from mnemoscope.core.panels import BarPanel, CurvePanel, ScatterPanel
from mnemoscope.mechanism.base import GROUPS, Analysis, Finding, Record
from mnemoscope.runs.tables import TABLES
from tests.contracts.extension import installed
from tests.mechanism.synthetic import record

ANALYSES = {analysis.name: analysis for analysis in mechanism.all_analyses()}
ROLES = {*GROUPS, "schedule"}


@pytest.fixture(scope="module")
def whole() -> Record:
    strengths = {f"p{i}": 0.1 * i * (i < 4) for i in range(8)}
    groups = {
        "memorized": frozenset(f"p{i}" for i in range(4)),
        "not memorized": frozenset({"p4", "p5"}),
        "control": frozenset({"p6", "p7"}),
    }
    return record(strengths, groups, seeds=2)


@pytest.fixture(scope="module")
def findings(whole: Record) -> dict[str, Finding]:
    return mechanism.analyse(whole)


def test_names_and_places_are_its_own():
    assert len({analysis.order for analysis in ANALYSES.values()}) == len(ANALYSES)
    orders = [analysis.order for analysis in mechanism.all_analyses()]
    assert orders == sorted(orders)


@pytest.mark.parametrize("name", ANALYSES)
def test_says_what_it_is(name):
    analysis = ANALYSES[name]
    for text in (analysis.question, analysis.formula, analysis.source, analysis.expected):
        assert len(text) > 10
    assert analysis.claims
    assert (type(analysis).__doc__ or "").strip()
    assert set(analysis.guided) <= set(range(len(analysis.claims)))
    module = __import__(type(analysis).__module__, fromlist=["x"])
    assert "Formula" in (module.__doc__ or "")
    assert type(analysis).__module__.endswith(name)


@pytest.mark.parametrize("name", ANALYSES)
def test_every_claim_is_checked_or_left_with_a_reason(findings, name):
    finding = findings[name]
    assert [check.claim for check in finding.checks] == list(ANALYSES[name].claims)
    for check in finding.checks:
        assert check.analysis == name
        assert check.measured
        assert (check.holds is None) == bool(check.reason)


@pytest.mark.parametrize("name", ANALYSES)
def test_panels_are_plain_data(findings, name):
    assert findings[name].panels
    for panel in findings[name].panels:
        assert panel.title
        assert panel.caption
        match panel:
            case CurvePanel():
                for series in panel.series:
                    assert series.role in ROLES
                    assert series.x.shape == series.y.shape == series.log_snr.shape
                assert any(np.isfinite(series.y).any() for series in panel.series)
            case ScatterPanel():
                for points in panel.points:
                    assert points.role in ROLES
                    assert points.x.shape == points.y.shape == (len(points.prompt_ids),)
            case BarPanel():
                assert all(bar.role in ROLES for bar in panel.bars)


@pytest.mark.parametrize("name", ANALYSES)
def test_rows_fit_the_tables(findings, name):
    laid = mechanism.columns({name: findings[name]})
    rows = {table: TABLES[table].of(columns) for table, columns in laid.items()}
    assert rows["statistics"].num_rows
    for table in rows.values():
        assert set(table["analysis"].to_pylist()) <= {name}


@pytest.mark.parametrize("name", ANALYSES)
def test_intervals_hold_their_value(findings, name):
    for row in findings[name].statistics:
        if isfinite(row.low):
            assert row.low <= row.value <= row.high
        assert row.n >= 0


@pytest.mark.parametrize("name", ANALYSES)
def test_order_of_prompts_does_not_matter(whole, findings, name):
    turned = {
        key: replace(
            samples,
            gram=replace(samples.gram, products=samples.gram.products.flip(0)),
            prompts=samples.prompts[::-1],
            seeds=samples.seeds[::-1],
        )
        for key, samples in whole.samples.items()
    }
    other = ANALYSES[name].analyse(replace(whole, samples=turned))
    assert [c.holds for c in other.checks] == [c.holds for c in findings[name].checks]
    for ours, theirs in zip(findings[name].curves, other.curves, strict=True):
        np.testing.assert_allclose(ours.median, theirs.median, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_empty_record_is_answered_with_reasons(name):
    finding = ANALYSES[name].analyse(Record({}, {}))
    assert len(finding.checks) == len(ANALYSES[name].claims)
    assert all(check.holds is None and check.reason for check in finding.checks)


EXTENSION = '''"""The speed is how far one update moves the state.

Formula::

    speed = ||x_t|| / sqrt(d)
"""

from mnemoscope.mechanism.base import Analysis, Measured, caption, ruling


class Speed(Analysis):
    """How large is the state?"""

    name = "speed_of_another"
    order = 1000
    question = "How large is the state at the first call?"
    formula = "the root mean square of the state"
    source = "nobody: an example"
    expected = "One at the first call."
    claims = ("The median is within 0.1 of one",)

    def measure(self, record):
        """Measure the state."""
        samples = record.take()
        trace = record.trace("speed", samples, samples.gram.rms("x"))
        first = float(trace.typical(record.memorized | record.others)[0])
        return Measured(
            caption(record, trace),
            panels=(self.panel(record, trace, "Speed", "speed"),),
            curves=self.curves(record, trace),
            checks=(self.check(0, f"{first:.2f}", ruling(abs(first - 1) < 0.1, first)),),
        )
'''


def test_an_analysis_of_another_distribution_is_found(tmp_path: Path, whole: Record) -> None:
    before = list(ANALYSES)
    with installed(tmp_path, "speed_of_another", EXTENSION, "mnemoscope.mechanism"):
        mechanism.all_analyses.cache_clear()
        try:
            found = mechanism.analyse(whole)
        finally:
            mechanism.all_analyses.cache_clear()
    assert list(found) == [*before, "speed_of_another"]
    assert isinstance(mechanism.all_analyses()[0], Analysis)
    assert [check.holds for check in found["speed_of_another"].checks] == [True]
    assert list(mechanism.analyse(whole)) == before
