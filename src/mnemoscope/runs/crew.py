"""A crew is workers in processes of their own; a driver hands them units, and they write the rows.

Each worker has one unit at a time and commits it whole, so a worker that dies loses at most one. It
is replaced, and its unit done again after all others; one at which `TRIES` workers died is marked
as failed, as an error in it would be. Whatever a crew consists of, its driver may die at any
moment: it holds nothing that is not in the run folder.

Contents: `Portable`, `Order`, `Post`, `Crew` with what it reports, `hand_out`.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from mnemoscope import __version__
from mnemoscope.errors import MnemoscopeError, RunError
from mnemoscope.runs.execute import Unit, Worker, execute, given_up
from mnemoscope.runs.folder import Writer
from mnemoscope.sampling.loop import Progress

TRIES = 3
"""Workers that may die at a unit before it is marked: a machine may fail twice, a unit always."""

STARTS = 3
"""Workers a place that may die before they begin, in a row, until it is called hopeless."""

PATIENCE = 60
"""Seconds in which a commit of another machine must be seen; network file systems cache folders."""

Make = Callable[[Progress], Worker]
"""Makes a worker that tells how many rows its network evaluated; a value that can be sent."""


@runtime_checkable
class Portable(Worker, Protocol):
    """A worker of which another process can have its like."""

    def elsewhere(self) -> Make:
        """Return what makes the same worker in another process.

        Raises:
            ModelError: If its model cannot be named there.
        """
        ...

    def credit(self, rows: int) -> None:
        """Count rows that the network evaluated elsewhere."""
        ...


@dataclass(frozen=True)
class Order:
    """What a worker is told when it begins, its work aside.

    Attributes:
        folder: The run folder, absolute.
        holder: Who holds it.
        version: Version of mnemoscope that the driver runs.
        where: Folder that relative paths begin at.
        threads: Threads a worker has.
    """

    folder: str
    holder: str
    version: str
    where: str
    threads: int

    @classmethod
    def of(cls, writer: Writer, threads: int) -> "Order":
        """Return the order of a driver."""
        here = str(Path.cwd())
        return cls(str(writer.path.resolve()), writer.holder, __version__, here, threads)

    def taken(self) -> Writer:
        """Take the order: check that it can be followed, and go where it says.

        Raises:
            RunError: If the version is another, or the folder is not there.
        """
        if __version__ != self.version:
            raise RunError(
                f"a worker runs mnemoscope {__version__}, its driver {self.version}; install the "
                "same on both"
            )
        writer = Writer(Path(self.folder), self.holder)
        writer.ask()
        if Path(self.where).is_dir():
            os.chdir(self.where)
        torch.set_num_threads(self.threads)
        return writer


class Post:
    """Where a worker works: it does a unit and commits it.

    Args:
        order: What it is told.
        make: Makes the worker.

    Raises:
        RunError: If the order cannot be followed.
        ModelError: If the model is not there, or is another.
    """

    def __init__(self, order: Order, make: Make) -> None:
        self.rows = 0
        self.writer = order.taken()
        self.worker = make(self._count)

    def do(self, unit: Unit) -> int:
        """Do a unit; return how many rows its network evaluated.

        Raises:
            RunError: If it cannot be written.
        """
        before = self.rows
        execute(self.writer, self.worker, [unit])
        return self.rows - before

    def _count(self, rows: int) -> None:
        self.rows += rows


@dataclass(frozen=True)
class Died:
    """A worker is no more.

    Attributes:
        reason: How it ended.
    """

    reason: str


Report = int | Died | MnemoscopeError
"""Rows evaluated by a worker that is free now, or how it ended."""


@runtime_checkable
class Crew(Protocol):
    """Workers at numbered places, however they are kept."""

    def hire(self, place: int) -> None:
        """Let a worker begin; it reports once it is ready."""
        ...

    def give(self, place: int, unit: Unit) -> None:
        """Give a worker a unit; it reports once that is committed."""
        ...

    def wait(self, places: Collection[int]) -> Mapping[int, Report]:
        """Wait for the next reports of workers that have not reported since."""
        ...

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        ...


def hand_out(
    crew: Crew,
    count: int,
    writer: Writer,
    worker: Portable,
    units: Iterable[Unit],
    done: Callable[[Unit], None] | None = None,
) -> None:
    """Have a crew do units; no more workers are hired than there are units.

    Args:
        crew: The crew.
        count: Its places.
        writer: Where to.
        worker: Whose like the crew are.
        units: The units that are not on disk yet; read as they are handed out.
        done: Told of each unit that is on disk.

    Raises:
        MnemoscopeError: What a worker said on purpose.
        RunError: If workers die before they begin, or write what is not seen here.
    """
    left = iter(units)
    first = deque(islice(left, count))
    again = deque[Unit]()
    busy: dict[int, Unit | None] = dict.fromkeys(range(len(first)))
    died: Counter[str] = Counter()
    stillborn = 0

    def finish(unit: Unit) -> None:
        _see(writer, unit)
        died.pop(unit.name, None)
        if done is not None:
            done(unit)

    try:
        for place in busy:
            crew.hire(place)
        more = bool(first)
        while more or any(unit is not None for unit in busy.values()):
            for place, report in crew.wait(busy).items():
                unit = busy.pop(place)
                if isinstance(report, MnemoscopeError):
                    raise report
                if isinstance(report, Died):
                    if unit is None:
                        stillborn += 1
                        if stillborn >= STARTS * count:
                            raise RunError(
                                f"{stillborn} workers died before they began, the last one: "
                                f"{report.reason}; has each enough memory for the model?"
                            )
                    elif writer.has(unit.name):
                        finish(unit)
                    elif died[unit.name] + 1 < TRIES:
                        died[unit.name] += 1
                        # Last, for it may be the unit that kills, or what does may soon be over.
                        again.append(unit)
                        more = True
                    else:
                        error = RuntimeError(f"{TRIES} workers died at it: {report.reason}")
                        writer.append(unit.name, given_up(worker, unit, error))
                        finish(unit)
                    crew.hire(place)
                    busy[place] = None
                    continue
                if unit is not None:
                    stillborn = 0
                    worker.credit(report)
                    finish(unit)
                following = first.popleft() if first else next(left, None)
                if following is None and again:
                    following = again.popleft()
                more = following is not None
                if following is not None:
                    crew.give(place, following)
                    busy[place] = following
    finally:
        crew.close()


def _see(writer: Writer, unit: Unit) -> None:
    """Wait until a commit is seen: what is derived at the end is derived from all of them."""
    end = time.monotonic() + PATIENCE
    while not writer.has(unit.name):
        if time.monotonic() > end:
            raise RunError(
                f"a worker has finished unit {unit.name!r}, and {str(writer.path)!r} does not "
                f"show it after {PATIENCE} s; give an --out on storage that all machines share"
            )
        time.sleep(0.1)
