r"""The Gram record holds the inner products among a few named vectors at every network call.

Names::

    x      state                         x_T     initial noise (the state at the first call)
    v_u    unconditional prediction      x_0     final sample
    v_c    conditional prediction        target  clean latents of the training image in question
    v_g    what the sampler was given    mean    reference mean of the unconditional clean estimate
    other  clean latents of another prompt's training image, for the null of what speaks of target

The last three are what a study sets beside the tape; who sets other vectors there names them so.
Every other vector the founding paper speaks of is a linear combination of these at each call, so
its norms, cosines and least-squares coefficients are arithmetic on 45 numbers, and no coefficient
ever divides by a level (see `core.record`)::

    eps_b = sigma·x + alpha·v_b      gap  = eps_c - eps_u = alpha·(v_c - v_u)
    x0_b  = alpha·x - sigma·v_b      <a, b> = aᵀ G b for coefficient vectors a, b

Least squares of y on vectors v_1..v_k solves the k normal equations in closed form; the residual
follows from the same products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mnemoscope.core.level import Level, log_snr
from mnemoscope.core.record import Trajectory
from mnemoscope.errors import NeedsError, did_you_mean

TAPE = ("x", "v_u", "v_c", "v_g", "x_T", "x_0")
"""The vectors that a tape holds."""

NAMES = (*TAPE, "target", "mean", "other")
"""The vectors of a study's record, in its order."""

PAIRS = tuple((a, b) for i, a in enumerate(NAMES) for b in NAMES[i:])
"""The 45 products, upper triangle, row by row."""

Coefficients = dict[str, Tensor]
"""Weight of each named vector: one number, one a call, or one a sample and call, float64."""

Vector = str | Mapping[str, "float | Tensor"]
"""A named vector, a derived one (`DERIVED`), or a linear combination of any of these as a mapping
from name to weight, e.g. ``{"target": 1, "mean": -1}``."""

DERIVED = ("eps_u", "eps_c", "eps_g", "x0_u", "x0_c", "x0_g", "gap")


@dataclass(frozen=True)
class Fit:
    """A least-squares fit, one a sample and call.

    Attributes:
        weights: Coefficient of each regressor, in the order given.
        residual: Root-mean-square residual a coordinate, ||y - fit|| / sqrt(d).
    """

    weights: Float[Tensor, "sample call regressor"]
    residual: Float[Tensor, "sample call"]


