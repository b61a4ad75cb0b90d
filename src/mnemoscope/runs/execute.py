"""Execution runs units of work and commits what each left; what is interrupted loses at most one.

A unit is some prompts of a list at one recipe, a picklable value. A worker gathers evidence about
it on the model's device, then reduces that to rows; on an accelerator the rows of one unit are made
and written while the next is gathered. An executor is whatever is called as `execute` is, which
does the work in this process; executors differ in where the work is done and in nothing else.

A unit that fails is halved until the prompt at fault stands alone; it is marked, and the run goes
on. What was said on purpose (`MnemoscopeError`) concerns all prompts, and ends it.

Contents: `Unit`, `chunk_of` and `size_of`, `units_of`, `Worker`, `Executor`, `execute`, `given_up`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import MnemoscopeError
from mnemoscope.runs.folder import COPY, MANIFEST, Writer, begun
from mnemoscope.runs.parts import chunks
from mnemoscope.sampling.batching import attempt
from mnemoscope.sampling.recipe import Recipe

Rows = Mapping[str, pa.Table]
"""Rows by table."""

TAPE = 64 * 2**20
"""Bytes of tape a unit may hold on a CPU: 80 samples of the embedded model, ten of SD 1.4."""

ON_ACCELERATOR = 2**31
"""The same on an accelerator."""


@dataclass(frozen=True)
class Unit:
    """A piece of work that is done whole or not at all.

    Attributes:
        name: Name of its parts.
        start: Place of its first prompt in the list, from 0.
        prompts: Its prompts.
        recipe: How to sample.
        first: Whether its recipe is the first of the run's.
    """

    name: str
    start: int
    prompts: tuple[Prompt, ...]
    recipe: Recipe
    first: bool = True

    @property
    def places(self) -> range:
        """Return the place of each prompt in the list."""
        return range(self.start, self.start + len(self.prompts))

    def part(self, rows: Sequence[int]) -> "Unit":
        """Return the unit of some neighbouring prompts, by their places in this one."""
        some = self.prompts[rows[0] : rows[-1] + 1]
        return replace(self, start=self.start + rows[0], prompts=some)


@runtime_checkable
class Worker(Protocol):
    """Whatever does a unit's work."""

    def gather(self, unit: Unit) -> Any:
        """Gather evidence, on the model's device."""
        ...

    def reduce(self, unit: Unit, gathered: Any) -> Rows:
        """Make rows of it; touches no device."""
        ...

    def failed(self, unit: Unit, error: Exception) -> Rows:
        """Make the rows of a unit of one prompt that cannot be done."""
        ...


@runtime_checkable
class Executor(Protocol):
    """Whatever has units done; called as `execute`."""

    def __call__(
        self,
        writer: Writer,
        worker: Any,
        units: Iterable[Unit],
        *,
        overlap: bool = False,
        done: Callable[[Unit], None] | None = None,
    ) -> None:
        """Have units done, and each committed."""
        ...


def chunk_of(*, batch: int, seeds: int, calls: int, d: int, accelerator: bool = False) -> int:
    """Return how many prompts make a unit: a batch, or as many as a tape may hold.

    Args:
        batch: Samples a batch.
        seeds: Samples a prompt.
        calls: Calls of the path that are kept.
        d: Number of latent coordinates.
        accelerator: Whether there is an accelerator's memory.
    """
    room = ON_ACCELERATOR if accelerator else TAPE
    held = max(1, seeds * calls * d * 16)
    return max(1, min(batch // seeds, room // held))


UNIT = "prompts_a_unit"
"""Option of a manifest: how many prompts a unit has."""


def size_of(folder: Path, usual: int) -> int:
    """Return how many prompts a unit has: as the run in a folder began, or the usual number.

    A run that goes on with another batch or on another device must find its units again.
    """
    if not (folder / MANIFEST).is_file() and not (folder / COPY).is_file():
        return usual
    return int(begun(folder).options.get(UNIT, usual))


def units_of(prompts: Iterable[Prompt], recipes: Iterable[Recipe], chunk: int) -> Iterator[Unit]:
    """Cut a list into units, all recipes of some prompts together; the list is read as needed."""
    known = tuple(recipes)
    for at, some in enumerate(chunks(prompts, chunk)):
        for index, recipe in enumerate(known):
            yield Unit(f"{at:06d}-{recipe.key}", at * chunk, some, recipe, index == 0)


def execute(
    writer: Writer,
    worker: Worker,
    units: Iterable[Unit],
    *,
    overlap: bool = False,
    done: Callable[[Unit], None] | None = None,
) -> None:
    """Run units one after the other in this process, and commit each.

    Args:
        writer: Where to.
        worker: What does the work.
        units: The units that are not on disk yet.
        overlap: Whether rows are made and written while the next unit is gathered.
        done: Told of each unit that is on disk.
    """
    told = done or (lambda unit: None)

    def commit(unit: Unit, rows: Rows) -> None:
        writer.append(unit.name, rows)
        told(unit)

    if not overlap:
        for unit in units:
            commit(unit, _rows(worker, unit))
        return
    pending: tuple[Unit, Future[None]] | None = None

    def settle() -> None:
        # What failed beside the gathering is done again here, where the device is.
        if pending is not None and _tried(pending[1].result) is None:
            commit(pending[0], _rows(worker, pending[0]))

    with ThreadPoolExecutor(1, thread_name_prefix="mnemoscope-rows") as pool:
        for unit in units:
            gathered = _tried(partial(worker.gather, unit))
            settle()
            if gathered is None:
                pending = None
                commit(unit, _rows(worker, unit))
                continue

            def finish(unit: Unit = unit, gathered: Any = gathered[0]) -> None:
                commit(unit, worker.reduce(unit, gathered))

            pending = unit, pool.submit(finish)
        settle()


def _tried(work: Callable[[], Any]) -> tuple[Any] | None:
    """Return what work returned; None where it failed, the error gone with all that it held."""
    try:
        return (work(),)
    except MnemoscopeError:
        raise
    except Exception:
        return None


def _rows(worker: Worker, unit: Unit) -> Rows:
    """Do a unit, prompts that cannot be done marked."""

    def work(some: Sequence[int]) -> Rows:
        part = unit.part(some)
        return worker.reduce(part, worker.gather(part))

    parts = [
        worker.failed(unit.part(some), found) if isinstance(found, Exception) else found
        for some, found in attempt(range(len(unit.prompts)), work)
    ]
    return _joined(parts)


def given_up(worker: Worker, unit: Unit, error: Exception) -> Rows:
    """Make the rows of a unit that cannot be done, every prompt marked."""
    return _joined([worker.failed(unit.part([at]), error) for at in range(len(unit.prompts))])


def _joined(parts: Sequence[Rows]) -> Rows:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: pa.concat_tables(part[name] for part in parts if name in part) for name in names}
