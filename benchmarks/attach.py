"""The cost of an attachment that only records: the pipeline with it against the pipeline alone.

Both are the same run of the embedded model's unmodified pipeline, one after the other in turns, and
end on the same latents. What is above 1 is everything an attachment adds: the branches told apart,
their estimates, the tape.
"""

import sys
from time import perf_counter
from typing import Any

import torch

from benchmarks.table import Row, show
from mnemoscope.core.record import Recorder
from mnemoscope.models import load_model
from mnemoscope.sampling.attach import attach

LIMIT = 1.05
ROUNDS = 8
STEPS = 50
SAMPLES = 4


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    model: Any = load_model("embedded")
    pipeline = model.pipeline

    def latents() -> torch.Tensor:
        return pipeline(
            "noto swan",
            num_inference_steps=STEPS,
            num_images_per_prompt=SAMPLES,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    def alone() -> float:
        start = perf_counter()
        latents()
        return perf_counter() - start

    def attached(*observers: Recorder) -> float:
        with attach(pipeline, *observers):
            start = perf_counter()
            latents()
            taken = perf_counter() - start
        for recorder in observers:
            recorder.trajectory()
        return taken

    alone()
    turns = [(alone(), attached(), attached(Recorder())) for _ in range(ROUNDS)]
    peer, bare, taped = (min(column) for column in zip(*turns, strict=True))
    step = 1e3 / STEPS
    rows = [
        Row("attached, no observer", f"{bare * step:.2f} ms", f"{peer * step:.2f} ms",
            bare / peer, LIMIT),
        Row("attached, with the tape", f"{taped * step:.2f} ms", f"{peer * step:.2f} ms",
            taped / peer, LIMIT),
    ]  # fmt: skip
    return show(
        "Overhead of an attachment, a step",
        rows,
        f"embedded model, {SAMPLES} samples, g = 7.5, {STEPS} steps, "
        f"{torch.get_num_threads()} threads, least of {ROUNDS} turns; value = ours / peer",
    )


if __name__ == "__main__":
    sys.exit(not main())
