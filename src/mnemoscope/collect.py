r"""A collector gathers the evidence that detectors declare: the union of it, once, for all of them.

Flow for some prompts at a time::

    path       sample the guided path as far as any piece needs, seeds shared among prompts
    beside it  probes on the noise bank and on training images
    evidence   each piece, cut to what was declared

The noise bank holds the initial noise of every seed with the unconditional prediction at the first
call, which is therefore computed once, not once a prompt. The collector counts the rows the network
evaluates and the seconds each piece took.

Contents: `Collector`.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.sampling.attention import Watch, cross_attentions, watch
from mnemoscope.core.gram import Gram
from mnemoscope.core.level import Level, final_level, levels_of
from mnemoscope.core.predict import Kind, Prediction, combine
from mnemoscope.sampling.probes import (
    divergence,
    drift,
    forward_noised,
    gap_curvature,
    gap_difference,
    gap_in_condition,
    gap_jvp,
    square_gradient,
)
from mnemoscope.core.record import Point, Recorder, Trajectory
from mnemoscope.sampling.loop import (
    Denoiser,
    Latents,
    exact_path,
    generators_of,
    initial_noise,
    points_of,
    sample,
)
from mnemoscope.detectors.base import (
    Absent,
    ChangeNorms,
    Changes,
    Curvature,
    Divergence,
    Drift,
    Drifts,
    EndAttention,
    Evidence,
    GapDerivative,
    GapMaps,
    LatentMaps,
    LowNoise,
    Maps,
    Noised,
    NoisedTarget,
    Path,
    Pictures,
    Piece,
    SquareGradient,
    Steps,
    TargetDivergence,
    Text,
    TextFacts,
    TokenAttention,
    path_calls,
    words,
)
from mnemoscope.errors import InputError, ModelError
from mnemoscope.data.images import load_image
from mnemoscope.models.base import Model
from mnemoscope.plan import ROWS, seed_of
from mnemoscope.data.prompts import Prompt

NO_UNCOND = "the model has no unconditional branch, so there is no gap"
NO_ATTENTION = "the model has no cross-attention"
NO_IMAGE = "the prompt has no training image"
NO_FORWARD_MODE = (
    "the network has no forward-mode derivative (an operation lacks one); "
    "sharpness:difference does without"
)


@dataclass(frozen=True)
class _Attention:
    """What cross-attention looked at along a path.

    Attributes:
        tokens: Attention to each token.
        ends: Attention to the end token at the latest call; None without layers on the way down.
    """

    tokens: Float[Tensor, "sample call layer token"]
    ends: Float[Tensor, "sample height width"] | None


class _Counted:
    """A denoiser that counts the rows it evaluates."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.kind: Kind = inner.kind
        self.rows = 0

    def __call__(self, x: Latents, timestep: Tensor, condition: Tensor) -> Latents:
        self.rows += len(x)
        return self.inner(x, timestep, condition)


class _Banked:
    """A denoiser whose unconditional half of the first call is known already.

    Args:
        inner: The denoiser.
        first: Raw unconditional output at the first call; None for a model without that branch.
        seen: Watch to be told which rows are conditional.
    """

    def __init__(self, inner: Denoiser, first: Tensor | None, seen: Watch | None) -> None:
        self.inner = inner
        self.kind: Kind = inner.kind
        self.first = first
        self.both = first is not None
        self.seen = seen

    def __call__(self, x: Latents, timestep: Tensor, condition: Tensor) -> Latents:
        half = len(x) // 2
        known, self.first = self.first, None
        if known is not None:
            x, condition = x[half:], condition[half:]
        if self.seen is not None:
            start = half if self.both and known is None else 0
            self.seen.rows = slice(start, len(x))
        raw = self.inner(x, timestep, condition)
        if self.seen is not None:
            self.seen.finish()
        return raw if known is None else torch.cat([known, raw])


