"""Reading a run: groups are measured, probes are placed, null is NaN."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mnemoscope import mechanism
from mnemoscope.core.gram import Gram
from mnemoscope.errors import NeedsError
from mnemoscope.mechanism.base import Record
from tests.mechanism.synthetic import record
from tests.views import view

STRENGTHS = {"a": 0.8, "b": 0.0, "c": 0.0, "d": 0.0}


class FakeRun:
    """The tables a run of the synthetic world would hold."""

    def __init__(self, source: Record) -> None:
        self.source = source
        self.manifest = SimpleNamespace(options={"similarity": ["l2", "tiled_l2"]})
        self.exact = None if source.exact is None else (source.exact.w0, source.exact.wT)

    def table(self, name: str) -> pa.Table:
        rows = getattr(self, f"_{name}")()
        return view(name, rows)

    def gram(
        self, law: str = "path", guidance: float | None = None
    ) -> tuple[Gram, Mapping[str, Any]]:
        found = self.source.samples.get((law, guidance))
        if found is None:
            raise NeedsError(f"the run holds no law {law!r}")
        return found.gram, {"prompt_id": found.prompts, "seed": found.seeds}

    def _prompts(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": prompt,
                "prompt": prompt,
                "group": "control" if prompt == "c" else None,
                "tokens": 3,
                "truncated": False,
                "references": [] if prompt == "d" else [prompt],
            }
            for prompt in STRENGTHS
        ]

    def _samples(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt_id": prompt,
                "seed": seed,
                "guidance": g,
                "status": "ok",
                "network_calls": 100,
                "seconds": 0.1,
            }
            for g in self.source.guidances
            for prompt in STRENGTHS
            for seed in range(2)
        ]

    def _severity(self) -> list[dict[str, Any]]:
        # At g = 1 nothing is above threshold; the other measure disagrees and must not be read.
        return [
            {
                "prompt_id": prompt,
                "guidance": g,
                "measure": measure,
                "mean": None if prompt == "d" else value,
                "share": None
                if prompt == "d"
                else float((prompt == "a") == (measure == "l2")) * (g > 1),
                "n": 2,
            }
            for measure in ("l2", "tiled_l2")
            for g, values in self.source.severity.items()
            for prompt, value in values.items()
        ]

    def _convergence(self) -> list[dict[str, Any]]:
        rows = []
        for g, spread in self.source.convergence.items():
            alpha = np.sqrt(1 - spread.sigma**2)
            for i, prompt in enumerate(spread.prompts):
                for j, call in enumerate(spread.calls):
                    row = {"prompt_id": prompt, "guidance": g, "call": int(call), "seeds": 2}
                    row |= {"alpha": alpha[j], "sigma": spread.sigma[j]}
                    row |= {name: float(table[i, j]) for name, table in spread.values.items()}
                    rows.append(row)
        return rows


@pytest.fixture(scope="module")
def source() -> Record:
    return record(STRENGTHS, {}, seeds=2)


def test_groups_follow_what_was_measured(source: Record) -> None:
    read = mechanism.read(FakeRun(source))
    assert read.groups == {
        "memorized": frozenset("a"),
        "not memorized": frozenset("b"),
        "control": frozenset("c"),
        "other": frozenset("d"),
    }
    assert read.others == frozenset("bc")


@pytest.mark.parametrize(
    ("changed", "groups"),
    [
        # Too few unrelated images: nothing is called memorized, and nothing not memorized.
        ({"share": None, "grade": None}, {"a": "other", "b": "other", "c": "other"}),
        ({"share": None, "grade": "none"}, {"a": "not memorized", "c": "control", "d": "other"}),
    ],
)
def test_what_was_not_judged_is_not_called_not_memorized(
    source: Record, changed: dict[str, Any], groups: dict[str, str]
) -> None:
    run = FakeRun(source)
    rows = [row | changed for row in run._severity()]
    run._severity = lambda: rows
    read = mechanism.read(run)
    for prompt, group in groups.items():
        assert prompt in read.groups[group]


def test_a_template_counts_by_its_masked_share(source: Record) -> None:
    run = FakeRun(source)
    masked = [row | {"measure": "masked_l2", "share": 1.0} for row in run._severity()[:2]]
    rows = [*run._severity(), *(row | {"prompt_id": "b", "guidance": 7.5} for row in masked[:1])]
    run._severity = lambda: rows
    assert mechanism.read(run).groups["memorized"] == frozenset("ab")


def test_everything_a_run_holds_arrives(source: Record) -> None:
    read = mechanism.read(FakeRun(source))
    assert set(read.samples) == set(source.samples)
    assert read.guidances == (1.0, 7.5)
    assert read.guidance == 7.5
    assert read.measure == "l2"
    assert set(read.severity[7.5]) == set("abc")
    for law in ("forward", "noise"):
        # The probe's own levels tell which calls of the path it stands for.
        np.testing.assert_array_equal(read.samples[law, None].calls, np.arange(0, 50, 5))
        assert read.take(law).guidance == 7.5
    for name, table in source.convergence[7.5].values.items():
        np.testing.assert_array_equal(read.convergence[7.5].values[name], table)
    assert not read.stochastic
    assert all(finding.panels for finding in mechanism.analyse(read).values())


def test_a_sampler_that_forgets_the_noise_is_told_from_its_exact_path(source: Record) -> None:
    run = FakeRun(source)
    run.exact = (run.exact[0], run.exact[1] ** 2)
    read = mechanism.read(run)
    assert read.stochastic
    np.testing.assert_array_equal(read.exact.wT, run.exact[1])


def test_a_run_without_probes_or_exact_path_is_read(source: Record) -> None:
    bare = Record({("path", 7.5): source.samples["path", 7.5]}, {}, source.severity, "l2", {}, None)
    read = mechanism.read(FakeRun(bare))
    assert list(read.samples) == [("path", 7.5)]
    assert read.exact is None
    assert not read.convergence
