"""Scaling: what a crew gains over one process, and what its driver costs at any size.

Formulas, for N workers and U units of p seconds each::

    efficiency   = U·p / (N·T),   T from the first unit begun to the last commit
    driver share = CPU seconds of the driver / (T·N), of a core a worker

Parts:

    sleeping workers   real processes that sleep over their units: what handing out costs, whatever
                       else the machine does
    simulated workers  a thousand workers and millions of captions in virtual time: the driver's own
                       loop and messages are real, what answers is a clock
    folder             time to open, list and read a run folder by its number of units
    working workers    with --cores: processes with the shipped model on one thread each, against
                       one process
    actors             with --ray: actors that sleep, and what it costs to wait for one of many

Contents: `main`.
"""

import argparse
import heapq
import importlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from selectors import EVENT_READ, BaseSelector, DefaultSelector
from typing import Any

import torch

from benchmarks.table import Row, show
from mnemoscope import detect
from mnemoscope.data.prompts import Prompt
from mnemoscope.runs import actors, processes, records
from mnemoscope.runs.actors import Cluster
from mnemoscope.runs.crew import Make, Order, Report, hand_out
from mnemoscope.runs.execute import Executor, Rows, Unit, execute, units_of
from mnemoscope.runs.folder import Writer, open_run
from mnemoscope.runs.manifest import Manifest
from mnemoscope.runs.processes import Local
from mnemoscope.runs.tables import TABLES
from mnemoscope.sampling.recipe import Recipe

RECIPE = Recipe(guidance=1.0)
A_UNIT = 16
"""Captions a unit, as detect has them at four seeds and batches of 64."""

PACE = 3.2
"""Seconds a unit of a simulated worker: 64 rows at 20 rows a second."""


def manifest() -> Manifest:
    """Return the manifest of a folder that holds scores alone."""
    return Manifest(
        flow="detection", given={}, options={}, packages={}, prompts="p",
        model={"name": "m", "digest": "0" * 64}, device="cpu", dtype="float32",
        final_level=(1.0, 0.0), d=4, latent_shape=(4,),
    )  # fmt: skip


def captions(count: int) -> Iterator[Prompt]:
    """Yield captions, each as it is asked for."""
    return (Prompt(f"{at:016x}", f"a photograph of thing {at} on a table") for at in range(count))


@dataclass
class Sleeper:
    """A worker that sleeps over its units, and scores them with their time."""

    pace: float = 0.0
    log: str = ""

    def elsewhere(self) -> Make:
        """Return what makes the same."""
        return partial(sleeper, self.pace, self.log)

    def credit(self, rows: int) -> None:
        """Count nothing."""

    def gather(self, unit: Unit) -> float:
        """Note when it began, and sleep."""
        with Path(self.log).open("a") as file:
            file.write(f"{time.time()}\n")
        time.sleep(self.pace)
        return time.time()

    def reduce(self, unit: Unit, gathered: float) -> Rows:
        """Make a row a caption."""
        del gathered
        rows = [
            {
                "prompt_id": prompt.prompt_id, "recipe": unit.recipe.key, "detector": "gap_norm",
                "kind": "prompt", "seeds": 4,
                "score": 1.0, "network_calls": 4, "seconds": self.pace,
            }
            for prompt in unit.prompts
        ]  # fmt: skip
        return {"scores": TABLES["scores"].of_rows(rows)}

    def failed(self, unit: Unit, error: Exception) -> Rows:
        """Mark nothing."""
        raise error


def sleeper(pace: float, log: str, tick: Any) -> Sleeper:
    """Make one in another process."""
    del tick
    return Sleeper(pace, log)


