"""The cost of a study beside its network calls: the whole study against a bare loop.

The bare loop calls the denoising network exactly as often as the study does, with the same batch
sizes and in the same precision, and does nothing else. What is above 1 is everything a study adds:
text, sampler, record, probes' arithmetic, pictures, similarity, tables, analyses.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.table import Row, show
from mnemoscope import Study, load_model, run

LIMIT = 1.10
ROUNDS = 2


@contextmanager
def counted() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Note the inputs of every call of a U-Net while the block runs."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    kept: dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor]] = {}
    forward = UNet2DConditionModel.forward

    def note(
        self: UNet2DConditionModel,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        given = (sample, torch.as_tensor(timestep), encoder_hidden_states)
        shapes = tuple(tuple(part.shape) for part in given)
        # One set of tensors a shape is enough to time with, and keeps memory out of the comparison.
        calls.append(kept.setdefault(shapes, given))
        return forward(self, sample, timestep, encoder_hidden_states, *rest, **named)

    UNet2DConditionModel.forward = note
    try:
        yield calls
    finally:
        UNet2DConditionModel.forward = forward


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    network = next(
        part
        for part in vars(load_model("embedded")).values()
        if isinstance(part, UNet2DConditionModel)
    )

    def study(folder: str, name: str) -> float:
        chosen = Study(
            model="embedded", subset=8, seeds=8, guidance=(1.0, 7.5), out=Path(folder) / name
        )
        start = perf_counter()
        run(chosen)
        return perf_counter() - start

    @torch.no_grad()
    def bare(calls: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        start = perf_counter()
        for sample, timestep, states in calls:
            network(sample, timestep, states)
        return perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        with counted() as calls:
            study(folder, "counted")
        whole, loop = [], []
        for turn in range(ROUNDS):
            whole.append(study(folder, f"timed-{turn}"))
            loop.append(bare(calls))
    ours, peer = min(whole), min(loop)
    rows = [
        Row("whole study against its network calls", f"{ours:.1f} s", f"{peer:.1f} s",
            ours / peer, LIMIT),
    ]  # fmt: skip
    evaluations = sum(len(sample) for sample, _, _ in calls)
    return show(
        "Overhead of a study",
        rows,
        f"embedded model, 8 prompts, 8 seeds, g = 1 and 7.5, 50 steps, {len(calls)} calls of "
        f"{evaluations} rows, {torch.get_num_threads()} threads; value = ours / peer",
    )


if __name__ == "__main__":
    sys.exit(not main())
