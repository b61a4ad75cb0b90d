r"""Folders of earlier schemas, read as if they were of the present one.

Schema 2 had no image of another prompt beside the target, and graded a prompt by any of its
samples; a column it lacks is null.

Schema 1 kept noise estimates where v is kept now, and the guidance scale where the recipe is::

    v_b = (eps_b - sigma·x) / alpha        v_g = (1 - g)·v_u + g·v_c

Contents: `upgraded`, `recipes`.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from mnemoscope.core.gram import NAMES, PAIRS
from mnemoscope.runs.tables import Table

NAMES_1 = ("x", "eps_u", "eps_c", "target", "x_T", "x_0", "mean")
PAIRS_1 = tuple((a, b) for i, a in enumerate(NAMES_1) for b in NAMES_1[i:])


def recipes(study: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipes that the options of a study of schema 1 amount to.

    Args:
        study: Its options, as its manifest has them.
    """
    return [
        {
            "recipe": f"g{float(g):g}",
            "guidance": float(g),
            "scheduler": study["scheduler"],
            "steps": study["steps"],
            "eta": 0.0,
            "seed": study["seed"],
            "noise": study["noise"],
            "intervention": None,
        }
        for g in study["guidance"]
    ]


def upgraded(table: Table, rows: pa.Table, schema: int) -> pa.Table:
    """Return rows of an earlier schema in the columns of the present one.

    Args:
        table: The table they are of.
        rows: The rows as they were written.
        schema: The schema they were written in.
    """
    if schema > 1:
        for column in table.columns:
            if column.nullable and column.name not in rows.column_names:
                rows = rows.append_column(column.name, pa.nulls(rows.num_rows, column.type))
        return rows.select([column.name for column in table.columns])
    names = [column.name for column in table.columns]
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names if name in names}
    if "recipe" in names and "guidance" in rows.column_names:
        scales = rows["guidance"].to_pylist()
        columns["recipe"] = pa.array([None if g is None else f"g{g:g}" for g in scales])
    if table.name == "gram":
        columns |= _products(rows)
    arrays = [
        columns.get(column.name, pa.nulls(rows.num_rows, column.type)) for column in table.columns
    ]
    return pa.table(dict(zip(names, arrays, strict=True)))


def _products(rows: pa.Table) -> dict[str, pa.Array]:
    """Return the products of the present vectors, row by row: M·G·Mᵀ."""

    def numbers(name: str) -> Float[np.ndarray, " row"]:
        return rows[name].to_numpy(zero_copy_only=False).astype(np.float64)

    count, size = rows.num_rows, len(NAMES_1)
    held = np.empty((count, size, size))
    for a, b in PAIRS_1:
        i, j = NAMES_1.index(a), NAMES_1.index(b)
        held[:, i, j] = held[:, j, i] = numbers(f"{a}·{b}")
    alpha, sigma, g = numbers("alpha"), numbers("sigma"), numbers("guidance")
    change = np.zeros((count, len(NAMES), size))
    for name in set(NAMES) & set(NAMES_1):
        change[:, NAMES.index(name), NAMES_1.index(name)] = 1
    weights = {"v_u": (np.ones(count), np.zeros(count)), "v_c": (np.zeros(count), np.ones(count))}
    weights["v_g"] = (1 - g, g)
    for name, (u, c) in weights.items():
        row = NAMES.index(name)
        change[:, row, NAMES_1.index("eps_u")] = u / alpha
        change[:, row, NAMES_1.index("eps_c")] = c / alpha
        change[:, row, NAMES_1.index("x")] = -sigma / alpha
    # Without guidance the other branch has weight 0, and 0·NaN must not reach the guided one.
    there = np.isfinite(np.einsum("rii->ri", held))
    lost = (np.einsum("rij,rj->ri", (change != 0).astype(float), (~there).astype(float)) > 0) | (
        ~np.isfinite(change).all(axis=2)
    )
    # What was not recorded then has no weights at all.
    lost |= ~(change != 0).any(axis=2)
    clean = np.nan_to_num(change)
    made = clean @ np.nan_to_num(held) @ clean.transpose(0, 2, 1)
    made[lost[:, :, None] | lost[:, None, :]] = np.nan
    return {
        f"{a}·{b}": pa.array(made[:, NAMES.index(a), NAMES.index(b)], from_pandas=True)
        for a, b in PAIRS
    }
