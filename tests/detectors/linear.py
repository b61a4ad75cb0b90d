"""A denoiser that is linear in the state, so that every derivative is known."""

import torch

from mnemoscope.core.level import Level
from mnemoscope.core.record import Point


class Linear:
    """eps = A_k·x + b_k, the condition [row, 1] naming k."""

    kind = "eps"

    def __init__(self, matrices, offsets):
        self.matrices, self.offsets = matrices, offsets

    def __call__(self, x, timestep, condition):
        which = condition.parts["states"][:, 0].long()
        flat = torch.einsum("rij,rj->ri", self.matrices[which], x.flatten(1))
        return (flat + self.offsets[which]).reshape(x.shape)


def point(alpha=0.6, sigma=0.8):
    """Return a call at a level of the unit form."""
    level = Level(torch.tensor(alpha).double(), torch.tensor(sigma).double())
    return Point(0, torch.tensor(7), level)


def linear(d=6, diagonal=False):
    """Return a linear denoiser with two conditions, in float64."""
    torch.manual_seed(3)
    matrices = torch.randn(2, d, d).double()
    if diagonal:
        matrices = torch.diag_embed(torch.diagonal(matrices, dim1=1, dim2=2))
    return Linear(matrices, torch.randn(2, d).double())
