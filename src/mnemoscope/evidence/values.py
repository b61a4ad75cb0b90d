"""What evidence holds; values carry the leading dimensions [prompt, seed].

Contents: `Steps`, `LatentMaps`, `TextFacts`, `Noised`, `Divergence`, `Drifts`, `Changes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level


@dataclass(frozen=True)
class Steps:
    """The Gram record of the first calls of the guided path.

    Attributes:
        gram: Products, prompts in the outer and seeds in the inner order. Its "target" is the
            consensus, the mean over seeds of the conditional clean estimate at the first call; its
            "mean" is that of the unconditional one. "x_0" exists on a whole path only.
        prompts: Number of prompts.
        seeds: Number of seeds.
        exact: Weights (w0, wT) of the exact unguided path at every call.
    """

    gram: Gram
    prompts: int
    seeds: int
    exact: tuple[Float[Tensor, " call"], Float[Tensor, " call"]]

    def per_seed(self, values: Float[Tensor, "sample call"]) -> Float[Tensor, "prompt seed call"]:
        """Give a quantity of samples the dimensions of prompts and seeds."""
        return values.unflatten(0, (self.prompts, self.seeds))

    def first(self, calls: int) -> "Steps":
        """Return the record of fewer calls."""
        level = Level(*(part[:calls] for part in self.gram.level))
        gram = replace(self.gram, level=level, products=self.gram.products[:, :calls])
        return replace(self, gram=gram, exact=(self.exact[0][:calls], self.exact[1][:calls]))


@dataclass(frozen=True)
class LatentMaps:
    """States and predictions at one call, in place.

    Attributes:
        level: Level of the call, unit form.
        x: States, unit form.
        eps_u: Unconditional noise estimates.
        eps_c: Conditional noise estimates.
    """

    level: Level
    x: Float[Tensor, "prompt seed *latent"]
    eps_u: Float[Tensor, "prompt seed *latent"]
    eps_c: Float[Tensor, "prompt seed *latent"]

    @property
    def gap(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return eps_c - eps_u."""
        return self.eps_c - self.eps_u

    @property
    def x0_u(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return the unconditional clean estimate."""
        return self._clean(self.eps_u)

    @property
    def x0_c(self) -> Float[Tensor, "prompt seed *latent"]:
        """Return the conditional clean estimate."""
        return self._clean(self.eps_c)

    def _clean(self, eps: Tensor) -> Tensor:
        alpha, sigma = (part.to(eps) for part in self.level)
        return (self.x - sigma * eps) / alpha


@dataclass(frozen=True)
class TextFacts:
    """What is known of the prompts without the network.

    Attributes:
        texts: The prompts.
        tokens: Length of each in tokens, before truncation.
        truncated: Whether it exceeds the window.
        frequency: Share of all prompts of the list that hold a word, for every word of the list.
    """

    texts: tuple[str, ...]
    tokens: Float[Tensor, " prompt"]
    truncated: tuple[bool, ...]
    frequency: Mapping[str, float]


@dataclass(frozen=True)
class Noised:
    """The record of the forward-noised training image.

    Attributes:
        gram: Products at the probed levels; "target" is the training image. Prompts without one
            have NaN.
        prompts: Number of prompts.
        seeds: Number of seeds.
    """

    gram: Gram
    prompts: int
    seeds: int

    def per_seed(self, values: Float[Tensor, "sample call"]) -> Float[Tensor, "prompt seed call"]:
        """Give a quantity of samples the dimensions of prompts and seeds."""
        return values.unflatten(0, (self.prompts, self.seeds))


@dataclass(frozen=True)
class Divergence:
    """First-order behaviour of both noise estimates at a scaled training image.

    Attributes:
        level: The level, unit form.
        trace: Estimated trace of d eps / dx; branches are (uncond, cond).
        square: ||eps||².
    """

    level: Level
    trace: Float[Tensor, "branch prompt seed"]
    square: Float[Tensor, "branch prompt seed"]


@dataclass(frozen=True)
class Drifts:
    """How far repeated denoising at a fixed level carries a clean image.

    Attributes:
        log_ratio: log(sigma / alpha) of each level, ascending.
        distance: max over repetitions of ||M^k(x) - x|| / ||x||; branches are (uncond, cond).
    """

    log_ratio: Float[Tensor, " level"]
    distance: Float[Tensor, "branch prompt level"]


@dataclass(frozen=True)
class Changes:
    """How much moves from one call of the path to the next.

    Attributes:
        state: ||x_{i+1} - x_i||, unit form; the last entry of a whole path leads to the sample.
        cond: ||eps_c(x_{i+1}) - eps_c(x_i)||.
    """

    state: Float[Tensor, "prompt seed change"]
    cond: Float[Tensor, "prompt seed step"]
