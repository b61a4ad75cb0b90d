"""The cost of a study beside its network calls: the whole study against those calls alone.

Every call of the denoising network is made twice, once for the study and once more with the same
inputs, and the second is the peer. So both are made of the same calls within the same seconds, and
a machine whose speed drifts by the minute does not decide. With t the study's time, the second
calls included, and b that of the second calls::

    value = (t - b) / b

What is above 1 is everything a study adds: text, sampler, record, probes' arithmetic, pictures,
similarity, tables, analyses, and a network that is slower between them than by itself.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.table import Row, show
from mnemoscope import Study, run

LIMIT = 1.05
ROUNDS = 2


@dataclass
class Peer:
    """The second calls.

    Attributes:
        seconds: What they took.
        calls: How many they were.
        rows: How many rows they had.
    """

    seconds: float = 0.0
    calls: int = 0
    rows: int = 0


@contextmanager
def doubled() -> Iterator[Peer]:
    """Make every call of a U-Net twice while the block runs, and time the second."""
    peer = Peer()
    forward = UNet2DConditionModel.forward

    # Conditions are captured by the signature of the network's forward.
    @wraps(forward)
    def twice(
        self: UNet2DConditionModel,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        made = forward(self, sample, timestep, encoder_hidden_states, *rest, **named)
        start = perf_counter()
        with torch.no_grad():
            forward(self, sample, timestep, encoder_hidden_states, *rest, **named)
        peer.seconds += perf_counter() - start
        peer.calls += 1
        peer.rows += len(sample)
        return made

    UNet2DConditionModel.forward = twice
    try:
        yield peer
    finally:
        UNet2DConditionModel.forward = forward


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""

    def study(folder: str, name: str, prompts: int = 8, seeds: int = 8) -> None:
        at = Path(folder) / name
        run(Study(model="embedded", subset=prompts, seeds=seeds, guidance=(1.0, 7.5), out=at))

    with tempfile.TemporaryDirectory() as folder:
        # What is imported and made once belongs to no study.
        study(folder, "first", prompts=1, seeds=2)
        with doubled() as peer:
            start = perf_counter()
            for turn in range(ROUNDS):
                study(folder, f"timed-{turn}")
            ours = perf_counter() - start - peer.seconds
    rows = [
        Row("whole study against its network calls", f"{ours:.1f} s", f"{peer.seconds:.1f} s",
            ours / peer.seconds, LIMIT),
    ]  # fmt: skip
    return show(
        "Overhead of a study",
        rows,
        f"embedded model, {ROUNDS} studies of 8 prompts, 8 seeds, g = 1 and 7.5, 50 steps, "
        f"{peer.calls} calls of {peer.rows} rows, {torch.get_num_threads()} threads",
    )


if __name__ == "__main__":
    sys.exit(not main())
