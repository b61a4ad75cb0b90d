"""A small network in the place of SSCD's."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mnemoscope.similarity.sscd import VARIABLE


class Coarse(nn.Module):
    """An image at 4 x 4 pixels as a descriptor."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


@contextmanager
def sscd_network(folder: Path) -> Generator[Path]:
    """Name a small TorchScript network as SSCD's while the context lasts."""
    path = folder / "sscd.torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Coarse(), torch.rand(2, 3, 8, 8)), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(path))
        yield path
