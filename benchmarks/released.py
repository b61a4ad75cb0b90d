"""What bugs of released codes do to a ranking: each variant beside the correct form.

A variant computes what its authors' released code does, from the same evidence as the package's
detector of that name, which computes what the paper says. None is in the package: they are here to
tell what a bug is worth.

    python -m benchmarks.released [--model M] [--prompts FILE] [--study RUN] [--out DIR]
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from mnemoscope.detectors import Detector, PerPrompt
from mnemoscope.detectors.anisotropy import Anisotropy
from mnemoscope.detectors.attention_entropy import AttentionEntropy
from mnemoscope.detectors.base import norms, seed_mean
from mnemoscope.detectors.confidence import Confidence
from mnemoscope.detectors.gap_norm import GapNorm
from mnemoscope.detectors.sharpness import Sharpness
from mnemoscope.evidence import Evidence
from mnemoscope.evidence.pieces.gap_derivative import GapDerivative
from mnemoscope.evidence.pieces.path import PathRecord
from mnemoscope.flows.bench import Leaderboard, leaderboard
from mnemoscope.ranking.markdown import shown, table
from mnemoscope.ranking.metrics import difference
from mnemoscope.runs.folder import open_run

RELEASED = ":released_code"
"""How the name of a variant ends."""


@dataclass(frozen=True)
class ReleasedGapNorm(GapNorm):
    """One norm over all seeds, from which thresholds grow with sqrt(n).

    The released mitigation of Wen et al. 2024 does this: sqrt( sum_s ||eps_c(x_1) - eps_u(x_1)||² )
    """

    @property
    def name(self) -> str:
        """Return the correct form's name, marked."""
        return super().name + RELEASED

    @property
    def formula(self) -> str:
        """Return the formula."""
        return "norm over all seeds of eps_c - eps_u, first call"

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the norm."""
        steps = evidence[PathRecord(self.calls)]
        return steps.per_seed(steps.gram.square("gap").sqrt()).norm(dim=1).mean(dim=1)


@dataclass(frozen=True)
class ReleasedSharpness(Sharpness):
    """Scores kept in bfloat16, which makes ties (Jeon, Kim & No 2025)."""

    @property
    def name(self) -> str:
        """Return the correct form's name, marked."""
        return super().name + RELEASED

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"{super().formula}, in bfloat16"

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean of rounded norms."""
        sigma = evidence[PathRecord(1)].gram.level.sigma[0]
        size = norms(evidence[GapDerivative(self.method)]) / sigma**2
        return seed_mean(size.bfloat16()).double()


@dataclass(frozen=True)
class ReleasedAnisotropy(Anisotropy):
    """Norm not divided by sigma, both parts in bfloat16, weights set on the prompts judged.

    Asthana & Belagiannis 2026 do this for Stable Diffusion 1.4; for another model they divide.
    """

    norm: float = 1.0
    cosine: float = 2.0

    @property
    def name(self) -> str:
        """Return the correct form's name, marked."""
        return super().name + RELEASED

    @property
    def formula(self) -> str:
        """Return the formula."""
        return f"{super().formula.replace(' / sigma', '')}, parts in bfloat16"

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the sum of the rounded parts."""
        steps = evidence[PathRecord(1)]
        size = seed_mean(steps.per_seed(steps.gram.square("gap").sqrt())[:, :, 0])
        cosine = Anisotropy(0.0, 1.0).score(evidence)
        return self.norm * size.bfloat16().double() + self.cosine * cosine.bfloat16().double()


@dataclass(frozen=True)
class ReleasedConfidence(Confidence):
    """The last seed's score alone (Webster 2023)."""

    @property
    def name(self) -> str:
        """Return the correct form's name, marked."""
        return super().name + RELEASED

    @property
    def formula(self) -> str:
        """Return the formula."""
        return super().formula.replace("mean over seeds of", "last seed's")

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the last seed's mean square."""
        return self.each(evidence)[:, -1]


@dataclass(frozen=True)
class ReleasedAttentionEntropy(AttentionEntropy):
    """The change along the path keeps its sign (Ren et al. 2024)."""

    path: bool = True

    @property
    def name(self) -> str:
        """Return the correct form's name, marked."""
        return super().name + RELEASED

    @property
    def formula(self) -> str:
        """Return the formula."""
        return super().formula.replace("|", "")

    def score(self, evidence: Evidence) -> PerPrompt:
        """Return the mean entropy and the mean change."""
        entropy, moved = self.parts(evidence)
        return seed_mean(entropy + moved.mean(dim=2))


VARIANTS: tuple[Detector, ...] = (
    ReleasedGapNorm(),
    ReleasedSharpness(),
    ReleasedAnisotropy(),
    ReleasedConfidence(),
    ReleasedAttentionEntropy(),
)


def compared(board: Leaderboard) -> str:
    """Set each variant of a leaderboard beside the correct form, as a Markdown table."""
    ranking, truth = board.ranking, board.ranking.truth
    places = {name: at + 1 for at, name in enumerate(ranking.names)}
    rows: list[list[str]] = []
    for name in places:
        right = name.removesuffix(RELEASED)
        if right == name or right not in places:
            continue
        a, b = (board.scores.of(n)[truth.judged] for n in (right, name))
        gain = shown(difference(a, b, truth.memorized[truth.judged]))
        aucs = [shown(ranking.get(n)) for n in (right, name)]
        rows.append([f"`{right}`", *aucs, gain, f"{places[right]}", f"{places[name]}"])
    head = ["detector", "AUC", "AUC as released", "difference", "place", "place as released"]
    return table(head, rows)


def main() -> None:
    """Rank all detectors with the variants among them; print what the bugs change."""
    ask = argparse.ArgumentParser(prog="python -m benchmarks.released", description=__doc__)
    ask.add_argument("--model", default="embedded")
    ask.add_argument("--prompts", default=None)
    ask.add_argument("--study", default=None, help="run folder to take severity from")
    ask.add_argument("--out", default="runs/released")
    ask.add_argument("--seeds", type=int, default=4)
    ask.add_argument("--steps", type=int, default=50)
    given = ask.parse_args()
    board = leaderboard(
        given.model,
        given.prompts,
        run=None if given.study is None else open_run(given.study),
        detectors=["all", *VARIANTS],
        out=given.out,
        seeds=given.seeds,
        steps=given.steps,
        notify=print,
        progress=True,
    )
    written = compared(board)
    (Path(given.out) / "released.md").write_text(written + "\n")
    print(written)


if __name__ == "__main__":
    sys.exit(main())
