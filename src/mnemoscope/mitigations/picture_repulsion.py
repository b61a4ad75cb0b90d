r"""Picture repulsion: towards the prompt, but away from the picture it named at the first call.

Formulas, with m the conditional clean estimate at the first call (a memorized prompt's is its
picture), b the raw output of a network that believes in m, and c, u the raw outputs with and
without the prompt at any call::

    a      = max(0, <c - u, b - u> / ||b - u||²)             how much of the pull is the picture
    guided = u + g·(c - u) - (g + strength)·a·(b - u)        where score > threshold, i / N < until
    guided = u + g·(c - u)                                   elsewhere

Where the prompt asks for the picture and nothing else, c = b, this is u - strength·(c - u),
opposite guidance; whatever else it asks for is guided in full. As soon as the path has left the
picture, a is 0 and so is the repulsion. The score is that of `gated_opposite`; no call is added.

Strength and end belong together: a prompt that names its picture faintly at the first call is left
for three tenths of the path and goes back to it later, so repulsion lasts for half of it; and what
lasts must turn the path away early, for a weak one keeps it near the picture all along.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.mitigations.base import Bounds, Mitigation, believed, suspicious
from mnemoscope.sampling.hooks import Latents, Step


@dataclass(frozen=True)
class PictureRepulsion(Mitigation):
    """Guide towards the prompt and away from the picture it names at the first call.

    Attributes:
        strength: Scale away from the picture; 0 only takes it out.
        threshold: Largest score of an ordinary prompt, in units of the latents; 0 acts on all.
        until: Share of the calls at which it ends.
    """

    name: ClassVar[str] = "picture_repulsion"
    source: ClassVar[str] = "ours"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 1.0, 3.0, 5.0, 8.0)
    bounds: ClassVar[Bounds] = {"until": (0.0, 1.0)}

    strength: float = 5.0
    threshold: float = 0.0
    until: float = 0.5

    def guide(self, step: Step) -> Latents:
        """Guide towards the prompt and away from the picture."""
        plain = step.guided()
        if step.share >= self.until:
            return plain
        cond, uncond = step.raw["cond"], step.raw["uncond"]
        picture = believed(step, step.first.prediction("cond").x0) - uncond
        along = ((cond - uncond) * picture).flatten(1).sum(dim=1)
        part = (along / picture.flatten(1).square().sum(dim=1)).clamp_min(0)
        away = plain - (step.guidance + self.strength) * step.each(part) * picture
        return torch.where(step.each(suspicious(step, self.threshold)), away, plain)
