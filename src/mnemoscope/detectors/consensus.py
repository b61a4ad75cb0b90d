r"""The consensus is what all seeds agree on at pure noise: a picture if memorized, else a blur.

Formulas, at the first call, with u_s = x0_c - x0_u of seed s and <.,.> averaged over pairs of
different seeds, so that the seeds' own noise adds nothing::

    consensus_energy      <u_s, u_s'> / d
    consensus_sharpness   <F u_s, F u_s'> / d,    F v = v - (mean of v over 3 x 3 neighbours)
    consensus_whitened    sum over frequencies of <û_s, û_s'>_f / N_f

At pure noise an exact denoiser returns conditional means, so the energy is the variance that the
caption explains: near 0 for a caption that leaves the picture open, the whole variance of a latent
for a caption that means one picture. What a blur lacks against a picture are its high frequencies.
N_f is the power at which the unconditional estimate varies from seed to seed around its own mean:
the network's own error there, known without a label.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mnemoscope.detectors.base import Detector, PerPrompt, pairs_mean, seed_power
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.maps import Maps


def rough(maps: Float[Tensor, "prompt seed channel h w"]) -> Float[Tensor, "prompt seed feature"]:
    """Return what is left of maps after the mean over 3 x 3 neighbours is taken away."""
    flat = maps.flatten(0, 1)
    smooth = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (flat - smooth).unflatten(0, maps.shape[:2]).flatten(2)


@dataclass(frozen=True)
class Consensus(Detector):
    """Energy of the consensus, of all or of some frequencies.

    Attributes:
        weight: "energy", "sharpness" or "whitened".
    """

    weight: Literal["energy", "sharpness", "whitened"] = "energy"
    source: ClassVar[str] = "ours"

    @property
    def name(self) -> str:
        """Return its name."""
        return f"consensus_{self.weight}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        what = {
            "energy": "energy of x0_c - x0_u",
            "sharpness": "energy of x0_c - x0_u less its local mean",
            "whitened": "power of x0_c - x0_u over that of the unconditional seed noise",
        }[self.weight]
        return f"{what} that pairs of seeds share, first call"

    @property
    def needs(self) -> Needs:
        """Return the first call of at least two seeds."""
        return Needs((Maps("first"),), seeds=2)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the shared energy a coordinate."""
        maps = evidence[Maps("first")]
        pull = (maps.x0_c - maps.x0_u).double()
        d = pull[0, 0].numel()
        if self.weight == "energy":
            return pairs_mean(pull.flatten(2)) / d
        if self.weight == "sharpness":
            return pairs_mean(rough(pull)) / d
        power = seed_power(maps.x0_u.double())[:, None, None]
        spectrum = torch.fft.fft2(pull) / power.sqrt()
        parts = torch.cat([spectrum.real, spectrum.imag], dim=2).flatten(2)
        return pairs_mean(parts) / d


DETECTORS = (Consensus("energy"), Consensus("sharpness"), Consensus("whitened"))