class Collector:
    """Gathers evidence about prompts of one list.

    Args:
        model: The model.
        prompts: The whole list.
        pieces: The union of what is needed.
        seeds: Seeds a prompt.
        guidance: Guidance scale of the path.
        steps: Sampler updates of a whole path.
        scheduler: Name of the sampler.
        seed: Seed that all noise derives from.
        batch: Rows a network call; chosen by size where None.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        pieces: Sequence[Piece[Any]],
        *,
        seeds: int,
        guidance: float,
        steps: int,
        scheduler: str,
        seed: int,
        batch: int | None = None,
    ) -> None:
        for name, value in (("seeds", seeds), ("batch", 1 if batch is None else batch)):
            if value < 1:
                raise InputError(f"{name} {value} given; expected at least 1")
        if not 1 <= guidance < float("inf"):
            raise InputError(f"guidance {guidance} given; expected a finite scale of 1 or more")
        self.model = model
        self.pieces = tuple(dict.fromkeys(pieces))
        self.seeds = seeds
        self.guidance = guidance if model.has_uncond else 1.0
        self.seed = seed
        self.scheduler = model.make_scheduler(scheduler, steps)
        self.points = points_of(self.scheduler)
        self.final = final_level(self.scheduler).unit()
        exact = exact_path(self.scheduler)
        self.exact = exact.w0[:-1], exact.wT[:-1]
        if batch is None:
            rows = ROWS if model.device.type == "cpu" else 4 * ROWS
            batch = max(1, min(64, rows // model.d))
        self.batch = batch
        self.network = _Counted(model.denoiser)
        self.seconds: dict[Piece[Any], float] = {}
        self.truncated = model.truncated([prompt.text for prompt in prompts])
        self._facts = _facts(model, prompts)
        self._place = {prompt.prompt_id: row for row, prompt in enumerate(prompts)}
        self._unet = getattr(model.denoiser, "unet", None)
        self._layers = bool(cross_attentions(self._unet))
        self._bank: dict[Any, Tensor] = {}
        self._generators = [seed_of(seed, "bank", index) for index in range(seeds)]
        self._noise = initial_noise(
            generators_of(self._generators), model.latent_shape, device=model.device
        )

    @property
    def calls(self) -> int:
        """Return the number of calls of a whole path."""
        return len(self.points)

    @property
    def chunk(self) -> int:
        """Return how many prompts are looked at together."""
        return max(1, self.batch // self.seeds)

    @property
    def branches(self) -> int:
        """Return 2, or 1 for a model without an unconditional branch."""
        return 2 if self.model.has_uncond else 1

    def warm(self) -> None:
        """Fill the noise bank: what depends on no prompt."""
        if path_calls(self.pieces, self.calls) and self.model.has_uncond:
            self._unconditional(self.points[0])
        for piece in self.pieces:
            if isinstance(piece, LowNoise) and self.model.has_uncond:
                self._unconditional(self._late(piece.before_last))
            if isinstance(piece, SquareGradient) and self.model.has_uncond:
                self._unconditional_gradient()

    def gather(self, prompts: Sequence[Prompt]) -> Evidence:
        """Gather the evidence about some of the prompts."""
        cond = self.model.encode_prompts([prompt.text for prompt in prompts])
        length = path_calls(self.pieces, self.calls)
        tape, watched = None, None
        if length:
            before = time.perf_counter()
            tape, watched = self._path(cond, length, prompts)
            taken = time.perf_counter() - before
            # A shorter path alone would have taken its share of the calls.
            for piece in self.pieces:
                mine = path_calls([piece], self.calls)
                self._spend(piece, taken * mine / length)
        found: dict[Piece[Any], Any] = {}
        for piece in self.pieces:
            before = time.perf_counter()
            try:
                found[piece] = self._piece(piece, prompts, cond, tape, watched)
            except NotImplementedError:
                # What torch raises for an operation without a forward-mode derivative.
                found[piece] = Absent(NO_FORWARD_MODE)
            self._spend(piece, time.perf_counter() - before)
        return Evidence(len(prompts), self.seeds, found)

    def _spend(self, piece: Piece[Any], seconds: float) -> None:
        self.seconds[piece] = self.seconds.get(piece, 0.0) + seconds

    def _piece(
        self,
        piece: Piece[Any],
        prompts: Sequence[Prompt],
        cond: Tensor,
        tape: Trajectory | None,
        watched: _Attention | None,
    ) -> Any:
        match piece:
            case Text():
                return self._text(prompts)
            case NoisedTarget() | TargetDivergence() | Drift():
                return self._pair(piece, prompts, cond)
            case LowNoise():
                return self._low_noise(piece, cond)
            case SquareGradient():
                return self._square_gradient(cond)
            case TokenAttention() | EndAttention():
                return self._attention(piece, watched)
            case (
                Path()
                | Maps()
                | ChangeNorms()
                | GapMaps()
                | GapDerivative()
                | Curvature()
                | Pictures()
            ):
                assert tape is not None, "a piece of the path was asked for without a path"
                return self._along(piece, cond, tape)
            case _:
                raise InputError(f"no way to gather {piece} is known")

    def _along(self, piece: Piece[Any], cond: Tensor, tape: Trajectory) -> Any:
        shape = (len(cond), self.seeds, *self.model.latent_shape)
        match piece:
            case Path():
                steps = self._steps(tape, len(cond))
                return steps if piece.length is None else steps.first(piece.length)
            case Maps():
                call = 0 if piece.at == "first" else self.calls - 1
                parts = (v[:, call].reshape(shape) for v in (tape.x, tape.eps_u, tape.eps_c))
                return LatentMaps(self.points[call].level, *parts)
            case ChangeNorms():
                return self._changes(tape, piece.length)
            case Pictures():
                latents = tape.x0_g[:, 0] if piece.at == "first" else tape.x_0
                return self._decode(latents.reshape(-1, *self.model.latent_shape), len(cond))
            case _ if not self.model.has_uncond:
                return Absent(NO_UNCOND)
            case GapMaps():
                gap = (tape.eps_c - tape.eps_u).unflatten(2, self.model.latent_shape)
                return gap.square().sum(dim=2).unflatten(0, (len(cond), self.seeds))
            case GapDerivative():
                return self._derivative(piece, cond, tape).reshape(shape)
            case Curvature():
                return self._curvature(piece, cond, tape).reshape(shape)
            case _:
                raise InputError(f"no way to gather {piece} is known")

    def _text(self, prompts: Sequence[Prompt]) -> TextFacts:
        rows = [self._place[prompt.prompt_id] for prompt in prompts]
        whole = self._facts
        return TextFacts(
            tuple(whole.texts[row] for row in rows),
            whole.tokens[rows],
            tuple(whole.truncated[row] for row in rows),
            whole.frequency,
        )

    def _point(self, point: Point) -> Point:
        level = Level(*(part.to(self.model.device, torch.float32) for part in point.level))
        return Point(point.call, point.timestep, level)

    def _late(self, before_last: int) -> Point:
        return self.points[max(0, self.calls - before_last)]

    def _start(self) -> Latents:
        """Return the bank's states at the first call, unit form."""
        scale = float(levels_of(self.scheduler).scale[0])
        return self._noise * float(self.scheduler.init_noise_sigma) / scale

    def _blank(self, rows: int) -> Tensor:
        if "blank" not in self._bank:
            self._bank["blank"] = self.model.encode_prompts([""])
        blank = self._bank["blank"]
        return blank.expand(rows, *blank.shape[1:])

    def _unconditional(self, point: Point) -> Tensor:
        """Return the raw unconditional output for the bank at a point, once computed."""
        key = ("uncond", point.call)
        if key not in self._bank:
            x = self._start() if point.call == 0 else self._noise
            with torch.no_grad():
                self._bank[key] = torch.cat(
                    [
                        self.network(part, point.timestep, self._blank(len(part)))
                        for part in x.split(self.batch)
                    ]
                )
        return self._bank[key]

    def _unconditional_gradient(self) -> Tensor:
        if "gradient" not in self._bank:
            point = self._point(self.points[0])
            self._bank["gradient"] = torch.cat(
                [
                    square_gradient(self.network, part, point, self._blank(len(part)))
                    for part in self._start().split(self.batch)
                ]
            )
        return self._bank["gradient"]

    def _batches(self, prompts: int) -> Generator[tuple[Tensor, Tensor]]:
        """Yield which prompt and which seed the rows of each batch are of."""
        rows = torch.arange(prompts * self.seeds, device=self.model.device)
        for part in rows.split(self.batch):
            yield part // self.seeds, part % self.seeds

    def _path(
        self, cond: Tensor, length: int, prompts: Sequence[Prompt]
    ) -> tuple[Trajectory, _Attention | None]:
        """Sample the first calls of the path."""
        asked = [p for p in self.pieces if isinstance(p, TokenAttention | EndAttention)]
        looks = bool(asked) and self._layers
        first = self._unconditional(self.points[0]) if self.model.has_uncond else None
        tapes: list[Trajectory] = []
        tokens: list[Tensor] = []
        maps: list[Tensor] = []
        for whose, which in self._batches(len(cond)):
            noise = self._noise[which]
            generators = generators_of([self._generators[s] for s in which.tolist()])
            # The bank's noise is the first thing each of its generators draws.
            initial_noise(generators, self.model.latent_shape)
            recorder = Recorder()
            with watch(self._unet) if looks else nullcontext() as seen:
                if seen is not None:
                    seen.end = self._ends(prompts)[whose.cpu()]
                known = None if first is None else first[which]
                sampled = sample(
                    _Banked(self.network, known, seen),
                    self.scheduler,
                    noise,
                    cond[whose],
                    None if first is None else self._blank(len(noise)),
                    self.guidance,
                    generators,
                    observers=[recorder],
                    guide=None if first is None else self._guide,
                    calls=length,
                )
            whole = length >= self.calls
            x_0 = sampled.latents if whole else torch.full_like(sampled.latents, torch.nan)
            tapes.append(recorder.trajectory(x_0))
            if seen is not None:
                tokens.append(torch.stack(seen.tokens, dim=1))
                if seen.maps is not None:
                    maps.append(seen.maps)
        joined = {
            name: torch.cat([getattr(tape, name) for tape in tapes])
            for name in ("x", "eps_u", "eps_c", "eps_g", "x_T", "x_0")
        }
        found = None
        if looks:
            found = _Attention(torch.cat(tokens), torch.cat(maps) if maps else None)
        return Trajectory(level=tapes[0].level, **joined), found

    def _guide(self, uncond: Latents, cond: Latents, point: Point) -> Latents:
        return combine(uncond, cond, self.guidance)

    def _ends(self, prompts: Sequence[Prompt]) -> Tensor:
        rows = [self._place[prompt.prompt_id] for prompt in prompts]
        return (self._facts.tokens[rows].long() + 1).clamp_max(self.model.window - 1)

    def _steps(self, tape: Trajectory, prompts: int) -> Steps:
        alpha, sigma = (part[0].to(tape.x) for part in tape.level)
        clean = (tape.x[:, 0] - sigma * tape.eps_c[:, 0]) / alpha
        consensus = clean.unflatten(0, (prompts, self.seeds)).mean(dim=1)
        mean = None
        if self.model.has_uncond:
            mean = ((tape.x[:, 0] - sigma * tape.eps_u[:, 0]) / alpha)[: self.seeds].mean(dim=0)
        gram = Gram.of(
            tape,
            target=consensus.repeat_interleave(self.seeds, dim=0),
            mean=mean,
            guidance=self.guidance,
            final=self.final,
        )
        calls = tape.x.shape[1]
        return Steps(gram, prompts, self.seeds, (self.exact[0][:calls], self.exact[1][:calls]))

    def _changes(self, tape: Trajectory, length: int | None) -> Changes:
        x, cond = tape.x[:, :length], tape.eps_c[:, :length]
        if length is None:
            x = torch.cat([x, tape.x_0[:, None]], dim=1)
        moved, turned = (v.diff(dim=1).double().norm(dim=2) for v in (x, cond))
        return Changes(moved.unflatten(0, (-1, self.seeds)), turned.unflatten(0, (-1, self.seeds)))

    def _attention(self, piece: Piece[Any], watched: _Attention | None) -> Any:
        if watched is None:
            return Absent(NO_ATTENTION)
        if isinstance(piece, TokenAttention):
            return watched.tokens[:, : piece.length].unflatten(0, (-1, self.seeds))
        if watched.ends is None:
            return Absent("the model has no cross-attention on its way down")
        return watched.ends.unflatten(0, (-1, self.seeds))

    def _low_noise(self, piece: LowNoise, cond: Tensor) -> Any:
        if not self.model.has_uncond:
            return Absent(NO_UNCOND)
        point = self._late(piece.before_last)
        raw_u = self._unconditional(point)
        x = self._noise
        level = self._point(point).level
        uncond = Prediction.from_raw(self.network.kind, raw_u, x, level).eps
        parts: list[Tensor] = []
        with torch.no_grad():
            for whose, which in self._batches(len(cond)):
                raw = self.network(x[which], point.timestep, cond[whose])
                parts.append(Prediction.from_raw(self.network.kind, raw, x[which], level).eps)
        eps_c = torch.cat(parts).float().cpu().unflatten(0, (len(cond), self.seeds))
        return LatentMaps(
            point.level,
            x.float().cpu().expand_as(eps_c),
            uncond.float().cpu().expand_as(eps_c),
            eps_c,
        )

    def _square_gradient(self, cond: Tensor) -> Any:
        if not self.model.has_uncond:
            return Absent(NO_UNCOND)
        blank, start = self._unconditional_gradient(), self._start()
        point = self._point(self.points[0])
        parts = [
            square_gradient(self.network, start[which], point, cond[whose]) - blank[which]
            for whose, which in self._batches(len(cond))
        ]
        return torch.cat(parts).float().cpu().unflatten(0, (len(cond), self.seeds))

    def token_gradients(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt seed token"]:
        """Return how strongly the first call's gap norm hangs on each token's embedding.

        Raises:
            ModelError: If the model has no unconditional branch, or is not conditioned on tokens.
        """
        cond = self.model.encode_prompts([prompt.text for prompt in prompts])
        if not self.model.has_uncond or cond.ndim != 3:
            raise ModelError(
                f"{self.model.name!r} is not guided by token embeddings; token attribution needs "
                "a model with cross-attention to text and an unconditional branch"
            )
        point, start = self._point(self.points[0]), self._start()
        raw = self._unconditional(self.points[0])
        eps_u = Prediction.from_raw(self.network.kind, raw, start, point.level).eps
        parts = [
            gap_in_condition(self.network, start[which], point, cond[whose], eps_u[which])
            for whose, which in self._batches(len(cond))
        ]
        size = torch.cat(parts).double().norm(dim=2).cpu()
        return size.unflatten(0, (len(cond), self.seeds))

    def _each(
        self, cond: Tensor, work: Callable[[Tensor, Tensor, slice], Tensor]
    ) -> Float[Tensor, "sample *latent"]:
        """Do work on the conditions and the bank's states of every batch."""
        parts: list[Tensor] = []
        for start, (whose, which) in enumerate(self._batches(len(cond))):
            rows = slice(start * self.batch, start * self.batch + len(whose))
            parts.append(work(cond[whose], which, rows).detach().float().cpu())
        return torch.cat(parts)

    def _derivative(self, piece: GapDerivative, cond: Tensor, tape: Trajectory) -> Tensor:
        point, start = self._point(self.points[0]), self._start()
        gap = (tape.eps_c[:, 0] - tape.eps_u[:, 0]).unflatten(1, self.model.latent_shape)

        def work(condition: Tensor, which: Tensor, rows: slice) -> Tensor:
            along = gap[rows].to(start)
            x, blank = start[which], self._blank(len(which))
            if piece.method == "jvp":
                return gap_jvp(self.network, x, point, condition, blank, along)[1]
            return gap_difference(self.network, x, point, condition, blank, along, along)

        return self._each(cond, work)

    def _curvature(self, piece: Curvature, cond: Tensor, tape: Trajectory) -> Tensor:
        point = self._point(self.points[-1])
        states = tape.x[:, -1].unflatten(1, self.model.latent_shape)
        signs = self._signs("curvature", piece.probes)

        def work(condition: Tensor, which: Tensor, rows: slice) -> Tensor:
            x, blank = states[rows].to(self._noise), self._blank(len(which))
            return gap_curvature(self.network, x, point, condition, blank, signs[:, which])

        return self._each(cond, work)

    def _signs(self, name: str, probes: int) -> Float[Tensor, "probe seed *latent"]:
        """Draw vectors of -1 and 1 for every seed, the same for every prompt."""
        shape = (self.seeds, *self.model.latent_shape)
        drawn = [
            torch.randint(0, 2, shape, generator=generators_of([seed_of(self.seed, name, k)])[0])
            for k in range(probes)
        ]
        return (2 * torch.stack(drawn) - 1).to(self._noise)

    @torch.no_grad()
    def _decode(self, latents: Tensor, prompts: int) -> Tensor | Absent:
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        images: Tensor | None = None
        for rows in finite.nonzero()[:, 0].split(self.batch):
            part = self.model.decode(latents[rows].to(self.model.device)).float().cpu()
            if images is None:
                images = torch.full((len(latents), *part.shape[1:]), torch.nan)
            images[rows] = part
        if images is None:
            return Absent("no sample stayed finite")
        return images.unflatten(0, (prompts, self.seeds))

    def _pair(self, piece: Piece[Any], prompts: Sequence[Prompt], cond: Tensor) -> Any:
        if not self.model.has_uncond:
            return Absent(NO_UNCOND)
        mine = [row for row, prompt in enumerate(prompts) if prompt.images]
        if not mine:
            return Absent(NO_IMAGE)
        pixels = [load_image(prompts[row].images[0]).pixels for row in mine]
        targets = torch.cat(
            [self.model.encode_images(image[None].to(self.model.device)) for image in pixels]
        ).to(self._noise)
        match piece:
            case NoisedTarget():
                return self._noised(piece, targets, cond, mine)
            case TargetDivergence():
                return self._divergence(piece, targets, cond, mine)
            case Drift():
                return self._drift(piece, targets, cond, mine)
            case _:
                raise InputError(f"no way to gather {piece} is known")

    def _spread(self, levels: int) -> list[Point]:
        levels = min(levels, self.calls)
        calls = torch.linspace(0, self.calls - 1, levels).round().long().unique().tolist()
        return [self._point(self.points[call]) for call in calls]

    def _noised(self, piece: NoisedTarget, targets: Tensor, cond: Tensor, mine: list[int]) -> Any:
        points = self._spread(piece.levels)
        whole = torch.full((len(cond) * self.seeds, len(points), 7, 7), torch.nan).double()
        held = torch.tensor(mine)
        for whose, which in self._batches(len(mine)):
            noise = self._noise[which]
            tape = forward_noised(
                self.network,
                points,
                targets[whose],
                noise,
                cond[held.to(whose.device)[whose]],
                self._blank(len(noise)),
            )
            gram = Gram.of(
                tape,
                target=targets[whose].flatten(1),
                mean=None,
                guidance=float("nan"),
                final=self.final,
            )
            rows = held[whose.cpu()] * self.seeds + which.cpu()
            whole[rows] = gram.products
        level = Level(
            *(torch.stack(v).double().cpu() for v in zip(*(p.level for p in points), strict=True))
        )
        scales = torch.full((len(whole),), torch.nan, dtype=torch.float64)
        gram = Gram(level, whole, scales, self.model.d, self.final)
        return Noised(gram, len(cond), self.seeds)

    def _divergence(
        self, piece: TargetDivergence, targets: Tensor, cond: Tensor, mine: list[int]
    ) -> Divergence:
        point = self._point(self._late(piece.before_last))
        signs = self._signs("divergence", 1)[0]
        trace = torch.full((2, len(cond), self.seeds), torch.nan, dtype=torch.float64)
        square = trace.clone()
        held = torch.tensor(mine)
        for whose, which in self._batches(len(mine)):
            x = point.level.alpha * targets[whose]
            rows = held[whose.cpu()]
            for branch, condition in enumerate((self._blank(len(x)), cond[rows])):
                found = divergence(self.network, x, point, condition, signs[which])
                for into, part in zip((trace, square), found, strict=True):
                    into[branch, rows, which.cpu()] = part.cpu()
        return Divergence(self._late(piece.before_last).level, trace, square)

    def _drift(self, piece: Drift, targets: Tensor, cond: Tensor, mine: list[int]) -> Drifts:
        points = self._spread(piece.levels)[::-1]
        distance = torch.full((2, len(cond), len(points)), torch.nan, dtype=torch.float64)
        for start in range(0, len(mine), self.batch):
            rows = mine[start : start + self.batch]
            clean = targets[start : start + self.batch]
            for at, point in enumerate(points):
                for branch, condition in enumerate((self._blank(len(rows)), cond[rows])):
                    found = drift(self.network, clean, point, condition, piece.iterations)
                    distance[branch, rows, at] = found.double().cpu()
        ratio = [float((p.level.sigma / p.level.alpha).log()) for p in points]
        return Drifts(torch.tensor(ratio, dtype=torch.float64), distance)


def _facts(model: Model, prompts: Sequence[Prompt]) -> TextFacts:
    texts = tuple(prompt.text for prompt in prompts)
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(words(text)):
            counts[word] = counts.get(word, 0) + 1
    return TextFacts(
        texts,
        torch.tensor(model.token_counts(texts), dtype=torch.float64),
        tuple(model.truncated(texts)),
        {word: count / len(texts) for word, count in counts.items()},
    )
