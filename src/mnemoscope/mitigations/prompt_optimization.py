r"""Prompt optimization: the prompt's embedding is moved until it pulls no harder than others.

Formulas, for each image of its own, with e the embedding of its tokens (the begin mark's is held
fixed), and D(e) = eps_c(x_T; e) - eps_u(x_T) at the first call::

    e ← AdamW step on ||D(e)||         until rms D(e) <= target / strength, at most `rounds` times

The published target is 1.5 an image of 16,384 coordinates, rms 0.0117; their code takes one norm
over four images, hence 3. An image that has arrived moves no further, so a prompt that pulls no
harder to begin with is left as it is. `optimized` says which images arrived.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mnemoscope.errors import ModelError
from mnemoscope.mitigations.base import Bounds, Descended, Mitigation, descend, size
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Start


@dataclass(frozen=True)
class PromptOptimization(Mitigation):
    """Move the prompt's embedding until it pulls less.

    Attributes:
        strength: What the target is divided by.
        target: Root mean square of the gap that is aimed at.
        rate: Learning rate.
        rounds: Most updates.
        decay: Weight decay of AdamW, which acts on the embedding.
    """

    name: ClassVar[str] = "prompt_optimization"
    source: ClassVar[str] = "Wen et al. 2024, section 5.1, arXiv 2407.21720"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0, 2.0, 4.0)
    neutral: ClassVar[float | None] = 0.0
    bounds: ClassVar[Bounds] = {"rounds": (0.0, 1000.0)}

    strength: float = 1.0
    target: float = 1.5 / 128
    rate: float = 0.05
    rounds: int = 10
    decay: float = 0.01

    @property
    def calls_before(self) -> int:
        """Return the blank prompt, each round with its gradient, and a look at the end."""
        return 1 + 3 * self.rounds + 1 if self.strength else 0

    def condition(self, start: Start) -> Condition:
        """Move the embedding."""
        return start.cond.embedded(self.optimized(start).value) if self.strength else start.cond

    def optimized(self, start: Start) -> Descended:
        """Return the moved embeddings, the gap they were brought to, and whether that sufficed.

        Raises:
            ModelError: If the model is not conditioned on tokens.
        """
        before = start.cond.embedding
        if before is None:
            raise ModelError(f"{self} moves embeddings of tokens, and this model has none")
        blank = start.predict(start.noise, start.uncond, start.rows).eps

        def pull(words: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            cond = start.cond.take(rows).embedded(torch.cat([before[rows, :1], words], dim=1))
            gap = size(start.predict(start.noise[rows], cond, rows).eps - blank[rows])
            return gap, gap

        moved = descend(
            before[:, 1:],
            pull,
            target=self.target / self.strength,
            rounds=self.rounds,
            make=lambda leaf: torch.optim.AdamW([leaf], lr=self.rate, weight_decay=self.decay),
        )
        return replace(moved, value=torch.cat([before[:, :1], moved.value], dim=1))