@dataclass(frozen=True)
class Gram:
    """Inner products of the named vectors, float64.

    Attributes:
        level: Level of each call, unit form.
        products: <a, b> for every pair of names; NaN where a vector does not exist.
        d: Number of latent coordinates.
        final: Level the last update arrives at.
        names: The named vectors, in the order of the products.
    """

    level: Level
    products: Float[Tensor, "sample call name name"]
    d: int
    final: Level
    names: tuple[str, ...] = NAMES

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        *,
        final: Level,
        **still: Float[Tensor, "sample d"] | Float[Tensor, " d"] | None,
    ) -> "Gram":
        """Reduce a tape to its inner products.

        Args:
            trajectory: The tape of a batch.
            final: Level of the final state, unit form.
            **still: Vectors set beside the tape, by name, one for all samples or one a sample;
                None, or rows of NaN, where there is none.

        Returns:
            The record of the batch; products are accumulated in float64.

        Source: ours.
        """
        samples, calls, d = trajectory.x.shape
        # Apple's devices have no float64.
        place = torch.device("cpu") if trajectory.x.device.type == "mps" else trajectory.x.device

        def wide(vector: Tensor) -> Tensor:
            return vector.detach().to(place).double()

        absent = torch.full((d,), torch.nan, dtype=torch.float64, device=place)
        beside = torch.stack(
            [
                (absent if vector is None else wide(vector)).expand(samples, d)
                for vector in (trajectory.x_T, trajectory.x_0, *still.values())
            ],
            dim=1,
        )
        tape = (trajectory.x, trajectory.v_u, trajectory.v_c, trajectory.v_g)
        names = (*TAPE, *still)
        products = torch.empty(
            samples, calls, len(names), len(names), dtype=torch.float64, device=place
        )
        moves = len(tape)
        products[:, :, moves:, moves:] = (beside @ beside.mT)[:, None]
        for call in range(calls):
            moving = torch.stack([wide(part[:, call]) for part in tape], dim=1)
            across = moving @ beside.mT
            products[:, call, :moves, :moves] = moving @ moving.mT
            products[:, call, :moves, moves:] = across
            products[:, call, moves:, :moves] = across.mT
        return cls(trajectory.level, products.cpu(), d, final, names)

    @property
    def log_snr(self) -> Float[Tensor, " call"]:
        """Return the log signal-to-noise ratio of each call."""
        return log_snr(self.level)

    @property
    def calls(self) -> int:
        """Return the number of network calls a branch."""
        return self.products.shape[1]

    def select(self, samples: Bool[Tensor, " sample"]) -> "Gram":
        """Return the record of some of the samples."""
        return replace(self, products=self.products[samples])

    def exchanged(self, a: str, b: str) -> "Gram":
        """Return the record with two of its vectors in each other's place."""
        order = list(range(len(self.names)))
        i, j = self.names.index(a), self.names.index(b)
        order[i], order[j] = j, i
        return replace(self, products=self.products[:, :, order][:, :, :, order])

    def mapped(self, rows: Mapping[str, Mapping[str, "float | Tensor"]]) -> "Gram":
        """Return the record after some of its vectors are replaced by combinations of the old ones.

        Args:
            rows: New value of each replaced vector, weights by name; a weight is a number or one a
                call.

        Source: <Ma, Mb> = M G Mᵀ.
        """
        calls, size = self.calls, len(self.names)
        change = torch.eye(size, dtype=torch.float64).repeat(calls, 1, 1)
        for name, weights in rows.items():
            change[:, self.names.index(name)] = 0
            for other, weight in weights.items():
                change[:, self.names.index(name), self.names.index(other)] = torch.as_tensor(
                    weight, dtype=torch.float64
                )
        # An absent vector's products are NaN, and 0·NaN is NaN: it must reach only its own row.
        held = torch.nan_to_num(self.products, nan=0.0)
        there = torch.isfinite(self.products.diagonal(dim1=2, dim2=3))
        made = change @ held @ change.mT
        lost = torch.einsum("cij,scj->sci", (change != 0).double(), (~there).double()) > 0
        gone = lost[..., :, None] | lost[..., None, :]
        return replace(self, products=torch.where(gone, torch.nan, made))

    def guided(self, guidance: float) -> "Gram":
        """Return the record as classifier-free guidance of a constant scale would have made it.

        For a probe, which has no path; what a path was really given is in its record.

        Source: Ho & Salimans 2022, eq. 6.
        """
        return self.mapped({"v_g": {"v_u": 1 - guidance, "v_c": guidance}})

    def states(self) -> "Gram":
        """Return the record at the updates' destinations: calls 1, 2, ..., and the final state.

        In the last row `x` is the final sample; the estimates do not exist there and are NaN.

        Source: ours; the paper's decomposition is taken at the destination of each update.
        """
        last = self.products[:, -1:].clone()
        x, x_0 = self.names.index("x"), self.names.index("x_0")
        last[:, :, x, :] = last[:, :, x_0, :]
        last[:, :, :, x] = last[:, :, :, x_0]
        for name in ("v_u", "v_c", "v_g"):
            last[:, :, self.names.index(name), :] = torch.nan
            last[:, :, :, self.names.index(name)] = torch.nan
        level = Level(
            *(
                torch.cat([here[1:], there.reshape(1).to(here)])
                for here, there in zip(self.level, self.final, strict=True)
            )
        )
        return replace(self, level=level, products=torch.cat([self.products[:, 1:], last], dim=1))

    def coefficients(self, vector: Vector) -> Coefficients:
        """Write a vector as a linear combination of the named ones, by name.

        Raises:
            NeedsError: If a name is neither recorded nor derived.
        """
        if not isinstance(vector, str):
            total: Coefficients = {}
            for name, weight in vector.items():
                scale = torch.as_tensor(weight, dtype=torch.float64)
                for part, share in self.coefficients(name).items():
                    total[part] = total.get(part, 0) + scale * share
            return total
        if vector in self.names:
            return {vector: torch.ones((), dtype=torch.float64)}
        alpha, sigma = self.level
        match vector:
            case "gap":
                return self.coefficients({"v_c": alpha, "v_u": -alpha})
            case "eps_u" | "eps_c" | "eps_g":
                return self.coefficients({"x": sigma, f"v_{vector[-1]}": alpha})
            case "x0_u" | "x0_c" | "x0_g":
                return self.coefficients({"x": alpha, f"v_{vector[-1]}": -sigma})
            case _:
                raise NeedsError(did_you_mean(vector, (*self.names, *DERIVED), "vector"))

    def inner(self, a: Vector, b: Vector) -> Float[Tensor, "sample call"]:
        """Return <a, b>."""
        total = torch.zeros(self.products.shape[:2], dtype=torch.float64)
        right = self.coefficients(b)
        for i, left in self.coefficients(a).items():
            for j, weight in right.items():
                # An absent vector's products are NaN, and 0·NaN is NaN: what has no weight at any
                # call takes no part.
                if (scale := left * weight).any():
                    total += scale * self.products[:, :, self.names.index(i), self.names.index(j)]
        return total

    def square(self, a: Vector) -> Float[Tensor, "sample call"]:
        """Return ||a||², clamped at 0 where rounding would leave it negative."""
        return self.inner(a, a).clamp_min(0)

    def rms(self, a: Vector) -> Float[Tensor, "sample call"]:
        """Return ||a|| / sqrt(d)."""
        return (self.square(a) / self.d).sqrt()

    def cosine(self, a: Vector, b: Vector) -> Float[Tensor, "sample call"]:
        """Return <a, b> / (||a||·||b||)."""
        return self.inner(a, b) / (self.square(a) * self.square(b)).sqrt()

    def fit(self, vector: Vector, on: Sequence[Vector]) -> Fit:
        """Fit a vector by others in the least-squares sense, without intercept.

        Args:
            vector: The vector to explain.
            on: The regressors.

        Returns:
            Weights and residual; NaN where the regressors are collinear to working precision.

        Source: normal equations; for two regressors, the paper's decomposition x_t = w0·x + wT·x_T.
        """
        normal = torch.stack([torch.stack([self.inner(a, b) for b in on], -1) for a in on], -2)
        moment = torch.stack([self.inner(a, vector) for a in on], -1)
        # Scaled to unit diagonal, the determinant is a pure number that tells collinearity.
        size = normal.diagonal(dim1=-2, dim2=-1).sqrt()
        scaled = normal / (size[..., :, None] * size[..., None, :])
        whole = torch.isfinite(scaled).all(-1).all(-1)
        regular = whole & (torch.linalg.det(torch.where(whole[..., None, None], scaled, 0)) > 1e-12)
        eye = torch.eye(len(on), dtype=torch.float64)
        solved = torch.linalg.solve(
            torch.where(regular[..., None, None], scaled, eye), moment / size
        )
        weights = torch.where(regular[..., None], solved / size, torch.nan)
        square = self.square(vector) - (weights * moment).sum(-1)
        return Fit(weights, (square.clamp_min(0) / self.d).sqrt())
