"""A table is shown to a person as aligned columns, and to a program as rows with tabs.

Text of a run is hostile: in either form it goes through `visible`, so that no control character, no
escape sequence and no bidirectional mark reaches a terminal, and no tab or line end splits a row.
Nothing is read as markup.

Contents: `laid_out`.
"""

import io
import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnemoscope.reporting.text import visible

Cell = str | float | int | bool | None
"""A value; None and NaN are shown as nothing."""


def laid_out(
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    width: int | None = None,
    last: int = 400,
) -> str:
    """Lay a table out.

    Args:
        head: Names of the columns; the last one takes the room that is left, and folds.
        rows: The rows.
        width: Columns of the terminal; None for a program.
        last: Characters of a cell that are shown to a person; the rest is counted.

    Returns:
        Lines, each with its end.
    """
    if width is None:
        lines = [head, *([_plain(cell) for cell in row] for row in rows)]
        return "".join("\t".join(line) + "\n" for line in lines)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, name in enumerate(head):
        numbers = bool(rows) and all(isinstance(row[at], int | float) for row in rows)
        final = at == len(head) - 1
        table.add_column(
            name,
            justify="right" if numbers else "left",
            no_wrap=not final,
            overflow="fold",
            ratio=1 if final else None,
        )
    for row in rows:
        table.add_row(*(Text(_short(cell, last)) for cell in row))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _plain(cell: Cell) -> str:
    """Write a cell in full; numbers to six digits."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return visible(str(cell), 10**9)


def _short(cell: Cell, last: int) -> str:
    if isinstance(cell, float) and not math.isnan(cell):
        return f"{cell:.4g}"
    return visible(cell, last) if isinstance(cell, str) else _plain(cell)
