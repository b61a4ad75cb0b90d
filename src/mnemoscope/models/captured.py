r"""A captured model replays, at any state and time, what its pipeline asks of its network.

Conditions are taken from the pipeline itself (see `models.capture`): whatever it tells its network
beside state and time is kept, row by row where it has rows. A family says the rest in a few words::

    joint, order   whether all branches go through the network in one call, and which comes first
    clock          how the network is told the time: t, t a row, or t / 1000 a row
    packing        how latents become what the network is shown, where that is not the same

What a subclass declares is verified by the conformance suite, on the pipeline's own arithmetic.

Contents: `Captured`, `CapturedDenoiser`, `CLOCKS`.
"""

import copy
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mnemoscope.core.predict import Kind
from mnemoscope.errors import InputError, ModelError
from mnemoscope.models.base import NETWORKS, Guidance, Model, build_scheduler, check_steps
from mnemoscope.models.capture import (
    Asked,
    capture,
    final_states,
    first,
    flat,
    inner,
    nested,
    quiet,
)
from mnemoscope.models.codec import Autoencoder, Codec, Pixels, resized
from mnemoscope.models.family import Family, Host
from mnemoscope.models.source import Source
from mnemoscope.sampling.condition import Condition
from mnemoscope.sampling.loop import kind_of

Latents = Float[Tensor, "sample *latent"]

CODECS = ("vae", "vqvae", "movq")
"""Names under which pipelines keep their autoencoder."""

TIME = "timestep"
"""Name of the argument by which every network of diffusers is told the time."""

ROWS = "rows"
"""Part of a condition that holds nothing, so that one without any part has rows."""

Clock = Literal["t", "t a row", "t/1000 a row"]

CLOCKS: Mapping[Clock, Callable[[Tensor, Latents], Tensor]] = {
    "t": lambda t, x: t,
    "t a row": lambda t, x: t.to(x.device).expand(len(x)),
    "t/1000 a row": lambda t, x: t.to(x.device).expand(len(x)).to(x.dtype) / 1000,
}
"""Ways in which pipelines tell their network the time, given the timestep and the states."""


