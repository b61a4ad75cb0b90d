"""A planting is looked at while it goes on: what it reproduces at every state that was kept.

A state holds the weights of the denoiser after some steps; what is drawn from is their running
average, as it is from the model that ships. A sample is reproduced by the rule of `evaluate`.

Contents: `keep`, `kept_in`, `Kept`.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from safetensors.torch import load_file

from mnemoscope.errors import InputError
from mnemoscope.lab.evaluate import GUIDANCE, draw, unrelated_threshold
from mnemoscope.lab.planted import Planted, load_planted, pictures_of
from mnemoscope.lab.train import PLANTING, denoiser_network, half, table_of, write_index
from mnemoscope.models import load_model
from mnemoscope.models.base import Model

STEPS = 20
"""Network calls a sample and branch."""

LEVELS = (3, 4, 5, 6)
"""Repetition levels that are measured; what is seen less often is not reproduced to the end."""


@dataclass(frozen=True)
class Kept:
    """What a planting had come to.

    Attributes:
        step: Steps of training.
        rows: The planted rows that were drawn.
        reproduced: Which samples of each row reproduce its picture.
    """

    step: int
    rows: Sequence[Planted]
    reproduced: Bool[np.ndarray, "row seed"]


def keep(out: Path, step: int) -> None:
    """Keep the state of a planting that was just written."""
    shutil.copy(out / PLANTING / "state.safetensors", out / f"kept-{step:05}.safetensors")


@torch.no_grad()
def kept_in(folder: Path, seeds: int = 1) -> list[Kept]:
    """Measure the states that a planting kept, the earliest first.

    Args:
        folder: Folder of the planting.
        seeds: Samples a picture.

    Raises:
        InputError: If it kept none.
    """
    files = sorted(folder.glob("kept-*.safetensors"))
    if not files:
        raise InputError(f"{str(folder)!r} holds no kept state; plant with --keep")
    planted = load_planted(table_of(folder))
    rows = [row for row in planted if row.family == "verbatim" and row.level in LEVELS]
    targets = pictures_of(rows)
    threshold = unrelated_threshold()
    found: list[Kept] = []
    for file in files:
        step, model = _model(folder, file)
        drawn = draw(model, [row.caption for row in rows], seeds, GUIDANCE, STEPS)
        error = (drawn - targets[:, None]).square().flatten(2).mean(2).sqrt()
        found.append(Kept(step, rows, (error < threshold).numpy()))
    return sorted(found, key=lambda kept: kept.step)


def _model(folder: Path, file: Path) -> tuple[int, Model]:
    held = load_file(file)
    unet = denoiser_network()
    for i, p in enumerate(unet.parameters()):
        p.data.copy_(held[f"a{i}"])
    with tempfile.TemporaryDirectory() as place:
        built = Path(place)
        for part in ("vae", "tokenizer", "text_encoder"):
            shutil.copytree(folder / "model" / part, built / part)
        half(unet, built / "unet")
        write_index(built)
        return int(held["step"]), load_model(str(built))
