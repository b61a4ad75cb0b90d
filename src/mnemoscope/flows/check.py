r"""A check states what a model is, whether our sampling equals its host's, and what a sample costs.

Quantities::

    parity   max |ours - host| over the final latents of a short run; 0 means bit for bit
    price    network rows a sample = calls·branches;  seconds = rows·(seconds a row)

A model is guided by two branches, by an input of its network, or not at all; the short run is made
without guidance and, where there is any, with it.

It samples a few latents in memory, decodes none, and writes nothing.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mnemoscope.core.level import final_level, log_snr
from mnemoscope.core.record import Recorder
from mnemoscope.flows.options import as_model, values_of
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.sampling.loop import (
    Branches,
    Sampled,
    generators_of,
    initial_noise,
    points_of,
    sample,
)

PROBE_STEPS = 3
"""Updates of the short run: enough for a multistep sampler to use its history."""

PROBE_PROMPTS = ("", "a picture of a house by the sea")
"""Prompts of the short run, for a model that has no examples of its own."""

PROBE_GUIDANCE = 7.5
"""Guidance of the short run of a model that can be guided."""

GUIDANCE = {
    "free": "by two branches",
    "embedded": "by an input of the network",
    "none": "none",
}
"""How a model is guided, in words."""


@dataclass(frozen=True)
class Checking(Source):
    """What to check. Every field is an option of `mnemoscope check`."""

    scheduler: str = option("auto", "Sampler; auto is the one usual for the model.")
    steps: int = option(50, "Sampler updates.")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Checking":
        """Make it of options as a command line has them.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


