"""Chaos: what is killed while a crew works, and whether the result is that of one process.

A study of the oracle is done by a crew whose workers sleep over every unit, while

    workers are killed     the one that began a unit last, every two seconds; units must be shorter,
                           or none is ever done
    the driver is killed   at a random moment; then the same command is given again
    a disk is full         at one worker, once; then the same command is given again

Survived: the tables are those of one process row for row, times aside, and no more units were begun
anew than workers were lost (those that end with their driver included). Every number is counted in
the log that workers keep of the units they begin. A unit at which three workers died is marked as
failed, as it is said to be; it is counted, and done by the same command with `--retry`.

Contents: `main`.
"""

import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mnemoscope import Study, open_run, run
from mnemoscope.errors import RunError
from mnemoscope.flows.study import StudyWorker
from mnemoscope.runs import records
from mnemoscope.runs.execute import Unit

TABLES = ("samples", "gram", "convergence", "similarities", "severity", "scores", "prompts")


class Sleeping(StudyWorker):
    """Does a study's units, asleep for a while over each; notes in a log which it began."""

    def gather(self, unit: Unit) -> Any:
        """Note, sleep, work."""
        at = Path(self.study.out).parent
        with (at / "log").open("a") as file:
            file.write(f"{unit.name} {os.getpid()}\n")
        full = at / "full"
        if unit.start >= 4 and full.exists():
            full.unlink()
            records.os.fsync = _no_space
        time.sleep(float((at / "pace").read_text()))
        return super().gather(unit)


def _no_space(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def study(at: Path, out: str, executor: str, *, retry: bool = False) -> Any:
    """Return what a study says, times aside; a text knows that NaN equals NaN."""
    torch.set_num_threads(1)
    asked = Study(
        model="oracle:memorizer", prompts=at / "prompts.txt", seeds=2, steps=3, batch=2,
        guidance=(1.0,), similarity=("l2",), device="cpu", out=at / out, executor=executor,
        retry=retry,
    )  # fmt: skip
    held = run(asked, work=Sleeping)
    told: dict[str, str] = {}
    for name in TABLES:
        rows = held.table(name)
        kept = [column for column in rows.column_names if column != "seconds"]
        told[name] = repr(rows.select(kept).to_pylist())
    return told


def begun(at: Path) -> list[tuple[str, int]]:
    """Return the units that were begun, each with the process."""
    with suppress(OSError):
        lines = (line.split() for line in (at / "log").read_text().splitlines())
        return [(unit, int(process)) for unit, process in lines]
    return []


def killing(at: Path, every: float, lost: list[int], over: threading.Event) -> None:
    """Kill the worker that began a unit last, every few seconds."""
    while not over.wait(every):
        here = [process for _, process in begun(at) if process not in {os.getpid(), *lost}]
        if here:
            with suppress(ProcessLookupError):
                os.kill(here[-1], signal.SIGKILL)
                lost.append(here[-1])


def workers_killed(at: Path, executor: str, every: float, chance: random.Random) -> int:
    """Kill workers until the study is done; return how many died."""
    del chance
    lost, over = list[int](), threading.Event()
    killer = threading.Thread(target=killing, args=(at, every, lost, over))
    killer.start()
    try:
        study(at, "run", executor)
    finally:
        over.set()
        killer.join()
    return len(lost)


def driver_killed(at: Path, executor: str, every: float, chance: random.Random) -> int:
    """Kill the driver amid its units; return how many workers it had at work."""
    del every
    command = [sys.executable, "-m", "benchmarks.chaos", "--drive", str(at), "--executor", executor]
    driver = subprocess.Popen(command)
    wanted = chance.randrange(2, 7)
    while len(begun(at)) < wanted and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    time.sleep(1)
    return len({process for _, process in begun(at)})


def disk_full(at: Path, executor: str, every: float, chance: random.Random) -> int:
    """Let a worker find its disk full; return how many workers ended by it."""
    del every, chance
    (at / "full").touch()
    with suppress(RunError):
        study(at, "run", executor)
        raise AssertionError("it went on without a disk")
    return len({process for _, process in begun(at)})


CAMPAIGNS: dict[str, Callable[[Path, str, float, random.Random], int]] = {
    "workers killed": workers_killed,
    "driver killed": driver_killed,
    "disk full at a worker": disk_full,
}


def main(
    executor: str = "local:2",
    prompts: int = 24,
    pace: float = 0.4,
    every: float = 2.0,
    tries: int = 1,
) -> bool:
    """Run every campaign; return whether all were survived.

    Args:
        executor: The crew.
        prompts: Prompts of the study, each a unit.
        pace: Seconds a unit is slept over.
        every: Seconds between two kills of workers.
        tries: How often each is tried.
    """
    load = os.getloadavg()[0]
    told = f"{prompts} units of {pace:g} s, kills every {every:g} s; load {load:.1f}"
    print(f"\nchaos: {executor}, {told}")
    head = f"{'survived':>9} {'lost':>6} {'units anew':>11} {'given up':>9} {'s':>6}"
    print(f"  {'fault':28} {'tried':>6} {head}")
    chance, kept = random.Random(0), True
    with tempfile.TemporaryDirectory(prefix="mnemoscope-chaos-") as folder:
        texts = [f"target {at}" for at in range(8)] + [f"unseen {at}" for at in range(prompts - 8)]

        def place(name: str, pace: float) -> Path:
            at = Path(folder) / name
            at.mkdir()
            (at / "prompts.txt").write_text("\n".join(texts))
            (at / "pace").write_text(str(pace))
            return at

        wanted = study(place("whole", 0.0), "run", "inline")
        for name, campaign in CAMPAIGNS.items():
            survived = lost = anew = marked = 0
            start = time.perf_counter()
            for number in range(tries):
                at = place(f"{campaign.__name__}-{number}", pace)
                here = campaign(at, executor, every, chance)
                found = study(at, "run", executor)
                failed = open_run(at / "run").manifest.samples.get("error", 0)
                if failed:
                    marked += 1
                    found = study(at, "run", executor, retry=True)
                again = sum(Counter(unit for unit, _ in begun(at)).values()) - len(texts)
                survived += found == wanted and again <= here
                lost, anew = lost + here, anew + again
            seconds = time.perf_counter() - start
            told = f"{survived:9} {lost:6} {anew:11} {marked:9} {seconds:6.0f}"
            print(f"  {name:28} {tries:6} {told}", flush=True)
            kept = kept and survived == tries
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--executor", default="local:2")
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=24, help="at least 8")
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--drive", type=Path)
    given = parser.parse_args()
    if given.drive is not None:
        study(given.drive, "run", given.executor)
    else:
        sys.exit(not main(given.executor, given.prompts, every=given.every, tries=given.tries))
