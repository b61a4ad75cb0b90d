"""A sitting is some prompts at one recipe: their conditions, their noise, their path.

Samples are numbered prompt by prompt, seeds within; a batch may cut through a prompt. A sample
whose network failed, or whose numbers are not finite, is marked and disturbs no other.

Contents: `Sitting`, `Outcome`, `told`.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemoscope.core.predict import Prediction
from mnemoscope.core.record import Recorder, Trajectory, join
from mnemoscope.data.images import load_image
from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError
from mnemoscope.evidence.bank import Bank
from mnemoscope.sampling.attention import cross_attentions, watch
from mnemoscope.sampling.batching import batched
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import Branches, Latents, Sampled, sample

NO_ATTENTION = "the model has no cross-attention"


@dataclass(frozen=True)
class Outcome:
    """What became of a sample.

    Attributes:
        status: "ok", "nonfinite" or "error".
        reason: Why the status is not ok.
        seconds: Share of its batch's time in the sampling loop.
        before: Network calls an intervention made for it before the path.
    """

    status: str
    reason: str | None
    seconds: float
    before: int = 0


@dataclass(frozen=True)
class Looked:
    """What cross-attention looked at along a path.

    Attributes:
        tokens: Attention to each token.
        ends: Attention to the end token at the latest call; None without layers on the way down.
    """

    tokens: Float[Tensor, "sample call layer token"]
    ends: Float[Tensor, "sample height width"] | None


def told(error: Exception) -> str:
    """Say in one line what went wrong with a sample."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class Sitting:
    """Some prompts at one recipe.

    Args:
        bank: What all prompts share.
        prompts: The prompts.
        places: Place of each in its list, from 0.
        length: How many calls of the path are sampled; 0 for none.
        attention: Whether cross-attention is watched.
        frequency: Share of the list's prompts that hold a word, where it was counted.
        targets: Latents of each prompt's first training image, rows of NaN where it has none; found
            when first asked for where not given.
        others: Likewise, of another prompt's training image; rows of NaN where not given.

    Attributes:
        cond: The prompts' conditions, one row each.
        noise: Unit noise of every sample.
        tape: What was seen of the path; None where none was sampled, or no sample was.
        outcomes: What became of every sample; empty before a path is sampled.
        final: Final latents, in the scheduler's own scale; NaN where there are none.
    """

    def __init__(
        self,
        bank: Bank,
        prompts: Sequence[Prompt],
        places: Sequence[int],
        *,
        length: int,
        attention: bool = False,
        frequency: Mapping[str, float] | None = None,
        targets: Callable[[Sequence[Prompt]], Float[Tensor, "prompt d"]] | None = None,
        others: Callable[[Sequence[Prompt]], Float[Tensor, "prompt d"]] | None = None,
    ) -> None:
        self.bank = bank
        self.model = bank.model
        self.prompts = tuple(prompts)
        self.frequency = frequency
        self._targets = targets
        self._others = others
        self.seeds = bank.seeds
        self.length = length
        texts = [prompt.text for prompt in self.prompts]
        self.cond = self.model.encode_prompts(texts, bank.recipe.guidance)
        self.keys = [(p, s) for p in range(len(self.prompts)) for s in range(self.seeds)]
        self._seeds = [
            bank.recipe.sample_seed(self.prompts[p].prompt_id, places[p], s) for p, s in self.keys
        ]
        self.noise, _ = bank.noise(self._seeds)
        self.tape: Trajectory | None = None
        self.looked: Looked | None = None
        self.outcomes: tuple[Outcome, ...] = ()
        self.final = torch.full_like(self.noise, torch.nan)
        self._kept: dict[Any, Any] = {}
        if length:
            self._walk(attention and bool(cross_attentions(self.network)))

    @property
    def network(self) -> Any:
        """Return the module in which cross-attention is looked for, or None."""
        return getattr(self.model.denoiser, "network", None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of latents with the dimensions of prompts and seeds."""
        return (len(self.prompts), self.seeds, *self.model.latent_shape)

    @property
    def ok(self) -> Bool[Tensor, " sample"]:
        """Return which samples were sampled and stayed finite."""
        return torch.tensor([outcome.status == "ok" for outcome in self.outcomes], dtype=torch.bool)

    @cached_property
    def token_counts(self) -> list[int]:
        """Return the length of each prompt in tokens, before truncation."""
        return self.model.token_counts([prompt.text for prompt in self.prompts])

    @cached_property
    def ends(self) -> Int[Tensor, " prompt"]:
        """Return the position of each prompt's end token."""
        counts = torch.tensor(self.token_counts, dtype=torch.int64)
        return (counts + 1).clamp_max(self.model.window - 1)

    @property
    def start(self) -> Latents:
        """Return the states at the first call, unit form."""
        return self.bank.start(self.noise)

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what is kept under a key, made at the first time a piece asks for it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def batches(self, prompts: int | None = None) -> Generator[tuple[Tensor, Tensor]]:
        """Yield which prompt and which seed the rows of each batch are of."""
        count = len(self.prompts) if prompts is None else prompts
        rows = torch.arange(count * self.seeds, device=self.model.device)
        for part in rows.split(self.bank.batch):
            yield part // self.seeds, part % self.seeds

    def each(
        self, work: Callable[[Condition, Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "prompt seed ..."]:
        """Do work on every sample, a batch at a time.

        Args:
            work: Takes the conditions, the number of each sample, and its seed.

        Returns:
            What it returned, float32 on the CPU.
        """
        parts: list[Tensor] = []
        for whose, which in self.batches():
            done = work(self.cond.take(whose), whose * self.seeds + which, which)
            parts.append(done.detach().float().cpu())
        return torch.cat(parts).unflatten(0, (-1, self.seeds))

    def unconditional(self, call: int) -> Latents:
        """Return the raw unconditional output for the noise of every sample.

        At the first call it is that of the path; at a later one the noise is shown as if it were
        a state of that level. Computed once for all prompts where they share their noise.
        """

        def make() -> Latents:
            if self.bank.shared:
                return self.bank.unconditional_of_seeds(call).repeat(
                    len(self.prompts), *[1] * len(self.model.latent_shape)
                )
            x = self.start if call == 0 else self.noise
            return self.bank.unconditional(x, self.bank.point(call))

        return self.keep(("unconditional", call), make)

    def uncond_eps(self, call: int) -> Latents:
        """Return the unconditional noise estimates for the noise of every sample."""
        point = self.bank.point(call)
        x = self.start if call == 0 else self.noise
        raw = self.unconditional(call)
        return Prediction.from_raw(self.bank.network.kind, raw, x, point.level).eps

    @cached_property
    def targets(self) -> Float[Tensor, "prompt d"]:
        """Return latents of each prompt's first training image; rows of NaN where it has none."""
        if self._targets is not None:
            return self._targets(self.prompts)
        rows = torch.full((len(self.prompts), self.model.d), torch.nan)
        for row, prompt in enumerate(self.prompts):
            if prompt.images:
                try:
                    pixels = load_image(prompt.images[0]).pixels[None]
                except InputError as error:
                    # One image that cannot be read is its prompt's affair, and ends nothing else.
                    raise OSError(str(error)) from error
                encoded = self.model.encode_images(pixels.to(self.model.device))
                rows[row] = encoded.flatten().float().cpu()
        return rows

    @cached_property
    def others(self) -> Float[Tensor, "prompt d"]:
        """Return latents of another prompt's training image; rows of NaN where there is none."""
        if self._others is not None:
            return self._others(self.prompts)
        return torch.full((len(self.prompts), self.model.d), torch.nan)

    @property
    def with_image(self) -> list[int]:
        """Return the places of the prompts that have a training image."""
        return torch.isfinite(self.targets).all(dim=1).nonzero()[:, 0].tolist()

    def target_latents(self, prompts: Sequence[int] | Tensor) -> Latents:
        """Return the latents of some prompts' training images, on the model's device."""
        rows = self.targets[torch.as_tensor(prompts, device="cpu")]
        return rows.reshape(-1, *self.model.latent_shape).to(self.noise)

    def each_image(
        self, work: Callable[[Condition, Latents], Tensor]
    ) -> Float[Tensor, "prompt ..."]:
        """Do work on every prompt's training image, a batch at a time.

        Args:
            work: Takes the conditions and the latents of the images.

        Returns:
            What it returned, float64 on the CPU; rows of NaN where a prompt has no image.
        """
        # The first stands in where no image is finite: its latents are NaN, and so is its row.
        mine = self.with_image or [0]
        parts = [
            work(self.cond.take(rows), self.target_latents(rows)).detach().double().cpu()
            for rows in (
                mine[at : at + self.bank.batch] for at in range(0, len(mine), self.bank.batch)
            )
        ]
        whole = parts[0].new_full((len(self.prompts), *parts[0].shape[1:]), torch.nan)
        whole[mine] = torch.cat(parts)
        return whole

    @torch.no_grad()
    def decode(
        self, latents: Latents
    ) -> tuple[Float[Tensor, "sample 3 height width"] | None, dict[int, Exception]]:
        """Decode latents that are finite, a batch at a time.

        Returns:
            Pictures, those of others NaN; None where there is none. And the error of each sample
            whose decoding failed.
        """
        whole = torch.isfinite(latents).flatten(1).all(dim=1)
        images: Tensor | None = None
        failed: dict[int, Exception] = {}

        def decoded(rows: Sequence[int]) -> Float[Tensor, "row 3 height width"]:
            return self.model.decode(latents[list(rows)].to(self.model.device)).float().cpu()

        for rows, part in batched(whole.nonzero()[:, 0].tolist(), self.bank.batch, decoded):
            if isinstance(part, Exception):
                failed[rows[0]] = part
                continue
            if images is None:
                images = torch.full((len(latents), *part.shape[1:]), torch.nan)
            images[list(rows)] = part
        return images, failed

    def mark(self, sample: int, status: str, reason: str) -> None:
        """Mark a sample that came to nothing after its path was sampled."""
        outcomes = list(self.outcomes)
        outcomes[sample] = replace(outcomes[sample], status=status, reason=reason)
        self.outcomes = tuple(outcomes)

    def _walk(self, attention: bool) -> None:
        """Sample the first calls of the path."""
        bank = self.bank
        whole = self.length >= bank.calls
        done: list[tuple[Sequence[int], _Walked]] = []
        outcomes: dict[int, Outcome] = {}

        asked = bank.recipe.intervention
        # What is taken together is one item of a batch, and fails as one.
        each = self.seeds if asked is not None and asked.together else 1
        items = [range(at, at + each) for at in range(0, len(self.keys), each)]

        def walk(some: Sequence[range]) -> _Walked:
            return self._batch([row for item in some for row in item], attention)

        for some, found in batched(items, max(1, bank.batch // each), walk):
            rows = [row for item in some for row in item]
            if isinstance(found, Exception):
                outcomes |= dict.fromkeys(rows, Outcome("error", told(found), 0.0))
                continue
            done.append((rows, found))
            calls, before = found.sampled.nonfinite.tolist(), found.sampled.before.tolist()
            for row, call, made in zip(rows, calls, before, strict=True):
                outcomes[row] = replace(_outcome(call, self.length, found.seconds), before=made)
        self.outcomes = tuple(outcomes[row] for row in range(len(self.keys)))
        if not done:
            return
        order = torch.tensor([row for rows, _ in done for row in rows])
        tape = join([found.tape for _, found in done])
        if whole:
            self.final[order.to(self.final.device)] = torch.cat(
                [found.sampled.latents for _, found in done]
            )
        self.tape = _placed(tape, order, len(self.keys))
        if attention:
            ends = [found.looked.ends for _, found in done if found.looked is not None]
            tokens = torch.cat([f.looked.tokens for _, f in done if f.looked is not None])
            self.looked = Looked(
                _scattered(tokens, order, len(self.keys)),
                None
                if any(part is None for part in ends)
                else _scattered(
                    torch.cat([part for part in ends if part is not None]), order, len(self.keys)
                ),
            )

    def _batch(self, rows: Sequence[int], attention: bool) -> "_Walked":
        bank, model = self.bank, self.model
        begun = time.perf_counter()
        index = torch.as_tensor(list(rows))
        whose = index // self.seeds
        noise, generators = bank.noise([self._seeds[row] for row in rows])
        known, asked = None, bank.recipe.intervention
        whole = self.length >= bank.calls
        if bank.knows_start:
            known = bank.unconditional_of_seeds(0)[(index % self.seeds).to(model.device)]
        recorder = Recorder()
        prompts = tuple(self.prompts[p].text for p in whose.tolist())
        with watch(self.network) if attention else nullcontext() as seen:
            if seen is not None:
                seen.end = self.ends[whose]
            sampled = sample(
                bank.network,
                bank.scheduler,
                noise,
                Branches(
                    self.cond.take(whose),
                    bank.blank(len(rows)) if model.has_uncond else None,
                    prompts,
                    self.ends[whose] if asked is not None and asked.attends else None,
                    whose,
                    lambda: model.words,
                ),
                bank.guidance,
                generators,
                observers=[recorder],
                intervention=asked,
                encode=model.encode_prompts,
                decode=model.decode,
                eta=bank.recipe.eta,
                # The whole path takes the update after the last call as well.
                calls=None if whole else self.length,
                known=known,
                seen=seen,
            )
            looked = None
            if seen is not None:
                looked = Looked(torch.stack(seen.tokens, dim=1), seen.maps)
        tape = recorder.trajectory(sampled.latents if whole else None)
        return _Walked(sampled, tape, looked, (time.perf_counter() - begun) / len(rows))


@dataclass(frozen=True)
class _Walked:
    """What sampling a batch left."""

    sampled: Sampled
    tape: Trajectory
    looked: Looked | None
    seconds: float


def _outcome(call: int, calls: int, seconds: float) -> Outcome:
    if call < 0:
        return Outcome("ok", None, seconds)
    where = f"at call {call}" if call < calls else "after the last update"
    return Outcome("nonfinite", f"a number that is not finite {where}", seconds)


def _scattered(values: Tensor, order: Tensor, count: int) -> Tensor:
    """Put rows where they belong; those that are lacking are NaN."""
    if torch.equal(order, torch.arange(count)):
        return values
    whole = torch.full((count, *values.shape[1:]), torch.nan, dtype=values.dtype)
    whole = whole.to(values.device)
    whole[order.to(values.device)] = values
    return whole


def _placed(tape: Trajectory, order: Tensor, count: int) -> Trajectory:
    vectors: dict[str, Any] = {
        name: _scattered(getattr(tape, name), order, count)
        for name in ("x", "v_u", "v_c", "v_g", "x_T", "x_0")
    }
    return Trajectory(level=tape.level, **vectors)
