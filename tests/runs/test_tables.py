"""Every column is documented, and rows that do not fit are refused."""

import pyarrow as pa
import pytest

from mnemoscope.errors import RunError
from mnemoscope.runs.tables import DERIVED, TABLES, table_named
from mnemoscope.sampling.recipe import Recipe


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_column_says_its_type_unit_and_meaning(table):
    assert table.row
    assert len({column.name for column in table.columns}) == len(table.columns)
    for column in table.columns:
        assert column.about
        number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        # A statistic's unit is that of what it is a statistic of.
        assert column.unit or not number or table.name in ("statistics", "curves", "checks"), (
            column.name
        )
        field = table.schema.field(column.name)
        assert field.type == column.type
        assert field.nullable == column.nullable
        assert field.metadata[b"about"].decode() == column.about


def test_derived_tables_are_tables():
    assert set(DERIVED) < set(TABLES)


def test_the_record_has_45_products():
    assert sum("·" in column.name for column in TABLES["gram"].columns) == 45


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_samples_are_named_alike_everywhere(table):
    names = [column.name for column in table.columns]
    if "recipe" in names:
        assert table.name in ("recipes", "null") or "prompt_id" in names
        assert "guidance" not in names or table.name == "recipes"


def test_a_recipe_is_a_row():
    table = TABLES["recipes"].of_rows([Recipe().row, Recipe(guidance=1.0).row])
    assert table["recipe"].to_pylist() == [Recipe().key, Recipe(guidance=1.0).key]
    assert set(table.schema.names) == set(Recipe().row)


def test_rows_that_do_not_fit_are_refused():
    table = TABLES["null"]
    assert table.of({"measure": ["l2"], "n": [3]})["q50"].to_pylist() == [None]
    for columns, word in (
        ({"measure": ["l2"]}, "needs the column 'n'"),
        ({"measure": ["l2"], "n": [1], "mesure": [1]}, "Did you mean 'measure'"),
        ({"measure": ["l2"], "n": [1, 2]}, "differ in length"),
        ({"measure": ["l2"], "n": ["many"]}, "takes int64"),
        ({"measure": [None], "n": [1]}, "may not be null"),
    ):
        with pytest.raises(RunError, match=word):
            table.of(columns)


def test_no_rows_have_the_schema_too():
    assert TABLES["gram"].of_rows([]).schema.equals(TABLES["gram"].schema)


def test_unknown_table_is_refused():
    with pytest.raises(RunError, match="Did you mean 'gram'"):
        table_named("grams")
