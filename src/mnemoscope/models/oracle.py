r"""An oracle is the exact denoiser of a known distribution, a mixture of isotropic Gaussians.

Formulas, for components N(m_k, s_k²·1) with weights w_k, at x = alpha·x0 + sigma·eps::

    V_k    = alpha²·s_k² + sigma²
    r_k    = softmax_k( log w_k - ||x - alpha·m_k||² / (2·V_k) - (d/2)·log V_k )
    x0(x)  = sum_k r_k·( sigma²·m_k + alpha·s_k²·x ) / V_k

A condition is a row of log-weights, so a prompt is a belief about the component. With s_k = 0 and
all the weight on one component the estimate is that target whatever the state: the perfect
memorizer.

Contents: `MixtureDenoiser`, `Oracle`, `memorizer`, `gaussian`, `mixture`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.level import Level
from mnemoscope.core.predict import Kind, Prediction, to_raw
from mnemoscope.errors import InputError
from mnemoscope.models.base import Guidance, make_scheduler
from mnemoscope.models.source import Source
from mnemoscope.sampling.condition import Condition

SCHEDULE: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}
"""Stable Diffusion's noise schedule."""

IMAGE_SIZE = 8
"""Side of the built-in oracles' images in pixels; latents are the pixels scaled to [-1, 1]."""


def _sigma_ratios() -> Float[Tensor, " timestep"]:
    """Return sigma/alpha at every training timestep, from the same float32 betas diffusers uses."""
    root = torch.linspace(
        SCHEDULE["beta_start"] ** 0.5,
        SCHEDULE["beta_end"] ** 0.5,
        SCHEDULE["num_train_timesteps"],
        dtype=torch.float32,
    )
    kept = torch.cumprod(1 - root**2, dim=0).double()
    return ((1 - kept) / kept).sqrt()


