r"""Embedding noise: Gaussian noise on the prompt's embedding.

Formula, with e the embedding of each token and z unit normal, drawn for each sample::

    e' = e + strength·z

The authors' code disturbs the empty prompt's embedding as well, because their helper returns both;
here the prompt's alone is disturbed, as their paper says.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mnemoscope.errors import ModelError
from mnemoscope.mitigations.base import Mitigation, generators
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.hooks import Start


@dataclass(frozen=True)
class EmbeddingNoise(Mitigation):
    """Add noise to the prompt's embedding.

    Attributes:
        strength: Standard deviation of the noise, in units of the embedding.
    """

    name: ClassVar[str] = "embedding_noise"
    source: ClassVar[str] = "Somepalli et al. 2023, GNI"
    strengths: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.3, 1.0, 3.0)
    neutral: ClassVar[float | None] = 0.0

    strength: float = 0.1

    def condition(self, start: Start) -> Condition:
        """Disturb the embedding.

        Raises:
            ModelError: If the model is not conditioned on tokens.
        """
        before = start.cond.embedding
        if before is None:
            raise ModelError(f"{self} disturbs embeddings of tokens, and this model has none")
        noise = torch.stack(
            [torch.randn(before.shape[1:], generator=g) for g in generators(start, self.name)]
        )
        return start.cond.embedded(before + self.strength * noise.to(before))
