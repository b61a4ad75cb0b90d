r"""The gap norm is the length of what the prompt adds to the prediction.

Formula, over n seeds and the first |T| calls of the guided path::

    m = (1/n) sum_s (1/|T|) sum_t ||eps_c(x_t) - eps_u(x_t)||     ("rms": divided by sqrt(d))
    clean: ||x0_c(x_t) - x0_u(x_t)||, which is sigma/alpha times as much

At pure noise (alpha = 0: zero terminal SNR, flow matching) the noise estimate is the state whatever
the network says, and only clean estimates differ.

The norm is taken per image, of estimates whatever the network predicts. The released code of the
detector takes it over raw outputs, which for a v-prediction model is another quantity; that of the
mitigation takes one norm over all n images, from which thresholds grow with sqrt(n).
"""

from dataclasses import dataclass
from typing import ClassVar

from mnemoscope.detectors.base import Detector, PerPrompt, seed_mean
from mnemoscope.evidence import Evidence, Needs
from mnemoscope.evidence.pieces.path import PathRecord


@dataclass(frozen=True)
class GapNorm(Detector):
    """The gap norm of some window.

    Attributes:
        calls: Calls it is averaged over; None for the whole path.
        rms: Whether it is divided by sqrt(d), so that it survives another resolution.
        clean: Whether it is of clean estimates.
    """

    calls: int | None = 1
    rms: bool = False
    clean: bool = False
    source: ClassVar[str] = "Wen et al. 2024 (ICLR), eq. 1"

    @property
    def name(self) -> str:
        """Return "gap_norm" for the first call, with the window otherwise."""
        window = {1: "", None: ":all"}.get(self.calls, f":{self.calls}")
        clean = ":clean" if self.clean else ""
        return f"gap_{'rms' if self.rms else 'norm'}{clean}{window}"

    @property
    def formula(self) -> str:
        """Return the formula."""
        window = {1: "first call", None: "all calls"}.get(self.calls, f"first {self.calls} calls")
        scale = " / sqrt(d)" if self.rms else ""
        of = "x0" if self.clean else "eps"
        return f"mean over seeds of ||{of}_c - {of}_u||{scale}, {window}"

    @property
    def needs(self) -> Needs:
        """Return the record of its window."""
        return Needs((PathRecord(self.calls),))

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean norm."""
        steps = evidence[PathRecord(self.calls)]
        gap = {"x0_c": 1.0, "x0_u": -1.0} if self.clean else "gap"
        size = steps.gram.rms(gap) if self.rms else steps.gram.square(gap).sqrt()
        return seed_mean(steps.per_seed(size).mean(dim=2))


DETECTORS = (
    GapNorm(),
    GapNorm(10),
    GapNorm(None),
    GapNorm(rms=True),
    GapNorm(rms=True, clean=True),
)
