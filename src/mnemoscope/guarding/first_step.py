r"""What a detector is shown of the first step of a live pipeline.

The first step of a path is evidence like any other: the record of one call and its maps are made of
what the pipeline's own network said, and a detector that takes no more scores them as it scores
what was gathered for it.

Contents: `scorer`, `scores_of`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.core.record import Trajectory
from mnemoscope.detectors import Detector, get_detector
from mnemoscope.errors import InputError
from mnemoscope.evidence import Evidence
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.pieces.path import PathRecord, steps_of
from mnemoscope.evidence.values import LatentMaps
from mnemoscope.sampling.hooks import Step

RECORD, MAPS = PathRecord(1), Maps("first")


def scorer(name: str) -> Detector:
    """Return a detector that a live pipeline can be scored by.

    Raises:
        InputError: If there is none of that name, or it takes more than the first step.
    """
    detector = get_detector(name)
    if not set(detector.needs.pieces) <= {RECORD, MAPS}:
        beyond = ", ".join(str(p) for p in detector.needs.pieces if p not in (RECORD, MAPS))
        raise InputError(
            f"{name} takes more than a pipeline's first step ({beyond}); a guard needs a score of "
            "the first step alone, such as gap_rms:clean"
        )
    return detector


def scores_of(detector: Detector, step: Step, groups: Sequence[Sequence[int]]) -> list[float]:
    """Score the prompts of a step.

    Args:
        detector: As `scorer` returned it.
        step: The first step of a path, with both branches.
        groups: Rows of each prompt.

    Returns:
        A score a prompt; NaN where it cannot be scored.
    """
    tape = _tape(step)
    found: list[float] = []
    for rows in groups:
        if len(rows) < detector.needs.seeds:
            found.append(math.nan)
            continue
        part = tape.take(torch.tensor(list(rows)))
        evidence = Evidence(1, len(rows), {RECORD: _record(part), MAPS: _maps(part, step)})
        found.append(float(detector.score(evidence.only(detector.needs))[0]))
    return found


def _tape(step: Step) -> Trajectory:
    """Return the tape of the step, on the CPU in float32."""
    level = Level(*(part.double().cpu().reshape(1) for part in step.point.level))
    alpha, sigma = (part.to(step.x) for part in step.point.level)

    def v(branch: str) -> Tensor:
        of = step.prediction(branch)
        return (alpha * of.eps - sigma * of.x0).float().cpu().flatten(1)[:, None]

    x = step.x.float().cpu().flatten(1)
    v_u, v_c = v("uncond"), v("cond")
    nothing = torch.full_like(v_c, torch.nan)
    return Trajectory(
        level=level, x=x[:, None], v_u=v_u, v_c=v_c,
        v_g=v_u + step.guidance * (v_c - v_u), x_T=x, x_0=nothing[:, 0],
    )  # fmt: skip


def _record(tape: Trajectory) -> object:
    # A path has not moved at its first state: w0 = 0, wT = 1.
    exact = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    clean = Level(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    return steps_of(tape, len(tape.x), clean, exact)


def _maps(tape: Trajectory, step: Step) -> LatentMaps:
    shape = (1, len(tape.x), *step.x.shape[1:])
    parts = (tape.x, tape.eps("u"), tape.eps("c"), tape.x0("u"), tape.x0("c"))
    return LatentMaps(step.point.level, *(part[:, 0].reshape(shape) for part in parts))


def rows_of(step: Step, rows: Sequence[int]) -> Step:
    """Return the step of some of the samples."""
    at = torch.tensor(list(rows), device=step.x.device)
    return replace(
        step,
        x=step.x[at],
        raw={name: part[at.to(part.device)] for name, part in step.raw.items()},
    )
