"""Chaos: what dies while a crew works, and whether the result is that of one process.

A study, a detection and an audit of the oracle are done by a crew whose workers sleep over every
unit, while

    workers killed     the one that began a unit last, every two seconds; units must be shorter,
                       or none is ever done
    driver killed      at a random moment
    disk full          at one worker, once
    machine lost       of one worker, at a random moment, and another joins; with Ray, whose
                       machines are nodes of a cluster on this one

Then one process does what is left, which is nothing where the driver came to its end. Survived: all
tables are those of one process row for row, times aside, no file is damaged, and no more units were
begun anew than workers were lost (those that end with their driver included). Every number is
counted in the log that workers keep of the units they begin. A unit at which three workers died is
marked as failed, as it is said to be; runs with one are counted, and it is done by the same command
with `--retry`, as are later stages of an audit, whose captions were chosen without it.

    python -m benchmarks.chaos --executor ray:2 --flow audit --tries 4

Contents: `main`.
"""

import argparse
import errno
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import Flow, flows, whole_as_told
from mnemoscope import open_run
from mnemoscope.errors import RunError
from mnemoscope.flows import detect, study
from mnemoscope.runs import executors, records
from mnemoscope.runs.crew import Make
from mnemoscope.runs.execute import Unit, Worker
from mnemoscope.runs.folder import Writer
from mnemoscope.runs.verify import runs_in

UNITS = 24
"""Units of a study and of a detection."""
FULL = 5
"""Exit status of a driver that was told of a full disk."""
JOINS = 2.0
"""Seconds after which another machine takes the place of a lost one."""


@dataclass
class Paced:
    """A worker that sleeps over its units, and notes which it began.

    Attributes:
        inner: What does the work.
        at: Folder of the log, of the pace, and of what is to happen.
        stage: Name of the run folder.
    """

    inner: Any
    at: Path
    stage: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def elsewhere(self) -> Make:
        """Return what makes the same in another process."""
        return partial(paced, self.inner.elsewhere(), self.at, self.stage)

    def gather(self, unit: Unit) -> Any:
        """Note, sleep, work."""
        with (self.at / "log").open("a") as file:
            file.write(f"{self.stage}/{unit.name} {os.getpid()}\n")
        full = self.at / "full"
        if unit.start >= 4 and full.exists():
            full.unlink()
            records.os.fsync = no_space
        time.sleep(float((self.at / "pace").read_text()))
        return self.inner.gather(unit)


def paced(make: Make, at: Path, stage: str, tick: Any) -> Worker:
    """Make one in another process."""
    return Paced(make(tick), at, stage)


def no_space(handle: int) -> None:
    """Have no room for a file."""
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def sleeping(at: Path) -> Generator[None]:
    """Have all workers sleep, whatever executes their units."""

    def executor_of(asked: Any) -> Any:
        execute = executors.executor_of(asked)

        def work(writer: Writer, worker: Any, units: Iterable[Unit], **more: Any) -> None:
            execute(writer, Paced(worker, at, writer.path.name), units, **more)

        return work

    study.executor_of = detect.executor_of = executor_of
    try:
        yield
    finally:
        study.executor_of = detect.executor_of = executors.executor_of


def work(at: Path, flow: str, out: Path, **options: Any) -> Flow:
    """Do the work of a flow, a unit a batch of two; return the flow."""
    torch.set_num_threads(1)
    texts = [f"target {k}" for k in range(8)] + [f"unseen {k}" for k in range(UNITS - 8)]
    known = flows(at, texts)[flow]
    known.work(out, batch=2, **options)
    return known


@dataclass
class Machines:
    """Nodes of a Ray cluster, each with room for one worker; its head has room for none."""

    cluster: Any
    nodes: list[Any] = field(default_factory=list[Any])

    def join(self) -> None:
        """Add one."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, include_dashboard=False))

    def lose(self, chance: random.Random) -> None:
        """Lose one, as if its plug were pulled."""
        lost = self.nodes.pop(chance.randrange(len(self.nodes)))
        self.cluster.remove_node(lost, allow_graceful=False)


@contextmanager
def machines(executor: str) -> Generator[Machines | None]:
    """Have a cluster of as many machines as there are workers, where Ray keeps them."""
    name, _, count = executor.partition(":")
    if name != "ray":
        yield None
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    utils = importlib.import_module("ray.cluster_utils")
    cluster = utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    found = Machines(cluster)
    try:
        for _ in range(int(count)):
            found.join()
        yield found
    finally:
        cluster.shutdown()


@dataclass
class Driver:
    """A command that is at work in a process of its own.

    Attributes:
        at: Its folder.
        process: The process.
    """

    at: Path
    process: "subprocess.Popen[bytes]"

    def begun(self) -> list[tuple[str, int]]:
        """Return the units that were begun, each with the process."""
        with suppress(OSError):
            lines = (line.split() for line in (self.at / "log").read_text().splitlines())
            return [(unit, int(process)) for unit, process in lines]
        return []

    @property
    def workers(self) -> int:
        """Return how many processes have begun a unit."""
        return len({process for _, process in self.begun()})

    def until(self, units: int) -> None:
        """Wait until so many units were begun, or it has ended."""
        while len(self.begun()) < units and self.process.poll() is None:
            time.sleep(0.02)


@dataclass(frozen=True)
class Chaos:
    """What campaigns go by.

    Attributes:
        executor: The crew.
        pace: Seconds a unit is slept over.
        every: Seconds between two kills of workers.
        chance: Random moments.
        machines: Where workers are, with Ray.
    """

    executor: str
    pace: float
    every: float
    chance: random.Random
    machines: Machines | None

    def begin(self, at: Path, flow: str) -> Driver:
        """Give a command."""
        at.mkdir()
        (at / "pace").write_text(str(self.pace))
        options = ["--drive", str(at), "--flow", flow, "--executor", self.executor]
        if self.machines is not None:
            options += ["--address", self.machines.cluster.address]
        return Driver(at, subprocess.Popen([sys.executable, "-m", "benchmarks.chaos", *options]))


def workers_killed(driver: Driver, by: Chaos) -> int:
    """Kill workers until the work is done; return how many died."""
    lost = list[int]()
    while driver.process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            driver.process.wait(by.every)
            break
        here = [process for _, process in driver.begun() if process not in lost]
        if here:
            with suppress(ProcessLookupError):
                os.kill(here[-1], signal.SIGKILL)
                lost.append(here[-1])
    return len(lost)


def driver_killed(driver: Driver, by: Chaos) -> int:
    """Kill the driver amid its units; return how many workers it had at work."""
    driver.until(by.chance.randrange(2, 10))
    driver.process.kill()
    return driver.workers


def disk_full(driver: Driver, by: Chaos) -> int:
    """Let a worker find its disk full; return how many workers ended by it."""
    del by
    (driver.at / "full").touch()
    driver.process.wait()
    return driver.workers


def machine_lost(driver: Driver, by: Chaos) -> int:
    """Lose a worker's machine amid its units, and let another one join."""
    assert by.machines is not None
    driver.until(by.chance.randrange(2, 10))
    by.machines.lose(by.chance)
    time.sleep(JOINS)
    by.machines.join()
    return 1