def sleeping(crew: Executor, workers: int, units: int, pace: float) -> tuple[float, float]:
    """Return efficiency, and the driver's share of a core a worker."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        with Writer.open(at / "run", manifest()) as writer:
            worker = Sleeper(pace, str(at / "log"))
            todo = units_of(captions(units), [RECIPE], 1)
            before, spent = time.time(), time.process_time()
            ends: list[float] = []
            crew(writer, worker, todo, done=lambda unit: ends.append(time.time()))
            spent = time.process_time() - spent
        starts = sorted(float(line) for line in (at / "log").read_text().split())
    # Workers begin one after the other; what counts is the time in which all are there.
    first = starts[workers - 1]
    seconds = max(ends) - first
    kept = sum(end > first for end in ends)
    return kept * pace / (workers * seconds), spent / ((max(ends) - before) * workers)


class Answering:
    """An actor that does nothing."""

    def do(self, unit: Unit) -> int:
        """Answer."""
        return 0


class Silent:
    """An actor that is at work for ever."""

    def do(self, unit: Unit) -> int:
        """Go on working."""
        time.sleep(10**6)
        return 0


def waiting(places: int, units: int = 300) -> float:
    """Return the driver's CPU seconds a unit that one of so many actors of Ray reports."""
    ray: Any = importlib.import_module("ray")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    silent, answering = (ray.remote(num_cpus=0)(kind).remote() for kind in (Silent, Answering))
    order = Order("", "", "", "", 1)
    crew = actors._Actors(ray, order, [], {}, dict.fromkeys(range(places), silent))
    todo = [*units_of(captions(units * A_UNIT), [RECIPE], A_UNIT)]
    for place in range(places):
        crew.give(place, todo[0])
    crew.held[0] = answering
    crew.give(0, todo[0])
    crew.wait([0])
    spent = time.process_time()
    for unit in todo:
        crew.give(0, unit)
        crew.wait(range(places))
    spent = time.process_time() - spent
    ray.shutdown()
    return spent / units


def working(workers: int, prompts: int) -> float:
    """Return the seconds of a detection by the shipped model, from the first score to the last."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        texts = [f"a noto banana on a marble floor, take {at}" for at in range(prompts)]
        executor = "inline" if workers == 1 else f"local:{workers}"
        detect("embedded", texts, seeds=4, batch=4, out=out, executor=executor)
        stamps = sorted(file.stat().st_mtime for file in (out / "commits").glob("0*.json"))
    # The first unit of each worker pays for its start.
    return (stamps[-1] - stamps[workers - 1]) / (len(stamps) - workers)


@dataclass
class Simulated:
    """A crew in virtual time: messages are made and links are waited for, nobody works.

    Attributes:
        links: A link a worker, as far as files may be open, waited for as the driver does.
        clock: Virtual seconds.
    """

    links: BaseSelector
    clock: float = 0.0
    queue: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    sent: int = 0

    def hire(self, place: int) -> None:
        """Begin at once."""
        heapq.heappush(self.queue, (self.clock + place * PACE / 1000, place))

    def give(self, place: int, unit: Unit) -> None:
        """Make the message."""
        self.sent += len(processes._sent(unit))
        heapq.heappush(self.queue, (self.clock + PACE, place))

    def wait(self, places: Collection[int]) -> Mapping[int, Report]:
        """Wait as the driver would, then let the next one report."""
        del places
        self.links.select(timeout=0)
        self.clock, place = heapq.heappop(self.queue)
        return {place: 0}

    def close(self) -> None:
        """End nobody."""


class Unwritten:
    """A folder in which every unit is seen."""

    path = Path("nowhere")

    def has(self, unit: str) -> bool:
        """Say yes."""
        return True


def simulated(workers: int, count: int) -> tuple[float, float, float]:
    """Return the driver's CPU seconds, virtual seconds, and the memory it took, in MB."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100
    pipes = [Pipe() for _ in range(min(workers, limit))]
    links = DefaultSelector()
    for ours, _ in pipes:
        links.register(ours, EVENT_READ)
    crew: Any = Simulated(links)
    folder: Any = Unwritten()
    held = _resident()
    spent = time.process_time()
    hand_out(crew, workers, folder, Sleeper(), units_of(captions(count), [RECIPE], A_UNIT))
    spent = time.process_time() - spent
    for pair in pipes:
        for link in pair:
            link.close()
    return spent, crew.clock, _resident() - held


