"""A condition is all that a denoiser is conditioned on, one row a sample.

Text states, pooled states, masks, time ids, guidance embeddings, class labels: a family puts in
what its network takes, and nobody else looks inside. Rows can be taken, repeated and joined; what
is no row (positions of tokens, say) is carried along.

Contents: `Condition`, `cat`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemoscope.errors import ModelError


@dataclass(frozen=True, eq=False)
class Condition:
    """What a denoiser is conditioned on.

    Attributes:
        parts: Tensors by name, rows first; the names are the family's own.
        tokens: Name of the part that holds one embedding a token, in which a network can be
            differentiated; None where there is none.
        fixed: What is the same for every row.
    """

    parts: Mapping[str, Tensor]
    tokens: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Refuse parts of different lengths.

        Raises:
            ModelError: If there is no part, or parts differ in their number of rows.
        """
        lengths = {name: len(part) for name, part in self.parts.items()}
        if len(set(lengths.values())) != 1:
            raise ModelError(f"a condition needs parts of one length; got {lengths or 'none'}")

    @classmethod
    def of(cls, states: Float[Tensor, "sample *feature"]) -> "Condition":
        """Return the condition that is one tensor, such as text states, one row a sample."""
        return cls({"states": states}, "states" if states.ndim == 3 else None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.parts.values())))

    def take(self, rows: Int[Tensor, " row"] | Sequence[int] | slice) -> "Condition":
        """Return some of the rows, in the order asked for."""
        if isinstance(rows, slice):
            return replace(self, parts={name: part[rows] for name, part in self.parts.items()})
        index = torch.as_tensor(rows, dtype=torch.int64)
        return replace(
            self, parts={name: part[index.to(part.device)] for name, part in self.parts.items()}
        )

    def expand(self, rows: int) -> "Condition":
        """Return as many copies of the only row; no memory is taken.

        Raises:
            ModelError: If there is more than one row.
        """
        if len(self) != 1:
            raise ModelError(f"only a single row can be expanded; this condition has {len(self)}")
        return replace(
            self,
            parts={name: part.expand(rows, *part.shape[1:]) for name, part in self.parts.items()},
        )

    @property
    def embedding(self) -> Float[Tensor, "sample token feature"] | None:
        """Return the embedding of each token; None for a network without any."""
        return None if self.tokens is None else self.parts[self.tokens]

    def embedded(self, embedding: Float[Tensor, "sample token feature"]) -> "Condition":
        """Return the same condition with other embeddings of its tokens.

        Raises:
            ModelError: If it has no tokens, or the shape is another.
        """
        before = self.embedding
        if self.tokens is None or before is None:
            raise ModelError("this model is not conditioned on tokens")
        if embedding.shape != before.shape:
            raise ModelError(
                f"embeddings of shape {tuple(embedding.shape)} given; "
                f"expected {tuple(before.shape)}"
            )
        return replace(self, parts={**self.parts, self.tokens: embedding})


def cat(conditions: Sequence[Condition]) -> Condition:
    """Return the rows of several conditions of one family, one after the other.

    Raises:
        ModelError: If they hold different parts.
    """
    first = conditions[0]
    if any(one.parts.keys() != first.parts.keys() for one in conditions):
        told = " and ".join(sorted({", ".join(one.parts) for one in conditions}))
        raise ModelError(f"conditions of different make cannot be joined: {told}")
    return replace(
        first,
        parts={name: torch.cat([one.parts[name] for one in conditions]) for name in first.parts},
    )
