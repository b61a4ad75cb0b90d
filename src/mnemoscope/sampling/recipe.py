r"""A recipe says how to sample; two samples of one prompt, seed and recipe are the same.

Formulas, with h the SHA-256 of its parts, as a seed from 0 to 2^63 - 1::

    independent    h(seed, prompt_id, index)   of its own for every prompt and index
    shared         h(seed, "bank", index)      index s means the same noise for every prompt
    fresh          h(seed, "fresh", place, index)      drawn anew for every row of the list, as
                                               published codes do: equal prompts differ
    FILE           h(seed, "bank", index)      what a sampler injects; the initial noise itself is
                                               row `index` of the file, the same for every prompt

Contents: `Sampling`, `Recipe`, `given_noise`, `seed_of`.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.options import option
from mnemoscope.sampling.hooks import Intervention

NOISES = ("independent", "shared", "fresh")
"""Noise policies, beside a file of given noise."""

GIVEN = ".safetensors"
"""How the name of a file of given noise ends; its tensor `noise` is [seed *latent], unit form."""


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
        "Initial noise: independent for every prompt, shared among prompts, fresh for every row "
        "of the list, or a .safetensors file whose tensor `noise` has a row a seed.",
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
        if self.noise.endswith(GIVEN):
            given_noise(self.noise)
        elif self.noise not in NOISES:
            raise InputError(did_you_mean(self.noise, NOISES, "noise"))


@cache
def given_noise(path: str) -> tuple[Tensor, str]:
    """Read a file of given noise.

    Args:
        path: A safetensors file with a tensor `noise`, one row a seed.

    Returns:
        The noise [seed *latent], and the SHA-256 of the file.

    Raises:
        InputError: If there is no such file or tensor, or a value is not finite.
    """
    try:
        data = Path(path).read_bytes()
        held = load(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"noise {path!r} cannot be read as safetensors: {error}") from error
    if "noise" not in held or held["noise"].ndim < 2 or not held["noise"].is_floating_point():
        found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in held.items()) or "nothing"
        raise InputError(
            f"noise {path!r} holds {found}; expected a floating-point tensor 'noise' [seed *latent]"
        )
    noise = held["noise"].float()
    if not bool(noise.isfinite().all()):
        raise InputError(f"noise {path!r} holds numbers that are not finite; draw it again")
    return noise, hashlib.sha256(data).hexdigest()


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

    @property
    def shared(self) -> bool:
        """Return whether seed s means the same noise for every prompt."""
        return self.noise not in ("independent", "fresh")

    def sample_seed(self, prompt_id: str, place: int, index: int) -> int:
        """Return the seed of a sample's generator, from 0 to 2^63 - 1.

        Args:
            prompt_id: Name of the prompt.
            place: Its place in the list, from 0.
            index: Index of the sample among its prompt's, from 0.
        """
        if self.shared:
            return seed_of(self.seed, "bank", index)
        if self.noise == "fresh":
            return seed_of(self.seed, "fresh", place, index)
        return seed_of(self.seed, prompt_id, index)

    @property
    def row(self) -> dict[str, Any]:
        """Return the recipe as a row of table `recipes`, its key first."""
        told = {name: getattr(self, name) for name in Recipe.__dataclass_fields__}
        if self.noise.endswith(GIVEN):
            # By content: the same noise by another path is the same recipe.
            told["noise"] = f"given, {given_noise(self.noise)[1][:16]}"
        told["intervention"] = None if self.intervention is None else str(self.intervention)
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return {"recipe": f"g{self.guidance:g}-{digest[:8]}", **told}

    @property
    def key(self) -> str:
        """Return its name in tables and file names: guidance, then 8 digits of its SHA-256."""
        return str(self.row["recipe"])
