"""Findings side by side: each number is the run's own, and a run that leaks nothing shows none."""

from pathlib import Path

import pytest

from mnemoscope import mechanism
from mnemoscope.errors import InputError
from mnemoscope.lab.findings import ROWS, findings
from mnemoscope.runs.folder import Run
from tests.reporting import world


def _cells(text: str) -> dict[str, list[str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return {first: rest for first, *rest in lines if not set(first) <= set("-: ")}


def _study(folder: Path, forgotten: frozenset[str] = frozenset()) -> Run:
    rows = world.rows(forgotten=forgotten)
    record = mechanism.read(world.write(folder / "read", rows))
    for name, table in mechanism.columns(mechanism.analyse(record)).items():
        columns = zip(*table.values(), strict=True)
        rows[name] = [dict(zip(table, values, strict=True)) for values in columns]
    return world.write(folder / "run", rows)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("findings")
    whole, mended = _study(folder / "whole"), _study(folder / "mended", world.EVEN)
    return whole, _cells(findings({"whole": whole, "mended": mended}))


def test_every_row_has_a_column_a_study_and_what_is_expected(told) -> None:
    _, cells = told
    assert cells["quantity"] == ["whole", "mended", "expected"]
    assert {row.about for row in ROWS} < cells.keys()
    assert all(len(row) == 3 for row in cells.values())


def test_a_number_is_that_of_the_run(told) -> None:
    run, cells = told
    (row,) = [
        row
        for row in run.table("statistics").to_pylist()
        if row["name"] == "Pearson r of D1 and severity (l2)"
        and (row["guidance"], row["population"], row["window"], row["reference"])
        == (7.5, "all prompts", "all updates", "target")
    ]
    value, *limits = (f"{row[part]:.2f}" for part in ("value", "low", "high"))
    assert cells["r of D1 and severity"][0] == f"{value} [{limits[0]}, {limits[1]}]"


def test_levels_count_the_prompts_that_are_memorized(told) -> None:
    run, cells = told
    name = "memorized, of those judged, by level"
    counted = [sum(int(part.split()[1].split("/")[0]) for part in cell.split(", "))
               for cell in cells[name][:2]]  # fmt: skip
    measure = run.manifest.options["similarity"][0]
    shares = [
        row["share"] for row in run.table("severity").to_pylist()
        if (row["measure"], row["guidance"]) == (measure, 7.5) and row["share"] is not None
    ]  # fmt: skip
    assert counted[0] == sum(share >= 0.5 for share in shares) > counted[1]


def test_scores_follow_where_detectors_were_ranked(told) -> None:
    run, _ = told
    row = {"detector": "gap_norm", "metric": "auc", "value": 0.9, "low": 0.8, "high": None}
    other = {**row, "detector": "sharpness", "low": None}
    ranking = [{**row, "population": "all", "high": 0.95}, {**row, "population": "level 3"}]
    both = {"ranked": ranking, "further": [{**other, "population": "all"}]}
    cells = _cells(findings({"ranked": run, "further": run, "bare": run}, both))
    assert cells["AUC of `gap_norm`"] == ["0.900 [0.800, 0.950]", "–", "–", ""]
    assert cells["AUC of `sharpness`"] == ["–", "0.900", "–", ""]


def test_without_a_study_there_is_nothing_to_set_side_by_side() -> None:
    with pytest.raises(InputError, match="expected NAME=RUN"):
        findings({})
