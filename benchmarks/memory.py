"""Peak memory of a study: flat as prompts grow.

Each size runs in a process of its own, since a process never gives its peak back.
"""

import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, show

FEW, MANY = 8, 32
"""Prompts; the fewer fill one unit of work already."""
LIMIT = 1.10


def study(prompts: int, out: str) -> None:
    """Run a study of some prompts."""
    from mnemoscope import Study, run

    run(Study(model="embedded", subset=prompts, seeds=2, guidance=(7.5,), steps=5, out=Path(out)))


def peak(prompts: int, pipe: "multiprocessing.connection.Connection") -> None:
    """Send the peak resident memory of a study, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        study(prompts, f"{folder}/run")
    # The kernel counts kilobytes, on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measure(prompts: int) -> int:
    """Return the peak resident memory of a fresh process that studies some prompts, in bytes."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=peak, args=(prompts, theirs))
    process.start()
    # Closed here, so that a child that dies ends the wait.
    theirs.close()
    value = ours.recv()
    process.join()
    return value


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    few, many = measure(FEW), measure(MANY)
    rows = [
        Row(
            f"peak memory, {MANY} against {FEW} prompts",
            f"{many / 2**20:.0f} MiB",
            f"{few / 2**20:.0f} MiB",
            many / few,
            LIMIT,
        )
    ]
    return show("Memory", rows, "embedded model, 2 seeds, 5 steps; value = many / few")


if __name__ == "__main__":
    sys.exit(not main())