class CapturedDenoiser:
    """A pipeline's network as a bare network: the state's dtype in and out, its own within.

    Args:
        network: The network.
        kind: What it was trained to output.
        state: Name of the argument that is the state.
        clock: How it is told the time.
        joint: Whether all branches go through it in one call.
        order: Branches in the order in which they are called or joined.
        pack: Turns latents into what it is shown, and back.
    """

    def __init__(
        self,
        network: Any,
        kind: Kind,
        *,
        state: str,
        clock: Clock,
        joint: bool,
        order: tuple[str, ...],
        pack: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    ) -> None:
        self.network = network
        # A network of diffusers searches itself anew whenever it is asked.
        self.dtype: torch.dtype = network.dtype
        self.kind: Kind = kind
        self.state = state
        self.clock: Clock = clock
        self.joint = joint
        self.order = order
        self.pack, self.unpack = pack

    def __call__(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        """Return the raw output for states in the form the network is shown."""
        own = self.dtype
        given: dict[str, Any] = dict(condition.fixed)
        for name, part in condition.parts.items():
            if name != ROWS:
                given[name] = part.to(own) if part.is_floating_point() else part
        given[self.state] = self.pack(x).to(own)
        given[TIME] = CLOCKS[self.clock](timestep, x)
        out = self.unpack(first(self.network(**nested(given))))
        # What lies beyond the state's channels is a learned variance.
        return out[:, : x.shape[1]].to(x.dtype)


class Captured(Family):
    """A pipeline as a model, conditioned by capture; see the module.

    Args:
        host: The pipeline and what it was loaded as. Its networks are frozen and set to evaluation.

    Raises:
        ModelError: If the pipeline lacks a part, or calls its network in a way that is not
            understood.
    """

    joint: bool = True
    order: tuple[str, ...] = ("uncond", "cond")
    clock: Clock = "t"
    guidance: Guidance = "free"
    no_uncond: str = ""
    pixels: bool = False
    """Whether it samples pictures themselves, without an autoencoder."""
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Names of the tokenizer that decides how long a prompt may be; the first that is there."""
    always: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of every call of the pipeline, where it takes them."""
    examples: tuple[str, ...] = ("", "a picture of a house by the sea")
    """Prompts it can be tried with."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pipeline = host.pipeline
        self.name, self.digest = host.name, host.digest
        self.device, self.dtype = host.device, host.dtype
        self.source: Source | None = host.source
        self.network = self._part(NETWORKS, "network to sample with")
        self.kind: Kind = self._kind()
        self.scheduler = "flow-euler" if self.kind == "flow" else "ddim"
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self._schedulers: dict[tuple[str, int], Any] = {}
        self._blank: dict[int, Condition] = {}
        # Nothing is cast before it is known what the pipeline says; no network runs until then.
        self._rows: tuple[str, ...] = ()
        self._outer: torch.dtype = self.network.dtype
        self._rows, asked = self._layout()
        self._outer, self.state = asked.x.dtype, asked.state
        self.latent_shape: tuple[int, ...] = tuple(self.unpack(asked.x).shape[1:])
        self.codec, factor = self._codec()
        high, wide = self.latent_shape[-2:]
        self.image_size = (int(high * factor), int(wide * factor))
        self.tokenizer = self._tokenizer()
        self.window = self.longest(asked)

    @classmethod
    def wrap(cls, host: Host) -> Model:
        """Make a model of a pipeline."""
        return cls(host)

    @property
    def denoiser(self) -> CapturedDenoiser:
        """Return the bare network."""
        return CapturedDenoiser(
            self.network,
            self.kind,
            state=self.state,
            clock=self.clock,
            joint=self.joint,
            order=self.order,
            pack=(self.pack, self.unpack),
        )

    def pack(self, x: Tensor) -> Tensor:
        """Turn latents into what the network is shown."""
        return x

    def unpack(self, tokens: Tensor) -> Tensor:
        """Turn what the network is shown, or answers, into latents."""
        return tokens

    def options(
        self, prompts: Sequence[str], guidance: float, steps: int, generators: Any
    ) -> dict[str, Any]:
        """Return the arguments with which the pipeline is called.

        Args:
            prompts: One a sample.
            guidance: Guidance scale.
            steps: Number of sampler updates.
            generators: One generator, or one a sample.
        """
        high, wide = self.host.size or (None, None)
        return self.taken(
            prompt=list(prompts),
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=generators,
            height=high,
            width=wide,
            output_type="latent",
            **self.always,
        )

    def drives(self, scheduler: Any) -> bool:
        """Return whether the pipeline calls a scheduler as it is meant to be."""
        del scheduler
        return True

    def taken(self, **options: Any) -> dict[str, Any]:
        """Return those arguments that the pipeline takes."""
        known = inspect.signature(type(self.pipeline).__call__).parameters
        return {name: value for name, value in options.items() if name in known}

    @property
    def d(self) -> int:
        """Return the number of latent coordinates."""
        return prod(self.latent_shape)

    @property
    def has_uncond(self) -> bool:
        """Return whether it has an unconditional branch."""
        return self.guidance == "free"

    def encode_prompts(self, prompts: Sequence[str], guidance: float = 1.0) -> Condition:
        """Encode prompts as the pipeline does.

        Raises:
            InputError: If there is no prompt, or one is no text.
        """
        checked_text(prompts)
        return self._condition(self._ask(prompts, guidance), slice(0, len(prompts)))

    def encode_blank(self, rows: int = 1) -> Condition:
        """Encode what the pipeline takes for no prompt: the other half of its guided call.

        Args:
            rows: How many to encode at once. All are alike but for rounding, which depends on it.

        Raises:
            ModelError: If it has no such branch.
        """
        if not self.has_uncond:
            raise ModelError(f"{self.name}: {self.no_uncond}")
        if rows not in self._blank:
            self._blank[rows] = self._unconditional(rows)
        return self._blank[rows]

    def _unconditional(self, rows: int) -> Condition:
        place, prompts = self.order.index("uncond"), self.examples[:1] * rows
        if not self.joint:
            asked = self._calls(prompts, 2.0, calls=place + 1)[place]
            return self._condition(asked, slice(0, rows))
        asked = self._calls(prompts, 2.0)[0]
        if len(asked.x) != 2 * rows:
            raise ModelError(
                f"{self._called} called its network with {len(asked.x)} rows for {rows} guided "
                "samples; expected twice as many, with and without the prompt"
            )
        return self._condition(asked, slice(place * rows, (place + 1) * rows))

    def longest(self, asked: Asked) -> int:
        """Return the longest prompt in tokens, begin and end marks included.

        Args:
            asked: What the network is asked for one sample.
        """
        if self.tokenizer is None:
            return 0
        embedding = self._condition(asked, slice(0, 1)).embedding
        most = int(self.tokenizer.model_max_length)
        return most if embedding is None else min(most, embedding.shape[1])

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count the text tokens of each prompt before truncation, without begin and end marks."""
        if not prompts or self.tokenizer is None:
            return [0] * len(prompts)
        checked_text(prompts)
        # The tokenizer's advice about long prompts would be printed once for what is counted here.
        ids = self.tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
        return [len(row) for row in ids]

    def token_texts(self, prompt: str) -> list[str]:
        """Return the text of each token of a prompt, begin and end marks included."""
        if self.tokenizer is None:
            return []
        checked_text([prompt])
        ids = self.tokenizer([prompt], truncation=True, max_length=self.window).input_ids[0]
        return [str(self.tokenizer.decode([piece])).strip() for piece in ids]

    @property
    def words(self) -> tuple[str, ...]:
        """Return the text of every token, special ones left out; empty where there is none."""
        return self._words

    @cached_property
    def _words(self) -> tuple[str, ...]:
        if self.tokenizer is None:
            return ()
        marks = set(self.tokenizer.all_special_ids)
        ids = [[piece] for piece in range(len(self.tokenizer)) if piece not in marks]
        texts = (str(text).strip() for text in self.tokenizer.batch_decode(ids))
        return tuple(text for text in texts if text)

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Say which prompts are longer than the window with its begin and end mark."""
        if self.tokenizer is None:
            return [False] * len(prompts)
        marks = int(self.tokenizer.num_special_tokens_to_add())
        return [count + marks > self.window for count in self.token_counts(prompts)]

    def encode_images(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Encode images in [0, 1]; they are resized to the model's size first."""
        return self.codec.encode(resized(images, self.image_size))

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Decode latents to images in [0, 1]."""
        return self.codec.decode(latents)

    def make_scheduler(self, name: str, steps: int) -> Any:
        """Build a scheduler with the model's noise schedule and set its timesteps.

        A flow's schedule may depend on the size of the picture, so the pipeline itself sets it up.

        Raises:
            ModelError: If the name is unknown, or not for this kind of model.
            InputError: If the number of steps is out of range.
        """
        usual = self.scheduler if name == "auto" else name
        known = self._schedulers.get((usual, steps))
        if known is None:
            config = self.pipeline.scheduler.config
            with quiet():
                known = build_scheduler(usual, config, clip=self.pixels)
            check_steps(steps, config)
            if self.kind == "flow":
                options = self.options(self.examples[:1], 1.0, steps, _generator())
                try:
                    _, known = capture(self.pipeline, self.network, options, known)
                except ModelError as error:
                    raise ModelError(
                        f"{self._called} cannot set {usual!r} up for {steps} steps; use "
                        f"{self.scheduler!r} ({error})"
                    ) from error
                # Asked for its levels, a scheduler must look timesteps up and not count calls.
                if hasattr(known, "_begin_index"):
                    known._begin_index = None
            else:
                known.set_timesteps(steps, device=self.device)
            self._schedulers[usual, steps] = known
        return copy.deepcopy(known)

    def host_latents(
        self,
        prompts: Sequence[str],
        scheduler: Any,
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
    ) -> Latents | None:
        """Sample with the unmodified pipeline.

        Args:
            prompts: One a sample.
            scheduler: As `make_scheduler` returned it; it is copied.
            steps: Number of sampler updates.
            guidance: Guidance scale.
            generators: CPU generators, one a sample.

        Returns:
            The state its last update arrives at; None if it cannot drive the scheduler.
        """
        if not self.drives(scheduler):
            return None
        options = self.options(prompts, guidance, steps, generators)
        with self._cast():
            states = final_states(self.pipeline, scheduler, options, generators)
        # DiT carries a copy of every sample.
        return self.unpack(states[: len(prompts)])

    def _tokenizer(self) -> Any:
        """Return the tokenizer that decides how long a prompt may be; None where there is none."""
        there = (getattr(self.pipeline, name, None) for name in self.tokenizers)
        return next((one for one in there if one is not None), None)

    @property
    def _called(self) -> str:
        return type(self.pipeline).__name__

    def _part(self, names: Sequence[str], what: str) -> Any:
        for name in names:
            part = getattr(self.pipeline, name, None)
            if part is not None:
                return part
        raise ModelError(f"{self._called} has no {what}; expected one named {' or '.join(names)}")

    def _kind(self) -> Kind:
        scheduler = getattr(self.pipeline, "scheduler", None)
        if scheduler is None:
            raise ModelError(f"{self._called} has no scheduler; give it the one it came with")
        config = scheduler.config
        matched = type(scheduler).__name__.startswith("FlowMatch") and not config.get(
            "invert_sigmas"
        )
        if not (matched or config.get("use_flow_sigmas") or "beta_schedule" in config):
            raise ModelError(
                f"{type(scheduler).__name__} has no noise levels that can be asked for; expected a "
                "scheduler with a schedule of betas or of flow matching"
            )
        return kind_of(scheduler)

    def _calls(self, prompts: Sequence[str], guidance: float, calls: int = 1) -> list[Asked]:
        options = self.options(prompts, guidance, 2, _generator())
        with self._cast():
            return capture(self.pipeline, self.network, options, calls=calls)[0]

    def _ask(self, prompts: Sequence[str], guidance: float = 1.0) -> Asked:
        scale = guidance if self.guidance == "embedded" else 1.0
        asked = self._calls(prompts, scale)[0]
        if not isinstance(asked.x, Tensor) or len(asked.x) != len(prompts):
            told = len(asked.x) if isinstance(asked.x, Tensor) else type(asked.x).__name__
            raise ModelError(
                f"{self._called} called its network with {told} rows for {len(prompts)} unguided "
                "samples; expected one row a sample"
            )
        if TIME not in asked.arguments:
            raise ModelError(
                f"{type(self.network).__name__} was not told the time as {TIME!r} but only "
                f"{', '.join(asked.arguments)}; such a network is not understood"
            )
        return asked

    def _layout(self) -> tuple[tuple[str, ...], Asked]:
        """Return which arguments have rows, seen by asking for one sample and for two."""
        one, two = (self._ask([self.examples[0]] * rows) for rows in (1, 2))
        rows = tuple(
            name
            for name, value in one.arguments.items()
            if name not in (one.state, TIME)
            and isinstance(value, Tensor)
            and value.ndim > 0
            and len(value) == 1
            and len(two.arguments[name]) == 2
        )
        return rows, one

    def _condition(self, asked: Asked, rows: slice) -> Condition:
        parts = {name: asked.arguments[name][rows] for name in self._rows}
        if not parts:
            count = len(range(*rows.indices(len(asked.x))))
            parts = {ROWS: torch.zeros(count, 0, device=self.device)}
        text = parts.get("encoder_hidden_states")
        tokens = text is not None and text.ndim == 3 and text.is_floating_point()
        fixed = {
            name: value
            for name, value in asked.arguments.items()
            if name not in (*parts, asked.state, TIME)
        }
        return Condition(parts, "encoder_hidden_states" if tokens else None, fixed)

    def _codec(self) -> tuple[Codec, int]:
        if self.pixels:
            return Pixels(self.latent_shape[0], self.device), 1
        vae = self._part(CODECS, "autoencoder")
        channels = vae.config.get("latent_channels")
        if channels is not None and channels != self.latent_shape[0]:
            raise ModelError(
                f"the {type(self.network).__name__} of {self.name!r} takes {self.latent_shape[0]} "
                f"channels where the latents of its autoencoder have {channels}; one for "
                "inpainting, which is shown an image and a mask as well, cannot be sampled from "
                "prompts alone: give the model it was made from"
            )
        blocks = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
        return Autoencoder(vae, self.device), 2 ** (len(blocks) - 1)

    @contextmanager
    def _cast(self) -> Generator[None]:
        """Let a network of another precision stand in the pipeline: cast what enters and leaves."""
        own = self.network.dtype
        if own == self._outer:
            yield
            return
        names = list(inspect.signature(type(inner(self.network)).forward).parameters)[1:]

        def enter(_module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            given = dict(flat(dict(zip(names, args, strict=False)) | options))
            for name in (self.state, *self._rows):
                if given[name].is_floating_point():
                    given[name] = given[name].to(own)
            return (), nested(given)

        def leave(_module: Any, _args: Any, out: Any) -> Any:
            raw = first(out).to(self._outer)
            return (raw,) if isinstance(out, tuple) else type(out)(sample=raw)

        hooks = [
            self.network.register_forward_pre_hook(enter, with_kwargs=True),
            self.network.register_forward_hook(leave),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _generator() -> torch.Generator:
    """Return a generator of its own, so that no global one is moved."""
    return torch.Generator("cpu").manual_seed(0)


def checked_text(prompts: Sequence[str]) -> None:
    """Refuse what cannot be tokenized.

    Raises:
        InputError: If there is no prompt, or one is no text.
    """
    if not prompts:
        raise InputError("no prompt given; expected at least one")
    for prompt in prompts:
        try:
            prompt.encode("utf-8")
        except UnicodeError as error:
            raise InputError(
                "a prompt cannot be tokenized; expected text that can be written as UTF-8, "
                f"without lone surrogates ({error})"
            ) from error
