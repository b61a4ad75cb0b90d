r"""A noise level is the pair (alpha, sigma) in x = alpha·x0 + sigma·eps.

Formulas::

    log_snr   = 2·log(alpha / sigma)
    unit form = (alpha, sigma) / r   with   r = sqrt(alpha² + sigma²)

`(c·alpha, c·sigma)` together with `c·x` names the same level for any c > 0, so every state is
brought to the unit form, in which variance-preserving, variance-exploding and flow samplers share
one axis.
The levels are never re-derived from betas: the scheduler itself is asked (`levels_of`).
"""

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.errors import ModelError


class Level(NamedTuple):
    """Noise level of one state or of a series of states; float64.

    Attributes:
        alpha: Weight of the clean image.
        sigma: Weight of the noise.
    """

    alpha: Float[Tensor, "*call"]
    sigma: Float[Tensor, "*call"]

    @property
    def scale(self) -> Float[Tensor, "*call"]:
        """Return r = sqrt(alpha² + sigma²), the factor between this form and the unit form."""
        return torch.hypot(self.alpha, self.sigma)

    def unit(self) -> "Level":
        """Return the same level with alpha² + sigma² = 1."""
        return Level(self.alpha / self.scale, self.sigma / self.scale)

    def at(self, call: int) -> "Level":
        """Return the level of one call of a series."""
        return Level(self.alpha[call], self.sigma[call])


def log_snr(level: Level) -> Float[Tensor, "*call"]:
    """Return 2·log(alpha / sigma); +inf where sigma is 0 and -inf where alpha is 0."""
    return 2 * (level.alpha.log() - level.sigma.log())


def levels_of(scheduler: Any, timesteps: Tensor | None = None) -> Level:
    """Ask a diffusers scheduler for the level of each of its timesteps.

    Adding noise 0 to a clean 1 yields alpha, adding noise 1 to a clean 0 yields sigma; samplers
    that keep their levels themselves are asked for those. A deep copy answers, because some
    schedulers remember a step index once they have been asked.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called and no step taken.
        timesteps: The timesteps asked about; the scheduler's own where not given.

    Returns:
        Levels in the scheduler's own scale, one a timestep, float64.

    Raises:
        ModelError: If the scheduler cannot say.

    Source: ours; agrees with each scheduler's own clean estimate to 5e-7.
    """
    if not hasattr(scheduler, "add_noise"):
        if timesteps is None and hasattr(scheduler, "scale_noise"):
            # FlowMatchHeun's scale_noise ignores the timestep it is asked about.
            sigma = scheduler.sigmas[: len(scheduler.timesteps)].double().cpu()
            return Level(1 - sigma, sigma)
        if not hasattr(scheduler, "scale_noise"):
            raise ModelError(
                f"{type(scheduler).__name__} has neither add_noise nor scale_noise, so its noise "
                "levels cannot be asked for; choose another scheduler"
            )
    sigmas = getattr(scheduler, "sigmas", None)
    if (
        timesteps is None
        and hasattr(scheduler, "_sigma_to_alpha_sigma_t")
        and sigmas is not None
        and len(sigmas) == len(scheduler.timesteps) + 1
    ):
        # Karras sigmas repeat a rounded timestep, for which add_noise knows one level only.
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas[:-1].double().cpu())
        return Level(alpha.double(), sigma.double())
    asked = (scheduler.timesteps if timesteps is None else timesteps).cpu()
    clean = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(asked), 2)
    noise = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(len(asked), 2)
    fresh = copy.deepcopy(scheduler)
    if hasattr(fresh, "add_noise"):
        mixed = fresh.add_noise(clean, noise, asked)
    else:
        mixed = fresh.scale_noise(clean, asked, noise)
    return Level(mixed[:, 0].double().cpu(), mixed[:, 1].double().cpu())


def final_level(scheduler: Any) -> Level:
    """Return the level of the state that the last update arrives at, in the scheduler's own scale.

    Not always clean: Stable Diffusion's DDIM ends at alpha 0.99957, sigma 0.02916, because its
    `set_alpha_to_one` is off.

    Source: Song et al. 2021 (DDIM), the first step's "alpha_0"; the scheduler's attributes.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(scheduler.timesteps) + 1:
        sigma = torch.as_tensor(float(sigmas[-1]), dtype=torch.float64)
        # Samplers in the variance-preserving scale store sigma/alpha and convert it themselves.
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
            return Level(torch.as_tensor(alpha).double(), torch.as_tensor(sigma).double())
        flow = not hasattr(scheduler, "add_noise")
        return Level(1 - sigma if flow else torch.ones_like(sigma), sigma)
    abar = torch.as_tensor(
        float(getattr(scheduler, "final_alpha_cumprod", 1.0)), dtype=torch.float64
    )
    return Level(abar.sqrt(), (1 - abar).sqrt())