class MixtureDenoiser:
    """The exact denoiser of a Gaussian mixture; see the module's formulas.

    Args:
        means: Component means m_k.
        spreads: Component standard deviations s_k; 0 is a point.
        kind: What the raw output is.
    """

    def __init__(
        self,
        means: Float[Tensor, "component *latent"],
        spreads: Float[Tensor, " component"],
        kind: Kind = "eps",
    ) -> None:
        self.means = means.double()
        self.spreads = spreads.double()
        self.kind: Kind = kind
        self._ratios = _sigma_ratios().to(self.means.device)

    def level(self, timestep: Tensor) -> Level:
        """Return the unit level of a timestep; between two, sigma/alpha is linear."""
        t = timestep.double().reshape(()).to(self._ratios.device)
        low = t.floor().clamp(0, len(self._ratios) - 2)
        share = t - low
        low = low.long()
        ratio = (1 - share) * self._ratios[low] + share * self._ratios[low + 1]
        alpha = 1 / (1 + ratio**2).sqrt()
        return Level(alpha, alpha * ratio)

    def posterior_mean(
        self,
        x: Float[Tensor, "sample *latent"],
        level: Level,
        log_weights: Float[Tensor, "sample component"],
    ) -> Float[Tensor, "sample *latent"]:
        """Return the mean of x0 given the state, float64.

        Args:
            x: States, unit form.
            level: Their level, unit form, 0-d.
            log_weights: Log prior weight of each component.
        """
        flat, means = x.double().flatten(1), self.means.flatten(1)
        alpha, sigma = level.alpha.to(flat), level.sigma.to(flat)
        variance = alpha**2 * self.spreads**2 + sigma**2
        square = torch.cdist(flat, alpha * means, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        evidence = -square / (2 * variance) - flat.shape[1] / 2 * variance.log()
        shares = torch.softmax(log_weights.double() + evidence, dim=1)
        toward = (shares * sigma**2 / variance) @ means
        along = (shares * alpha * self.spreads**2 / variance).sum(dim=1, keepdim=True)
        return (toward + along * flat).reshape(x.shape)

    def __call__(
        self,
        x: Float[Tensor, "sample *latent"],
        timestep: Tensor,
        condition: Condition,
    ) -> Float[Tensor, "sample *latent"]:
        """Return the raw output, in the dtype of the state."""
        level = self.level(timestep)
        x0 = self.posterior_mean(x, level, condition.parts["log_weights"])
        eps = (x.double() - level.alpha * x0) / level.sigma
        return to_raw(self.kind, Prediction(x0, eps), level).to(x.dtype)


class Oracle:
    """A closed form as a full model: pixels are its latents, a table of beliefs its text encoder.

    Args:
        name: What it is called.
        denoiser: The exact denoiser.
        beliefs: Log-weights of the components for each known prompt; "" is the unconditional one.
        fallback: Components among which any other prompt picks one, by its sha256.
        device: Where it runs.
    """

    has_uncond = True
    words: tuple[str, ...] = ()
    guidance: Guidance = "free"
    no_uncond = ""
    window = 77
    dtype = torch.float32
    scheduler = "ddim"
    family = "oracle"

    def __init__(
        self,
        name: str,
        denoiser: MixtureDenoiser,
        beliefs: Mapping[str, Float[Tensor, " component"]],
        fallback: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.denoiser = denoiser
        self.kind: Kind = denoiser.kind
        self.beliefs = dict(beliefs)
        self.fallback = tuple(fallback)
        self.device = torch.device(device)
        self.latent_shape = tuple(denoiser.means.shape[1:])
        high, wide = (1, 1, *self.latent_shape)[-2:]
        self.image_size = (int(high), int(wide))
        self.source: Source | None = None

    @property
    def d(self) -> int:
        """Return the number of latent coordinates."""
        return prod(self.latent_shape)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the prompts it has a belief about, the empty one left out."""
        return tuple(prompt for prompt in self.beliefs if prompt)

    @property
    def digest(self) -> str:
        """Return the sha256 over its means, spreads and beliefs, 64 hex digits."""
        digest = hashlib.sha256()
        parts = [self.denoiser.means, self.denoiser.spreads, *self.beliefs.values()]
        for part in parts:
            digest.update(part.detach().double().cpu().numpy().tobytes())
        digest.update("\0".join(self.beliefs).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def encode_prompts(self, prompts: Sequence[str], guidance: float = 1.0) -> Condition:
        """Return each prompt's log-weights of the components."""
        del guidance
        rows: list[Tensor] = []
        for prompt in prompts:
            if prompt in self.beliefs:
                rows.append(self.beliefs[prompt])
                continue
            text = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
            chosen = self.fallback[int.from_bytes(text[:8], "big") % len(self.fallback)]
            rows.append(_only(chosen, len(self.denoiser.spreads)))
        return Condition({"log_weights": torch.stack(rows).to(self.device, torch.float32)})

    def encode_blank(self, rows: int = 1) -> Condition:
        """Return the log-weights of no prompt."""
        return self.encode_prompts([""] * rows)

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Count the words of each prompt."""
        return [len(prompt.split()) for prompt in prompts]

    def token_texts(self, prompt: str) -> list[str]:
        """Return the words of a prompt."""
        return prompt.split()

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """Say which prompts are cut off: none, for a prompt is looked up whole."""
        return [False] * len(prompts)

    def encode_images(
        self, images: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image *latent"]:
        """Return 2·image - 1, resized to the model's size.

        Raises:
            InputError: If the oracle's latents are no pictures of three channels.
        """
        if len(self.latent_shape) != 3 or self.latent_shape[0] != 3:
            raise InputError(f"{self.name} has latents of shape {self.latent_shape}, not pictures")
        sized = torch.nn.functional.interpolate(images.float(), self.latent_shape[1:], mode="area")
        return (2 * sized - 1).to(self.device)

    def decode(
        self, latents: Float[Tensor, "image *latent"]
    ) -> Float[Tensor, "image 3 height width"]:
        """Return (latents + 1)/2, clamped to [0, 1]."""
        return ((latents.float() + 1) / 2).clamp(0, 1)

    def make_scheduler(self, name: str, steps: int) -> Any:
        """Build a scheduler with Stable Diffusion's noise schedule and set its timesteps."""
        prediction = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[self.kind]
        config = {**SCHEDULE, "prediction_type": prediction}
        usual = self.scheduler if name == "auto" else name
        return make_scheduler(usual, steps, config, self.device)

    def host_latents(
        self,
        prompts: Sequence[str],
        scheduler: Any,
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
    ) -> None:
        """Return None: there is no pipeline to compare with."""
        del prompts, scheduler, steps, guidance, generators


def _only(component: int, components: int) -> Float[Tensor, " component"]:
    row = torch.full((components,), -torch.inf)
    row[component] = 0
    return row


def memorizer(
    targets: Mapping[str, Float[Tensor, "*latent"]],
    *,
    kind: Kind = "eps",
    device: torch.device | str = "cpu",
) -> Oracle:
    """Build the perfect memorizer: each prompt in the table has its target, whatever the state.

    The unconditional branch, and any prompt not in the table, is the Gaussian with the targets'
    mean and standard deviation.

    Args:
        targets: The target latents of each prompt.
        kind: What the denoiser outputs.
        device: Where it runs.

    Returns:
        The model.
    """
    points = torch.stack([target.double() for target in targets.values()])
    means = torch.cat([points, points.mean(dim=0, keepdim=True)]).to(device)
    spread = (points - points.mean(dim=0)).square().mean().sqrt()
    spreads = torch.zeros(len(means), dtype=torch.float64)
    spreads[-1] = spread if float(spread) > 0 else 1.0
    beliefs = {prompt: _only(i, len(means)) for i, prompt in enumerate(targets)}
    beliefs[""] = _only(len(points), len(means))
    denoiser = MixtureDenoiser(means, spreads.to(device), kind)
    return Oracle("oracle:memorizer", denoiser, beliefs, [len(points)], device)


def gaussian(
    mean: Float[Tensor, "*latent"],
    spread: float,
    *,
    kind: Kind = "eps",
    device: torch.device | str = "cpu",
) -> Oracle:
    """Build the denoiser of N(mean, spread²·1), the same under every prompt.

    Args:
        mean: Mean of the clean latents.
        spread: Standard deviation of each coordinate.
        kind: What the denoiser outputs.
        device: Where it runs.

    Returns:
        The model.
    """
    denoiser = MixtureDenoiser(mean[None].to(device), torch.tensor([spread]).to(device), kind)
    return Oracle("oracle:gaussian", denoiser, {"": torch.zeros(1)}, [0], device)


def mixture(
    means: Float[Tensor, "component *latent"],
    spread: float,
    *,
    kind: Kind = "eps",
    device: torch.device | str = "cpu",
) -> Oracle:
    """Build the denoiser of an even mixture, of which a prompt "component k" names one part.

    Args:
        means: Component means.
        spread: Standard deviation of each coordinate within a component.
        kind: What the denoiser outputs.
        device: Where it runs.

    Returns:
        The model; a prompt that names no component picks one by its sha256.
    """
    count = len(means)
    denoiser = MixtureDenoiser(means.to(device), torch.full((count,), spread).to(device), kind)
    beliefs = {f"component {k}": _only(k, count) for k in range(count)}
    beliefs[""] = torch.zeros(count)
    return Oracle("oracle:mixture", denoiser, beliefs, range(count), device)


def _patterns(count: int) -> Float[Tensor, "pattern 3 height width"]:
    """Draw smooth pictures in [-1, 1], the same on every machine."""
    axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 * torch.pi
    pictures: list[Tensor] = []
    for k in range(count):
        across, down = 1 + k % 3, 1 + (k // 3) % 3
        waves = [
            torch.sin(across * axis[None, :] + down * axis[:, None] + 2.1 * channel + 0.7 * k)
            for channel in range(3)
        ]
        pictures.append(0.8 * torch.stack(waves))
    return torch.stack(pictures)


def _builtin_memorizer(device: torch.device) -> Oracle:
    return memorizer({f"target {k}": p for k, p in enumerate(_patterns(8))}, device=device)


def _builtin_gaussian(device: torch.device) -> Oracle:
    return gaussian(torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE), 0.5, device=device)


def _builtin_mixture(device: torch.device) -> Oracle:
    return mixture(_patterns(8), 0.1, device=device)


ORACLES: Mapping[str, Callable[..., Oracle]] = {
    "memorizer": _builtin_memorizer,
    "gaussian": _builtin_gaussian,
    "mixture": _builtin_mixture,
}
"""The built-in oracles by name."""