CAMPAIGNS: dict[str, tuple[Callable[[Driver, Chaos], int], int]] = {
    "workers killed": (workers_killed, 0),
    "driver killed": (driver_killed, -signal.SIGKILL),
    "disk full": (disk_full, FULL),
    "machine lost": (machine_lost, 0),
}
"""Campaigns, each with how its driver ends."""


@dataclass
class Counts:
    """What was counted."""

    tried: int = 0
    survived: int = 0
    units: int = 0
    lost: int = 0
    anew: int = 0
    marked: int = 0

    def note(
        self, driver: Driver, flow: str, lost: int, ended: int, wanted: Mapping[str, Any]
    ) -> None:
        """Do what is left in one process, and count."""
        out, held = driver.at / "run", driver.process.wait() == ended
        (driver.at / "pace").write_text("0")
        with sleeping(driver.at):
            known = work(driver.at, flow, out)
            begun, failed = Counter(unit for unit, _ in driver.begun()), given_up(out)
            if failed:
                work(driver.at, flow, out, retry=True)
        anew = begun.total() - len(begun) + len(failed)
        held = held and known.content(out) == wanted and whole_as_told(out) and anew <= lost
        self.tried, self.survived = self.tried + 1, self.survived + held
        self.units, self.marked = self.units + len(begun), self.marked + bool(failed)
        self.lost, self.anew = self.lost + lost, self.anew + anew


def given_up(out: Path) -> set[str]:
    """Return the units of a run and of its stages that are marked as failed."""
    return {
        f"{folder.name}/{unit}"
        for folder in runs_in(out)
        for unit in open_run(folder).units("samples")
        if "error" in open_run(folder).part("samples", unit)["status"].to_pylist()
    }


def main(by: Chaos, tries: int = 1, only: str = "", flow: str = "") -> bool:
    """Run campaigns; return whether all were survived.

    Args:
        by: What they go by.
        tries: How often each is tried.
        only: Campaigns whose name holds this.
        flow: The flow; every one if left.
    """
    told = f"units of {by.pace:g} s, kills every {by.every:g} s; load {os.getloadavg()[0]:.1f}"
    print(f"\nchaos: {by.executor}, {told}")
    names = [f.name for f in fields(Counts)]
    print(f"  {'fault':16} {'flow':8}", *(f"{name:>9}" for name in (*names, "s")), flush=True)
    kept = True
    with tempfile.TemporaryDirectory(prefix="mnemoscope-chaos-") as folder:
        for kind in ("study", "detect", "audit"):
            if flow not in ("", kind):
                continue
            whole = Path(folder) / kind
            wanted = work(Path(folder), kind, whole).content(whole)
            for fault, (campaign, ended) in CAMPAIGNS.items():
                if only not in fault or (campaign is machine_lost and by.machines is None):
                    continue
                start, counts = time.perf_counter(), Counts()
                for number in range(tries):
                    at = Path(folder) / f"{kind}-{campaign.__name__}-{number}"
                    driver = by.begin(at, kind)
                    counts.note(driver, kind, campaign(driver, by), ended, wanted)
                values = (*astuple(counts), round(time.perf_counter() - start))
                print(f"  {fault:16} {kind:8}", *(f"{n:9}" for n in values), flush=True)
                kept = kept and counts.survived == tries
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--executor", default="local:2")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--only", default="", help="campaigns whose name holds this")
    parser.add_argument("--flow", default="", help="study, detect or audit; all if left")
    parser.add_argument("--pace", type=float, default=0.4, help="seconds a unit is slept over")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--address")
    given = parser.parse_args()
    if given.drive is not None:
        try:
            with sleeping(given.drive):
                out, crew = given.drive / "run", (given.executor, given.address)
                work(given.drive, given.flow, out, executor=crew[0], address=crew[1])
        except RunError as error:
            sys.exit(FULL if "No space left" in str(error) else str(error))
        sys.exit()
    with machines(given.executor) as on:
        by = Chaos(given.executor, given.pace, given.every, random.Random(0), on)
        sys.exit(not main(by, given.tries, given.only, given.flow))
