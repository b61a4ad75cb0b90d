"""A judge says whether a picture shows what its caption names; it has never seen a sample.

Contents: `Judge`, `LabJudge`, `judge_of`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.lab.judge import mistaken, recognised
from mnemoscope.lab.scenes import Scenes

DESCRIBING = "describing"
"""Kind of a caption of the lab that names what it shows."""


@runtime_checkable
class Judge(Protocol):
    """Whatever can say whether pictures show what captions name."""

    @property
    def accuracy(self) -> str:
        """Return how far to trust it, in words."""
        ...

    def right(
        self, images: Float[Tensor, "image 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[np.ndarray, " image"]:
        """Return 1 where a picture shows what its caption names, else 0; NaN where untellable."""
        ...


class LabJudge:
    """The lab's judge of emoji, for captions that name some."""

    @property
    def accuracy(self) -> str:
        """Return how often it is right and wrong on scenes it has not seen."""
        # Pairs, as planted scenes and controls are.
        scenes, captions = Scenes(92_000_000, pairs=1.0).batch(256)
        found = float(recognised(scenes, captions).float().mean())
        return (
            f"the lab's judge, which finds what {found:.1%} of fresh scenes show, and what another "
            f"caption names in {mistaken(scenes, captions):.1%}"
        )

    def right(
        self, images: Float[Tensor, "image 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[np.ndarray, " image"]:
        """Return 1 where every emoji named is among the five best, else 0; NaN for the others."""
        told = np.full(len(prompts), np.nan)
        can = [at for at, prompt in enumerate(prompts) if prompt.kind == DESCRIBING]
        if can:
            captions = [prompts[at].text for at in can]
            told[can] = recognised(images[torch.tensor(can)], captions).double().numpy()
        return told


def judge_of(model: str) -> Judge | None:
    """Return the judge for a model's pictures; None where there is none."""
    return LabJudge() if model.startswith("embedded") else None