@dataclass(frozen=True)
class CheckReport:
    """What is known of a model before it is studied.

    Attributes:
        model: Name the model was loaded by.
        family: Family of pipelines it is of.
        guidance: How it is guided: "free", "embedded" or "none".
        no_uncond: Why it has no unconditional branch; empty where it has one.
        digest: sha256 over its weights.
        kind: What its network predicts.
        device: Where it runs.
        dtype: Precision of its denoiser.
        latent_shape: Shape of a sample's latents.
        image_size: Height and width of its images in pixels.
        window: Longest prompt in tokens.
        scheduler: Scheduler asked about.
        steps: Updates asked about.
        calls: Network calls a branch on a path.
        first: (alpha, sigma) of the first call, unit form.
        last: (alpha, sigma) of the last call, unit form.
        final: (alpha, sigma) of the final state, unit form.
        log_snr: Log signal-to-noise ratio of each call.
        parity: Largest difference between our final latents and the host pipeline's, by guidance
            scale; None where no host pipeline samples with this scheduler.
        finite: Whether every number of the short run was finite.
        network_calls: Network rows a sample, of all branches.
        seconds: Estimated seconds a sample, from the short run with a record.
    """

    model: str
    family: str
    guidance: str
    no_uncond: str
    digest: str
    kind: str
    device: str
    dtype: str
    latent_shape: tuple[int, ...]
    image_size: tuple[int, int]
    window: int
    scheduler: str
    steps: int
    calls: int
    first: tuple[float, float]
    last: tuple[float, float]
    final: tuple[float, float]
    log_snr: tuple[float, ...]
    parity: dict[float, float] | None
    finite: bool
    network_calls: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Return whether the model is fit to be studied: finite, and at parity in float32."""
        if self.parity is None or self.dtype != "float32":
            return self.finite
        return self.finite and all(difference == 0 for difference in self.parity.values())

    def __str__(self) -> str:
        """Return the report as aligned lines."""

        def at(level: tuple[float, float]) -> str:
            return f"alpha {level[0]:.5f}  sigma {level[1]:.5f}"

        def by(lengths: tuple[int, ...]) -> str:
            return " x ".join(map(str, lengths))

        if self.parity is None:
            parity = f"no host pipeline that samples with {self.scheduler} to compare with"
        else:
            parity = ", ".join(
                f"g = {g:g}: " + ("bit for bit" if value == 0 else f"differs by {value:.2g}")
                for g, value in self.parity.items()
            )
        rows = {
            "model": self.model,
            "weights": f"sha256 {self.digest[:16]}",
            "family": self.family,
            "network": f"predicts {self.kind}; {self.dtype} on {self.device}",
            "guidance": GUIDANCE[self.guidance] + (f": {self.no_uncond}" if self.no_uncond else ""),
            "latents": f"{by(self.latent_shape)}, images {by(self.image_size)} px",
            "prompts": f"up to {self.window} tokens",
            "path": f"{self.scheduler}, {self.steps} steps, {self.calls} calls",
            "first call": f"{at(self.first)}  log_snr {self.log_snr[0]:+.2f}",
            "last call": f"{at(self.last)}  log_snr {self.log_snr[-1]:+.2f}",
            "final state": at(self.final),
            "parity": parity,
            "finite": "yes" if self.finite else "NO: the network returned NaN or infinity",
            "price": f"{self.network_calls} network calls, about {self.seconds:.2g} s a sample",
        }
        wide = max(map(len, rows))
        return "\n".join(f"{name:<{wide}}  {value}" for name, value in rows.items())


def _pair(alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[float, float]:
    return float(alpha), float(sigma)


def check(model: Any, scheduler: str = "auto", steps: int = 50) -> CheckReport:
    """Check a model: its levels, its parity with the host pipeline, its price.

    Args:
        model: The model, or a pipeline object.
        scheduler: Name of the scheduler a study would use.
        steps: Number of sampler updates a study would use.

    Returns:
        The report; `str` of it is what the command line prints.

    Raises:
        ModelError: If the scheduler is unknown, or not for this kind of model.
        InputError: If the number of steps is out of range.
    """
    model = as_model(model)
    path = model.make_scheduler(scheduler, steps)
    points = points_of(path)
    final = final_level(path).unit()
    short_steps = min(PROBE_STEPS, steps)
    short = model.make_scheduler(scheduler, short_steps)
    prompts = tuple(getattr(model, "examples", PROBE_PROMPTS))
    seeds = range(len(prompts))

    def ours(guidance: float) -> Sampled:
        generators = generators_of(seeds)
        noise = initial_noise(generators, model.latent_shape, device=model.device)
        uncond = model.encode_blank(len(prompts)) if model.has_uncond else None
        branches = Branches(model.encode_prompts(prompts, guidance), uncond, prompts)
        # Guidance that is an input of the network is in the condition already.
        scale = guidance if model.has_uncond else 1.0
        return sample(
            model.denoiser, short, noise, branches, scale, generators, observers=[Recorder()]
        )

    finite, parity = True, dict[float, float]()
    scales = (1.0,) if model.guidance == "none" else (1.0, PROBE_GUIDANCE)
    for guidance in scales:
        sampled = ours(guidance)
        finite = finite and bool(sampled.ok.all())
        host = model.host_latents(prompts, short, short_steps, guidance, generators_of(seeds))
        if host is not None:
            parity[guidance] = float((sampled.latents - host).abs().max())
    start = time.perf_counter()
    ours(scales[-1])
    seconds = time.perf_counter() - start
    calls, short_calls = len(points), len(short.timesteps)
    return CheckReport(
        model=model.name,
        family=str(getattr(model, "family", "")),
        guidance=model.guidance,
        no_uncond=model.no_uncond,
        digest=model.digest,
        kind=model.kind,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        latent_shape=tuple(model.latent_shape),
        image_size=model.image_size,
        window=model.window,
        scheduler=model.scheduler if scheduler == "auto" else scheduler,
        steps=steps,
        calls=calls,
        first=_pair(*points[0].level),
        last=_pair(*points[-1].level),
        final=_pair(*final),
        log_snr=tuple(float(log_snr(point.level)) for point in points),
        parity=parity or None,
        finite=finite,
        network_calls=(2 if model.has_uncond else 1) * calls,
        seconds=seconds / len(prompts) / short_calls * calls,
    )
