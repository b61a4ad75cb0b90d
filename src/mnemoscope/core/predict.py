r"""A prediction is a clean image and a noise that make the state: alpha·x0 + sigma·eps = x.

Networks are trained to output one of four things; each is a linear image of the same pair. With
r² = alpha² + sigma²::

    eps    raw = eps                          x0 = (x - sigma·raw) / alpha
    x0     raw = x0                           eps = (x - alpha·raw) / sigma
    v      raw = (alpha·eps - sigma·x0) / r   x0 = (alpha·x - sigma·r·raw) / r²
                                              eps = (sigma·x + alpha·r·raw) / r²
    flow   raw = eps - x0                     x0 = (x - sigma·raw) / (alpha + sigma)
                                              eps = (x + alpha·raw) / (alpha + sigma)

This is the only place where a raw network output is interpreted.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.errors import ModelError, did_you_mean

Kind = Literal["eps", "x0", "v", "flow"]
KINDS: tuple[Kind, ...] = ("eps", "x0", "v", "flow")


@dataclass(frozen=True)
class Prediction:
    """What a network says of a state: alpha·x0 + sigma·eps = x, whatever it was trained to output.

    Attributes:
        x0: Clean estimate.
        eps: Noise estimate.
    """

    x0: Float[Tensor, "sample *latent"]
    eps: Float[Tensor, "sample *latent"]

    @classmethod
    def from_raw(
        cls,
        kind: Kind,
        raw: Float[Tensor, "sample *latent"],
        x: Float[Tensor, "sample *latent"],
        level: Level,
    ) -> "Prediction":
        """Interpret a raw network output.

        Args:
            kind: What the network was trained to output.
            raw: The output, float32 or wider.
            x: The unscaled state the output belongs to.
            level: The level of that state, 0-d.

        Returns:
            The clean and the noise estimate, in the dtype of `x`.

        Raises:
            ModelError: If the kind is unknown, or alpha is 0 for a network that predicts eps.

        Source: Ho et al. 2020; Salimans & Ho 2022, eq. 10 (v); Lipman et al. 2023 (flow).
        """
        alpha, sigma = level.alpha.to(x), level.sigma.to(x)
        r = level.scale.to(x)
        match kind:
            case "eps":
                if float(level.alpha) == 0:
                    raise ModelError(
                        "a network that predicts eps has no clean estimate where alpha is 0; "
                        "use a schedule without zero terminal SNR, or a v-prediction model"
                    )
                return cls((x - sigma * raw) / alpha, raw)
            case "x0":
                return cls(raw, (x - alpha * raw) / sigma)
            case "v":
                x0 = (alpha * x - sigma * r * raw) / r**2
                return cls(x0, (sigma * x + alpha * r * raw) / r**2)
            case "flow":
                total = alpha + sigma
                return cls((x - sigma * raw) / total, (x + alpha * raw) / total)
            case _:
                raise ModelError(did_you_mean(str(kind), KINDS, "prediction kind"))


def to_raw(kind: Kind, prediction: Prediction, level: Level) -> Float[Tensor, "sample *latent"]:
    """Write a prediction as the raw output of a network; the inverse of `Prediction.from_raw`.

    Args:
        kind: What the network outputs.
        prediction: The clean and the noise estimate.
        level: The level of the state, 0-d, in any scale.

    Returns:
        The raw output, in the dtype of the prediction.

    Raises:
        ModelError: If the kind is unknown.
    """
    x0, eps = prediction.x0, prediction.eps
    match kind:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            unit = level.unit()
            return unit.alpha.to(eps) * eps - unit.sigma.to(x0) * x0
        case "flow":
            return eps - x0
        case _:
            raise ModelError(did_you_mean(str(kind), KINDS, "prediction kind"))


def shown(
    kind: Kind, x: Float[Tensor, "sample *latent"], level: Level
) -> Float[Tensor, "sample *latent"]:
    """Bring a state from the unit form to the form its network is shown.

    A flow network was trained on alpha + sigma = 1, every other one on alpha² + sigma² = 1.

    Args:
        kind: What the network was trained to output.
        x: State, unit form.
        level: Its level, unit form, 0-d.

    Source: Lipman et al. 2023 (flow); Karras et al. 2022, c_in.
    """
    return x / (level.alpha + level.sigma).to(x) if kind == "flow" else x


def combine(
    uncond: Float[Tensor, "sample *latent"],
    cond: Float[Tensor, "sample *latent"],
    guidance: float | Float[Tensor, "sample *ones"],
) -> Float[Tensor, "sample *latent"]:
    """Apply classifier-free guidance: uncond + g·(cond - uncond); g = 1 is unguided.

    The scale is one for all samples, or one a sample in the dimensions of the predictions.

    Raw outputs, clean and noise estimates all obey the same rule, since each is linear in the
    others at a fixed state.

    Source: Ho & Salimans 2022, eq. 6, in the convention of Stable Diffusion (their w = g - 1).
    """
    return uncond + guidance * (cond - uncond)
