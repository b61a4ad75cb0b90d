"""Folders of schema 1 open, with the same numbers in the present columns, and have a page."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mnemoscope import mechanism
from mnemoscope.reporting import report
from mnemoscope.runs.folder import open_run
from mnemoscope.runs.older import upgraded
from mnemoscope.runs.tables import TABLES, Table

OLD = Path(__file__).parent / "schema-1"


@pytest.fixture(scope="module")
def run():
    return open_run(OLD)


@pytest.fixture(scope="module")
def stored():
    """The record as it was written: noise estimates, and a guidance scale in every row."""
    rows = []
    for part in sorted((OLD / "gram").glob("*.parquet")):
        rows += pq.read_table(part).to_pylist()
    return rows


def of_law(stored, law, guidance):
    return [row for row in stored if row["law"] == law and row["guidance"] == guidance]


def test_it_is_of_schema_1_and_complete(run):
    assert json.loads((OLD / "manifest.json").read_text())["schema"] == 1
    assert run.manifest.status == "complete"
    assert run.manifest.flow == "study"
    assert run.manifest.options["seeds"] == 2


def test_every_table_has_the_columns_of_today_and_all_rows(run):
    for name, rows in run.manifest.rows.items():
        table = run.table(name)
        assert table.num_rows == rows, name
        assert set(TABLES[name].schema.names) <= set(table.column_names), name
    assert run.table("recipes").num_rows == 0


def test_tables_have_recipe_and_guidance(run):
    for name in ("samples", "gram", "convergence", "similarities", "severity"):
        rows = run.table(name).select(["recipe", "guidance"]).to_pylist()
        assert rows
        for row in rows:
            wanted = None if row["guidance"] is None else f"g{row['guidance']:g}"
            assert row["recipe"] == wanted
    scales = {row["guidance"] for row in run.table("samples").to_pylist()}
    assert scales == {1.0, 7.5}
    assert {recipe["guidance"] for recipe in run.recipes.values()} == scales
    assert all(recipe["scheduler"] == "ddim" for recipe in run.recipes.values())


@pytest.mark.parametrize(("law", "guidance"), [("path", 1.0), ("path", 7.5), ("noise", None)])
def test_products_are_those_of_the_stored_columns(run, stored, law, guidance):
    gram, _ = run.gram(law, guidance)
    rows = of_law(stored, law, guidance)
    shape = (-1, gram.calls)

    def column(name):
        return torch.tensor([row[name] for row in rows], dtype=torch.float64).reshape(shape)

    alpha, sigma = column("alpha"), column("sigma")
    # v = (eps - sigma·x) / alpha is kept, which takes 1 / alpha² = 14² off the digits.
    close = {"rtol": 1e-9, "atol": 1e-9}
    for branch in "uc":
        own = column(f"eps_{branch}·eps_{branch}")
        torch.testing.assert_close(gram.square(f"eps_{branch}"), own, **close)
        moment = column(f"x·eps_{branch}")
        torch.testing.assert_close(gram.inner(f"eps_{branch}", "x"), moment, **close)
        # x0 = (x - sigma·eps) / alpha, from the stored products alone.
        clean = (column("x·x") - 2 * sigma * moment + sigma**2 * own) / alpha**2
        torch.testing.assert_close(gram.square(f"x0_{branch}"), clean, rtol=1e-8, atol=1e-8)
    for a, b in (("x", "x_T"), ("target", "x"), ("x_0", "mean"), ("mean", "mean")):
        name = f"{a}·{b}" if f"{a}·{b}" in rows[0] else f"{b}·{a}"
        if all(row[name] is not None for row in rows):
            torch.testing.assert_close(gram.inner(a, b), column(name), **close)


def test_guided_products_are_those_of_the_scale(run, stored):
    gram, _ = run.gram("path", 7.5)
    rows, g = of_law(stored, "path", 7.5), 7.5

    def column(name):
        return torch.tensor([row[name] for row in rows], dtype=torch.float64)

    square = (
        (1 - g) ** 2 * column("eps_u·eps_u")
        + 2 * g * (1 - g) * column("eps_u·eps_c")
        + g**2 * column("eps_c·eps_c")
    ).reshape(-1, gram.calls)
    torch.testing.assert_close(gram.square("eps_g"), square, rtol=1e-9, atol=1e-9)
    unguided, _ = run.gram("path", 1.0)
    torch.testing.assert_close(unguided.square("v_g"), unguided.square("v_c"))


def test_the_first_state_is_the_initial_noise(run):
    gram, keys = run.gram("path", 7.5)
    assert len(gram.products) == len(keys["seed"]) == run.manifest.samples["ok"] // 2
    fit = gram.fit("x", on=("x_0", "x_T"))
    torch.testing.assert_close(fit.weights[:, 0, 1], torch.ones(len(fit.weights)).double())


def test_pictures_and_constants_come_back(run):
    _, keys = run.gram("path", 7.5)
    assert run.image(str(keys["prompt_id"][0]), 0, 7.5).size == (8, 8)
    assert run.mean is not None
    w0, wT = run.exact
    assert len(w0) == len(wT) == run.gram("path", 1.0)[0].calls


def test_its_page_is_built(run, tmp_path):
    page = report(run, tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html")
    for prompt in set(run.table("prompts")["prompt_id"].to_pylist()):
        assert prompt in text


def test_a_folder_of_schema_2_opens_without_the_columns_it_lacks(tmp_path):
    later = {"kind", "value", "low", "other", "own_seeds", "share_elsewhere"}
    kept = [c for c in TABLES["checks"].columns if c.name not in later]
    rows = Table("checks", "", tuple(kept)).of_rows(
        [{"analysis": "loss", "claim": "c", "measured": "m", "holds": True}]
    )
    found = upgraded(TABLES["checks"], rows, 2)
    assert found.column_names == [column.name for column in TABLES["checks"].columns]
    assert found.to_pylist()[0]["kind"] is None
    assert found.to_pylist()[0]["claim"] == "c"


def test_a_run_without_another_image_says_that_its_null_is_absent(run):
    gram, _ = run.gram("path", 7.5)
    assert torch.isnan(gram.square("other")).all()
    record = mechanism.read(run)
    assert not record.swaps
    checks = [c for f in mechanism.analyse(record).values() for c in f.checks]
    swapped = [c for c in checks if c.null_kind == "swapped images"]
    assert swapped
    assert all(check.holds is None and check.reason for check in swapped)
    assert any("has no null" in check.reason for check in swapped)
