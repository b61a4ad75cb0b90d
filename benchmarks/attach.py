"""The cost of watching a live pipeline: an attachment that records, and a guard that lets pass.

What an attachment adds is timed inside the run itself (the hook, and its step less the scheduler's
own), since it is far less than two runs one after the other differ by. What is above 1 is all it
adds: the branches told apart, their estimates, the tape.
"""

import functools
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

import torch

from benchmarks.table import Row, show
from mnemoscope.core.record import Recorder
from mnemoscope.guarding.live import guard
from mnemoscope.models import load_model
from mnemoscope.sampling.attach import Attachment, attach

LIMIT, GUARD_LIMIT = 1.05, 1.02
ROUNDS = 3
STEPS = 50
SAMPLES = 4


class Watch:
    """Add up the time of the processor that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function under the watch."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            start = process_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += process_time() - start

        return timed


def measured(pipeline: Any, watched: Callable[[Any], Any]) -> tuple[float, float]:
    """Return the time of a watched run, and of that what watching took."""
    scheduler, hear = pipeline.scheduler, Attachment.hear
    whole, own, updates = Watch(), Watch(), Watch()
    scheduler.step = updates.timing(scheduler.step)
    Attachment.hear = own.timing(hear)
    try:
        with watched(pipeline):
            scheduler.step = own.timing(scheduler.step)
            whole.timing(pipeline)(
                "noto swan",
                num_inference_steps=STEPS,
                num_images_per_prompt=SAMPLES,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
    finally:
        Attachment.hear = hear
        del scheduler.step
    return whole.seconds, own.seconds - updates.seconds


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    pipeline = load_model("embedded", device="cpu").pipeline
    recorder = Recorder()
    ways = (
        ("attached, no observer", attach, LIMIT),
        ("attached, with the tape", lambda pipe: attach(pipe, recorder), LIMIT),
        ("guarded, nothing suspicious", lambda pipe: guard(pipe, threshold=1e9), GUARD_LIMIT),
    )
    measured(pipeline, attach)
    rows: list[Row] = []
    for what, watched, limit in ways:
        turns: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            turns.append(measured(pipeline, watched))
            recorder.calls.clear()
        whole, own = min(turns, key=lambda turn: turn[1])
        step = 1e3 / STEPS
        rows.append(
            Row(what, f"{whole * step:.2f} ms", f"{(whole - own) * step:.2f} ms",
                whole / (whole - own), limit)
        )  # fmt: skip
    return show(
        "Overhead of watching a live pipeline, a step",
        rows,
        f"embedded model, {SAMPLES} samples, g = 7.5, {STEPS} steps, "
        f"{torch.get_num_threads()} threads; peer = the rest of the run, value = ours / peer",
    )


if __name__ == "__main__":
    sys.exit(not main())
