r"""Exchange is what pure noise already shows of the image that enters and the noise that leaves.

Formulas, at the first call, with p_s = x0_c - x0_u of seed s, d coordinates, and N_f the power of
`consensus_whitened`::

    exchange:image    (1/n) sum_s (1/d) sum over frequencies of |p̂_s|²_f / N_f
    exchange:noise    1 - r(x0_c) / r(x0_u),    r(v) = <v_s, x_s> - <v_s, x_s'>
    exchange          their sum

r averages the product with a seed's own noise, less that with another's, so that a picture which
happens to resemble the noise adds nothing. Both parts are free of units and near 0 for a caption
that leaves the picture open.

They are the two halves of the variance that a caption explains: the mean moves, and less is left to
move with the noise. By Stein's lemma r is the trace of the estimate's derivative, and for an exact
denoiser that is what the caption leaves open,

    r(x0_c) = trace d E[x | x_t, c] / d x_t = alpha / sigma² · trace Cov[x | x_t, c]

so that exchange:noise is the share of variance that the caption takes away, 1 if it means one
picture. Guidance then turns the one into an image that enters too early, the other into noise that
leaves too early.

Source of the formula: Stein 1981; Efron 2011, eq. 2.8.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, seed_power
from mnemoscope.evidence import Evidence, MissingEvidence, Needs
from mnemoscope.evidence.pieces.maps import Maps
from mnemoscope.evidence.values import LatentMaps


def own_noise(
    values: Float[Tensor, "prompt seed *latent"], x: Float[Tensor, "prompt seed *latent"]
) -> PerPrompt:
    """Return the mean of <v_s, x_s> - <v_s, x_s'> over pairs of different seeds."""
    products = values.flatten(2) @ x.flatten(2).mT
    seeds = products.shape[1]
    own = products.diagonal(dim1=1, dim2=2).sum(dim=1)
    return own / seeds - (products.sum(dim=(1, 2)) - own) / (seeds * (seeds - 1))


def image_entering(maps: LatentMaps) -> PerPrompt:
    """Return the pull of the caption over the power of the unconditional seed noise."""
    pull = torch.fft.fft2((maps.x0_c - maps.x0_u).double())
    power = seed_power(maps.x0_u.double())[:, None, None]
    return (pull.abs().square() / power).flatten(1).mean(dim=1)


def noise_shed(maps: LatentMaps) -> PerPrompt:
    """Return the share of its response to the noise that the estimate loses by the caption.

    Raises:
        MissingEvidence: If the unconditional estimate does not respond to begin with.
    """
    x = maps.x.double()
    free, held = (own_noise(x0.double(), x) for x0 in (maps.x0_u, maps.x0_c))
    if not bool((free > 0).any()):
        raise MissingEvidence(
            "the unconditional estimate at the first call holds none of the noise "
            f"(<x0_u, x> is {float(free.max()):.2g}, expected above 0), so none can be shed"
        )
    return torch.where(free > 0, 1 - held / free, torch.nan)


@dataclass(frozen=True)
class Exchange(Detector):
    """How far the first guided estimate is about to leave the schedule.

    Attributes:
        part: "image", "noise", or "both", their sum.
    """

    part: Literal["both", "image", "noise"] = "both"
    source: ClassVar[str] = "ours"

    @property
    def name(self) -> str:
        """Return "exchange", with the part if it is one."""
        return "exchange" if self.part == "both" else f"exchange:{self.part}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        image = "power of x0_c - x0_u over that of the unconditional seed noise"
        noise = "share of the noise in x0_u that x0_c has shed"
        what = {"both": f"{image}, plus {noise}", "image": image, "noise": noise}[self.part]
        return f"{what}, first call"

    @property
    def needs(self) -> Needs:
        """Return the first call of at least two seeds."""
        return Needs((Maps("first"),), seeds=2)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return one part or the sum."""
        maps = evidence[Maps("first")]
        if self.part == "image":
            return image_entering(maps)
        if self.part == "noise":
            return noise_shed(maps)
        return image_entering(maps) + noise_shed(maps)


DETECTORS = (Exchange(), Exchange("image"), Exchange("noise"))
