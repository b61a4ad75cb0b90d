"""The cost of a study beside its network calls: the whole study against a bare loop.

The bare loop calls the denoising network exactly as often as the study does, with the same batch
sizes and in the same precision, and does nothing else. What is above 1 is everything a study adds:
text, sampler, record, probes' arithmetic, pictures, similarity, tables, analyses.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.table import Row, show
from mnemoscope import Study, run

LIMIT = 1.05
ROUNDS = 2


class Inputs(NamedTuple):
    """What a network was called with."""

    network: UNet2DConditionModel
    sample: Tensor
    timestep: Tensor
    states: Tensor


@contextmanager
def counted() -> Iterator[list[Inputs]]:
    """Note the inputs of every call of a U-Net while the block runs."""
    calls: list[Inputs] = []
    kept: dict[tuple[Any, ...], Inputs] = {}
    forward = UNet2DConditionModel.forward

    # Conditions are captured by the signature of the network's forward.
    @wraps(forward)
    def note(
        self: UNet2DConditionModel,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        given = Inputs(self, sample, torch.as_tensor(timestep), encoder_hidden_states)
        shapes = tuple(tuple(part.shape) for part in given[1:])
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

    def study(folder: str, name: str) -> float:
        chosen = Study(
            model="embedded", subset=8, seeds=8, guidance=(1.0, 7.5), out=Path(folder) / name
        )
        start = perf_counter()
        run(chosen)
        return perf_counter() - start

    @torch.no_grad()
    def bare(calls: list[Inputs]) -> float:
        start = perf_counter()
        for network, sample, timestep, states in calls:
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
    evaluations = sum(len(call.sample) for call in calls)
    return show(
        "Overhead of a study",
        rows,
        f"embedded model, 8 prompts, 8 seeds, g = 1 and 7.5, 50 steps, {len(calls)} calls of "
        f"{evaluations} rows, {torch.get_num_threads()} threads; value = ours / peer",
    )


if __name__ == "__main__":
    sys.exit(not main())
