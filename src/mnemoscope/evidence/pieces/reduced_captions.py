r"""Denoising loss of the noised training image under its caption, and under parts of it.

Formula, at x = alpha·target + sigma·eps, eps the sample's own noise::

    loss(c) = ||eps_c(x) - eps||²          c: caption; its first, middle, last third; nothing
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.evidence.piece import Piece, Price
from mnemoscope.evidence.sitting import Sitting
from mnemoscope.sampling.probes import predict

CAPTIONS = 5
"""Captions the loss is taken under: the whole, three thirds, and none."""


def thirds(text: str) -> tuple[str, str, str]:
    """Return the first, middle and last third of a text's words; short texts leave some empty.

    >>> thirds("a cat on the old moon")
    ('a cat', 'on the', 'old moon')
    """
    words = text.split()
    cuts = [round(len(words) * k / 3) for k in range(4)]
    first, middle, last = (" ".join(words[a:b]) for a, b in pairwise(cuts))
    return first, middle, last


@dataclass(frozen=True)
class ReducedCaptions(Piece[Float[Tensor, "prompt seed level caption"]]):
    """Loss under the caption, its three thirds and no caption, in this order.

    Attributes:
        levels: Number of levels, spread over the path.
    """

    levels: int = 3

    @property
    def pair(self) -> bool:
        """Return True."""
        return True

    @property
    def uncond(self) -> bool:
        """Return True."""
        return True

    def extra(self, calls: int) -> Price:
        """Return every caption at every level."""
        return Price(forward=CAPTIONS * min(self.levels, calls))

    def gather(self, sitting: Sitting) -> Float[Tensor, "prompt seed level caption"]:
        """Noise the images with the samples' own noise, and evaluate under every caption."""
        bank, guidance = sitting.bank, sitting.bank.recipe.guidance
        points = bank.along(self.levels)
        parts = zip(*(thirds(prompt.text) for prompt in sitting.prompts), strict=True)
        captions = [
            sitting.cond,
            *(sitting.model.encode_prompts(list(part), guidance) for part in parts),
        ]
        shape = (len(sitting.prompts), sitting.seeds, len(points), CAPTIONS)
        losses = torch.full(shape, torch.nan, dtype=torch.float64)
        held = torch.tensor(sitting.with_image)
        for whose, which in sitting.batches(len(held)):
            prompts, seeds = held[whose.cpu()], which.cpu()
            noise = sitting.noise[(prompts * sitting.seeds + seeds).to(sitting.noise.device)]
            target = sitting.target_latents(prompts)
            conditions = [*(caption.take(prompts) for caption in captions), bank.blank(len(noise))]
            for at, point in enumerate(points):
                x = point.level.alpha * target + point.level.sigma * noise
                for which_caption, condition in enumerate(conditions):
                    with torch.no_grad():
                        eps = predict(bank.network, x, point, condition).eps
                    loss = (eps - noise).flatten(1).double().square().sum(dim=1)
                    losses[prompts, seeds, at, which_caption] = loss.cpu()
        return losses
