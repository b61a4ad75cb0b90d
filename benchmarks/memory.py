"""Scale: memory flat in prompts, and how soon work begins on a long list.

A study of the embedded model, and a detection on captions with a closed form in the network's place
whose memory would show in every prompt that is kept. Each size runs in a process of its own, since
a process never gives its peak back.
"""

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.table import Row, show

FEW, MANY = 8, 32
"""Prompts of the study; the fewer fill one unit of work already."""

CAPTIONS, MORE = 10_000, 100_000
"""Captions of the detection."""

LIMIT, BEGIN = 1.10, 10.0
"""Ratio of peaks; seconds from the call to the first network call."""


def study(prompts: int, folder: str) -> float:
    """Run a study of some prompts; return 0, for it is not timed."""
    from mnemoscope import Study, run

    run(
        Study(
            model="embedded", subset=prompts, seeds=2, guidance=(7.5,), steps=5,
            out=Path(folder) / "run",
        )
    )  # fmt: skip
    return 0.0


def detection(captions: int, folder: str) -> float:
    """Score some captions; return the seconds until the network was first called."""
    from mnemoscope import detect, load_model

    path = Path(folder) / "captions.txt"
    with path.open("w") as file:
        for at in range(captions):
            file.write(f"caption {at} of a picture with {at % 97} birds over {at % 31} hills\n")
    model: Any = load_model("oracle:mixture")
    first: list[float] = []

    class Timed(type(model.denoiser)):
        def __call__(self, *given: Any) -> Any:
            if not first:
                first.append(perf_counter())
            return super().__call__(*given)

    model.denoiser = Timed(model.denoiser.means, model.denoiser.spreads, model.denoiser.kind)
    start = perf_counter()
    detect(model, path, detectors=["gap_norm", "confidence"], seeds=2, out=Path(folder) / "run")
    return first[0] - start


def peak(
    work: Callable[[int, str], float], size: int, pipe: "multiprocessing.connection.Connection"
) -> None:
    """Send the peak resident memory of a piece of work, in bytes, and what it returned."""
    with tempfile.TemporaryDirectory() as folder:
        begun = work(size, folder)
    # The kernel counts kilobytes, on macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, begun))


def measure(work: Callable[[int, str], float], size: int) -> tuple[int, float]:
    """Return the peak resident memory of a fresh process, in bytes, and what the work returned."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=peak, args=(work, size, theirs))
    process.start()
    # Closed here, so that a child that dies ends the wait.
    theirs.close()
    value = ours.recv()
    process.join()
    return value


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    rows: list[Row] = []
    for what, work, few, many in (
        ("study", study, FEW, MANY),
        ("detection", detection, CAPTIONS, MORE),
    ):
        small, _ = measure(work, few)
        large, begun = measure(work, many)
        rows.append(
            Row(
                f"{what}: peak memory, {many:,} against {few:,} prompts",
                f"{large / 2**20:.0f} MiB",
                f"{small / 2**20:.0f} MiB",
                large / small,
                LIMIT,
            )
        )
    rows.append(
        Row(f"detection: first network call, {MORE:,} prompts", f"{begun:.1f} s", "", begun, BEGIN)
    )
    return show(
        "Scale",
        rows,
        "study: embedded model, 2 seeds, 5 steps; detection: a closed form, 2 seeds, first call; "
        "value = many / few",
    )


if __name__ == "__main__":
    sys.exit(not main())
