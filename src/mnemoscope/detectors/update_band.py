r"""The update band score is how far the latent's updates leave the size the schedule implies.

Formula, over all N updates of the guided path, with (w0, wT) the exact unguided path::

    expected_i = sqrt(d)·sqrt((w0_{i+1} - w0_i)² + (wT_{i+1} - wT_i)²)
    m          = (1/n) sum_s (1/N) sum_i log( ||x_{i+1} - x_i|| / expected_i )

Inspired by 2605.22050, of which only the abstract is known: it builds a stability region from
update norms of prompts that are not memorized. Here the region is a line, that of an unguided
path to a picture of unit variance, so that no list of such prompts is needed. No result of that
paper is claimed to be reproduced.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.change_norms import ChangeNorms
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class UpdateBand(Detector):
    """The mean logarithm of updates over their expected size."""

    source: ClassVar[str] = "inspired by Huang et al. 2026 (KDD), arXiv 2605.22050"

    @property
    def name(self) -> str:
        """Return "update_band"."""
        return "update_band"

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "mean over seeds and calls of log(||update|| / that of the exact unguided path)"

    @property
    def needs(self) -> Needs:
        """Return the whole path."""
        return Needs((PathRecord(None), ChangeNorms(None)), uncond=False)

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean logarithm."""
        steps = evidence[PathRecord(None)]
        w0, wT = steps.exact
        expected = steps.gram.d**0.5 * torch.hypot(w0.diff(), wT.diff())
        # The update to the final state is left out: a sampler may make none there.
        taken = evidence[ChangeNorms(None)].state[:, :, : len(expected)]
        return seed_mean((taken / expected).log().mean(dim=2))


DETECTORS = (UpdateBand(),)