def _resident() -> float:
    """Return the memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def folder_of(at: Path, units: int) -> dict[str, float]:
    """Fill a folder, and return the seconds that it takes to go on with it and to read it."""
    sync, records.os.fsync = records.os.fsync, lambda handle: None
    try:
        with Writer.open(at, manifest()) as writer:
            worker = Sleeper(0.0, str(at.with_name("log")))
            execute(writer, worker, units_of(captions(units * A_UNIT), [RECIPE], A_UNIT))
    finally:
        records.os.fsync = sync
    told: dict[str, float] = {}

    def timed(name: str, since: float) -> float:
        told[name] = time.perf_counter() - since
        return time.perf_counter()

    now = time.perf_counter()
    with Writer.open(at, manifest()) as writer:
        now = timed("go on", now)
        writer.finished()
        now = timed("list", now)
        writer.close(manifest(), "complete")
        now = timed("close", now)
    open_run(at).table("scores", ["score"])
    timed("read", now)
    return told


def main(count: int = 10**6, limit: float = 0.9) -> bool:
    """Measure all parts.

    Args:
        count: Captions of the simulation.
        limit: Least efficiency of sleeping workers.
    """
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows: list[Row] = []
    for workers in (1, 2, 4):
        efficiency, share = sleeping(Local(workers), workers, 10 * workers, 1.0)
        rows.append(Row(f"efficiency, {workers} sleeping", "", "", efficiency, limit, False))
        rows.append(Row(f"driver's share of a core a worker, {workers}", "", "", share, None))
    for workers, captioned in ((10, count // 10), (1000, count // 10), (1000, count)):
        spent, virtual, memory = simulated(workers, captioned)
        what = f"{workers} simulated, {captioned:.0e}"
        each = spent / captioned * A_UNIT * 1e6
        rows.append(Row(f"{what}: driver's us a unit", f"{spent:.0f} s", "", each, None))
        rows.append(Row(f"{what}: driver's share", "", "", spent / virtual / workers, 0.05))
        rows.append(Row(f"{what}: MB more", "", "", memory, 64))
    with tempfile.TemporaryDirectory() as folder:
        for units in (300, 3000):
            for what, seconds in folder_of(Path(folder) / str(units) / "run", units).items():
                each, told = seconds / units * 1e3, f"{seconds:.2f} s"
                rows.append(Row(f"{units} units: {what}, ms a unit", told, "", each, None))
    note = f"{os.cpu_count()} cores, load {load:.1f} when it began"
    return show("scaling", rows, note)


def cores() -> bool:
    """Measure the shipped model in two processes against one."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    one, two = working(1, 24), working(2, 24)
    rows = [
        Row("efficiency, 2 on two cores", f"{two:.2f} s", f"{one:.2f} s", one / two / 2, 0.9, False)
    ]
    return show("scaling on cores", rows, f"seconds a unit; load {load:.1f} when it began")


def clustered() -> bool:
    """Measure actors of Ray."""
    load = os.getloadavg()[0]
    rows: list[Row] = []
    for workers in (2, 4):
        crew = Cluster(workers, (os.cpu_count() or 1) / workers)
        efficiency, share = sleeping(crew, workers, 10 * workers, 1.0)
        rows.append(Row(f"efficiency, {workers} sleeping actors", "", "", efficiency, 0.9, False))
        rows.append(Row(f"driver's share of a core a worker, {workers}", "", "", share, 0.05))
    for places in (1, 10, 100, 1000):
        spent = waiting(places)
        rows.append(Row(f"one of {places} actors: driver's us a unit", "", "", spent * 1e6, None))
    rows.append(Row(f"driver's share, {places}", "", "", spent / PACE, 0.05))
    return show("scaling with Ray", rows, f"{os.cpu_count()} cores, load {load:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--captions", type=int, default=10**6)
    parser.add_argument("--cores", action="store_true")
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    part = cores if given.cores else clustered if given.ray else partial(main, given.captions)
    sys.exit(not part())
