r"""The exact path is what a scheduler makes of the predictor that always knows the clean image.

Formula, for every state of the path, with x the clean image and x_T the state at the first call::

    x_t = w0·x + wT·x_T

Contents: `ExactPath`, `exact_path`.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level, final_level, levels_of
from mnemoscope.core.predict import Prediction, to_raw
from mnemoscope.sampling.loop import generators_of, kind_of, scaled, start_scale, step_arguments


@dataclass(frozen=True)
class ExactPath:
    """What a scheduler makes of a predictor that always knows the clean image.

    Every state is w0·x + wT·x_T, with x the clean image and x_T the state at the first call.

    Attributes:
        level: Level of each state, the final one last, unit form.
        w0: Weight of the clean image.
        wT: Weight of the initial state.
    """

    level: Level
    w0: Float[Tensor, " state"]
    wT: Float[Tensor, " state"]


def _double(scheduler: Any) -> Any:
    """Return a copy that computes in float64 and neither clips nor thresholds."""
    fresh = copy.deepcopy(scheduler)
    for name, value in vars(fresh).items():
        if isinstance(value, Tensor) and value.is_floating_point() and name != "timesteps":
            setattr(fresh, name, value.double())
    fresh.timesteps = fresh.timesteps.cpu()
    affine = {name: False for name in ("clip_sample", "thresholding") if name in fresh.config}
    fresh.register_to_config(**affine)
    return fresh


def exact_path(scheduler: Any) -> ExactPath:
    """Run a scheduler on the exact unguided predictor, from pure noise.

    With the predictor's clean estimate fixed at x, every scheduler is affine in x, x_T and the
    injected noise. Its coefficients are read off two coordinates, one with (x, x_T) = (1, 0), one
    with (0, 1); injected noise is removed by subtracting a run on (0, 0) that draws the same noise.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called and no step taken.

    Returns:
        The weights at every state, the final one last. For DDIM they are
        w0 = alpha_t - alpha_T·sigma_t/sigma_T and wT = sigma_t/sigma_T.

    Source: the paper's reference curve for DDIM, taken from the scheduler itself; ours beyond DDIM.
    """
    levels, final = levels_of(scheduler), final_level(scheduler)
    kind = kind_of(scheduler)

    def run(clean: Tensor, noise: Tensor) -> Tensor:
        fresh = _double(scheduler)
        arguments = step_arguments(fresh, generators_of([0]), 0.0)
        x = noise * start_scale(fresh)
        states = [x / levels.at(0).scale]
        for i, t in enumerate(fresh.timesteps):
            level = levels.at(i)
            eps = (x - level.alpha * clean) / level.sigma
            raw = to_raw(kind, Prediction(clean.expand_as(x), eps), level)
            scaled(fresh, x, t)
            x = fresh.step(raw, t, x, **arguments, return_dict=False)[0].double()
            scale = levels.at(i + 1).scale if i + 1 < len(levels.alpha) else final.scale
            states.append(x / scale)
        return torch.cat(states)

    clean = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    nothing = torch.zeros_like(clean)
    w0, wT = (run(clean, noise) - run(nothing, nothing)).unbind(dim=1)
    unit = levels.unit()
    level = Level(*(torch.cat([a, b.reshape(1)]) for a, b in zip(unit, final.unit(), strict=True)))
    return ExactPath(level, w0, wT / wT[0])
