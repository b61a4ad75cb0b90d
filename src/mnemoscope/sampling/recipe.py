r"""A recipe says how to sample; two samples of one prompt, seed and recipe are the same.

Formulas, with h the SHA-256 of its parts, as a seed from 0 to 2^63 - 1::

    independent    h(seed, prompt_id, index)   of its own for every prompt and index
    shared         h(seed, "bank", index)      index s means the same noise for every prompt
    fresh          h(seed, "fresh", place, index)      drawn anew for every row of the list, as
                                               published codes do: equal prompts differ

Contents: `Sampling`, `Recipe`, `seed_of`.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.options import option
from mnemoscope.sampling.hooks import Intervention

NOISES = ("independent", "shared", "fresh")
"""Noise policies."""


def seed_of(*parts: Any) -> int:
    """Return a seed from the SHA-256 of its parts, from 0 to 2^63 - 1."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Sampling:
    """How to sample, guidance apart. Every field is an option of every command that samples."""

    scheduler: str = option("auto", "Sampler; auto is the one usual for the model.")
    steps: int = option(50, "Sampler updates.")
    eta: float = option(0.0, "Multiplies the injected noise of a sampler that knows it (DDIM).")
    seed: int = option(0, "Seed that all noise derives from.")
    noise: str = option(
        "independent",
        "Initial noise: independent for every prompt, shared among prompts, or fresh for every row "
        "of the list.",
    )
    intervention: Intervention | None = option(
        None, "What steers the sampler, such as 'guidance_interval(strength=0.2)'."
    )

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            InputError: If a value is out of range.
        """
        # Comparisons that NaN fails as well.
        if not 0 <= self.eta < float("inf"):
            raise InputError(f"eta {self.eta} given; expected a finite number of 0 or more")
        if self.steps < 1:
            raise InputError(f"steps {self.steps} given; expected at least 1")
        if self.noise not in NOISES:
            raise InputError(did_you_mean(self.noise, NOISES, "noise"))


def checked_guidance(guidance: float) -> None:
    """Refuse a guidance scale that means nothing.

    Raises:
        InputError: If it is not finite, or below 1.
    """
    if not 1 <= guidance < float("inf"):
        raise InputError(f"guidance {guidance} given; expected a finite scale of 1 or more")


@dataclass(frozen=True)
class Recipe(Sampling):
    """How to sample, at one guidance scale."""

    guidance: float = option(7.5, "Guidance scale; 1 is unguided.")

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        checked_guidance(self.guidance)

    def sample_seed(self, prompt_id: str, place: int, index: int) -> int:
        """Return the seed of a sample's generator, from 0 to 2^63 - 1.

        Args:
            prompt_id: Name of the prompt.
            place: Its place in the list, from 0.
            index: Index of the sample among its prompt's, from 0.
        """
        if self.noise == "shared":
            return seed_of(self.seed, "bank", index)
        if self.noise == "fresh":
            return seed_of(self.seed, "fresh", place, index)
        return seed_of(self.seed, prompt_id, index)

    @property
    def row(self) -> dict[str, Any]:
        """Return the recipe as a row of table `recipes`, its key first."""
        told = {name: getattr(self, name) for name in Recipe.__dataclass_fields__}
        told["intervention"] = None if self.intervention is None else str(self.intervention)
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return {"recipe": f"g{self.guidance:g}-{digest[:8]}", **told}

    @property
    def key(self) -> str:
        """Return its name in tables and file names: guidance, then 8 digits of its SHA-256."""
        return str(self.row["recipe"])
