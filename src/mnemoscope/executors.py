"""An executor runs units of work and hands back what each left, in any order.

Executors differ in where the work is done and in nothing else: all they ever call is `run_unit`.
"""

from collections.abc import Iterable, Iterator

from mnemoscope.models.base import Model
from mnemoscope.plan import Plan, Unit
from mnemoscope.unit import Parts, Tick, run_unit


def serial(
    model: Model, plan: Plan, units: Iterable[Unit], tick: Tick | None = None
) -> Iterator[tuple[Unit, Parts]]:
    """Run units one after the other in this process.

    Args:
        model: The model.
        plan: The plan the units are of.
        units: The units.
        tick: Told of progress.

    Yields:
        Each unit with its parts.
    """
    for unit in units:
        yield unit, run_unit(model, plan, unit, tick)
