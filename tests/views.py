"""Tables of a run as its reader gives them: the guidance scale stands beside the recipe."""

from typing import Any

import pyarrow as pa

from mnemoscope.runs.tables import TABLES


def recipe_of(guidance: float) -> str:
    """Return the name these tests give to the recipe of a guidance scale."""
    return f"g{guidance:g}"


def view(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows that name their guidance scale as `Run.table` would."""
    stored = [{key: value for key, value in row.items() if key != "guidance"} for row in rows]
    keyed = "recipe" in (column.name for column in TABLES[name].columns)
    if not keyed:
        return TABLES[name].of_rows(rows)
    for kept, row in zip(stored, rows, strict=True):
        kept.setdefault("recipe", recipe_of(row["guidance"]))
    scales = pa.array([row["guidance"] for row in rows], pa.float64())
    return TABLES[name].of_rows(stored).append_column("guidance", scales)
