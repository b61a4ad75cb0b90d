"""A benchmark table sets ours beside the peer's way, as ratios measured in one run.

Ratios carry from machine to machine where seconds do not, so a limit is always set on a ratio or on
a size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: What is compared.
        ours: Our figure, with its unit.
        peer: The other way's figure, with its unit; "" where the limit is absolute.
        value: The number under the limit.
        limit: The limit; None where the number is only told.
        at_most: Whether the value has to stay below the limit, or reach it.
    """

    what: str
    ours: str
    peer: str
    value: float
    limit: float | None
    at_most: bool = True

    @property
    def holds(self) -> bool:
        """Return whether the limit is kept."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def show(title: str, rows: Sequence[Row], note: str) -> bool:
    """Print a table.

    Args:
        title: What was measured.
        rows: The comparisons.
        note: The setting they were measured in.

    Returns:
        Whether every limit is kept.
    """
    print(f"\n{title}\n  {note}")
    print(f"  {'':42} {'ours':>14} {'peer':>14} {'value':>11} {'limit':>11}")
    for row in rows:
        line = f"  {row.what:42} {row.ours:>14} {row.peer:>14} {row.value:11.4g}"
        if row.limit is not None:
            sign = "<=" if row.at_most else ">="
            line += f" {sign}{row.limit:9.4g}  {'holds' if row.holds else 'MISSED'}"
        print(line)
    return all(row.holds for row in rows)


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the least wall time of several runs of some work, in seconds.

    The least, because other load on the machine only ever adds.
    """
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, perf_counter() - start)
    return best
