"""The decomposition x_t = w0·x + wT·x_T of stored trajectories: closed form against least squares.

The peer's way is the published one: at every step stack copies of the training image and of the
initial noise as the columns of a matrix and call `torch.linalg.lstsq`. Ours solves two normal
equations from inner products. Both are given the same trajectories of Stable Diffusion's latent
size and reckon in float64; ours is timed from the record, as every analysis of a run is, and told
once more with the accumulation of all 36 products, which every other analysis shares.
"""

import sys

import torch
from torch import Tensor

from benchmarks.table import Row, seconds, show
from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level
from mnemoscope.core.record import Trajectory

SAMPLES, CALLS, D = 10, 50, 4 * 64 * 64


def stored() -> tuple[Trajectory, Tensor]:
    """Make trajectories that take in a target earlier than their schedule, with noise to spare."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    abar = torch.linspace(0.0058, 0.998, CALLS, dtype=torch.float64)
    level = Level(abar.sqrt(), (1 - abar).sqrt())
    target = normal(1, D).expand(SAMPLES, D)
    noise, rest = normal(SAMPLES, D), normal(SAMPLES, CALLS, D)
    alpha, sigma = (part[:, None] for part in (level.alpha.float(), level.sigma.float()))
    x = 1.2 * alpha * target[:, None] + 0.9 * sigma * noise[:, None] + 0.3 * rest
    x[:, 0] = noise
    tape = Trajectory(level=level, x=x, v_u=rest, v_c=rest, v_g=rest, x_0=x[:, -1], x_T=noise)
    return tape, target


def peer(tape: Trajectory, target: Tensor) -> Tensor:
    """Fit every step by itself on stacked copies; weights [sample call 2]."""
    weights = []
    for call in range(tape.x.shape[1]):
        columns = torch.stack([target, tape.x[:, 0]], dim=-1).double()
        state = tape.x[:, call, :, None].double()
        weights.append(torch.linalg.lstsq(columns, state).solution[..., 0])
    return torch.stack(weights, dim=1)


def main() -> bool:
    """Measure, print, and return whether every limit is kept."""
    tape, target = stored()
    final = tape.level.at(-1)

    def accumulate() -> Gram:
        return Gram.of(tape, final=final, target=target, mean=None)

    record = accumulate()

    def ours() -> Tensor:
        return record.fit("x", on=("target", "x_T")).weights

    theirs = peer(tape, target)
    difference = float((ours() - theirs).abs().max())
    slow = seconds(lambda: peer(tape, target))
    fast, whole = seconds(ours), seconds(accumulate)
    rows = [
        Row("decomposition from the record", f"{fast * 1e3:.2f} ms", f"{slow * 1e3:.0f} ms",
            slow / fast, 50, at_most=False),
        Row("the same, record accumulated first", f"{(fast + whole) * 1e3:.1f} ms",
            f"{slow * 1e3:.0f} ms", slow / (fast + whole), None),
        Row("largest difference of a weight", f"{difference:.1e}", "", difference, 1e-8),
    ]  # fmt: skip
    return show(
        "Decomposition of stored trajectories",
        rows,
        f"{SAMPLES} samples, {CALLS} steps, d = {D}; value = peer / ours",
    )


if __name__ == "__main__":
    sys.exit(not main())
