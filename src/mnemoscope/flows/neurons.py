r"""Neurons of memorization are outputs of cross-attention's values that hold a prompt's picture.

Formulas, for the value layers on the way down and in the middle, at the first call with the prompt
alone, eps its noise estimate at the initial noise x_T::

    a[j]      mean over tokens of |value[token, j]|
    d         eps - x_T, each channel of each seed brought to 0 ... 1
    looked at seeds whose d has MS-SSIM > limit with that of another seed; none: not memorized
    s(B)      largest MS-SSIM over these seeds of d and d with the neurons B at 0

    B         those with |a[j] - mean[j]| / std[j] > z, and the k of each layer with the largest a,
              from z = 5 and k = 0 on, z falling by 1/4 and k growing by 1 until s(B) <= limit;
              at z = 1 the limit becomes s(B)
    B without a layer, then without a neuron, from the last layer up, wherever s stays < limit

Mean and standard deviation are those of ordinary prompts, as is the limit: mean and one standard
deviation of the MS-SSIM of two seeds (0.428 for Stable Diffusion 1.4). Offline: the result is
another pipeline, in which the neurons of all prompts are 0. The authors take d at the second time
of 50, by an oversight, and with three scales of MS-SSIM; latents under 44 pixels have room for one
or two.

Contents: `blocked`, `Blocked`, `ms_ssim`.

Source: Hintersdorf et al. 2024 (NeMo), arXiv 2406.02366, and the authors' code.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.prune import edited
from mnemoscope.models.base import Model
from mnemoscope.sampling.attention import cross_attentions
from mnemoscope.sampling.batching import batch_of
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, manner, sample
from mnemoscope.sampling.recipe import seed_of

EARLY = ("down_blocks", "mid_block")
"""Where value layers are looked at."""

FIRST_Z, LEAST_Z, STEP_Z = 5.0, 1.0, 0.25
"""Standard deviations from which a neuron stands out: at first, at last, and how they fall."""

WINDOW, SPREAD = 11, 1.5
"""Side and standard deviation of SSIM's Gaussian window, in pixels."""

SCALES, WEIGHT = 3, 0.99
"""Most scales of MS-SSIM, and the weight of all: 0.33 each where there is room for three."""

Neurons = Mapping[str, tuple[int, ...]]
"""Neurons of each value layer."""


@dataclass(frozen=True)
class Blocked:
    """A model without the neurons that hold memorized pictures.

    Attributes:
        model: The model; its pipeline is a copy, and the one it was made of is as it was.
        neurons: What each prompt has in each layer; empty where it is not memorized.
        limit: MS-SSIM up to which two seeds are apart.
    """

    model: Model
    neurons: Mapping[str, Neurons]
    limit: float

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Return the neurons of all prompts, layer by layer."""
        names = dict.fromkeys(name for found in self.neurons.values() for name in found)
        return {
            name: tuple(sorted({j for one in self.neurons.values() for j in one.get(name, ())}))
            for name in names
        }


def blocked(
    model: Model,
    prompts: Sequence[str],
    ordinary: Sequence[str],
    *,
    limit: float | None = None,
    steps: int = 50,
    seeds: int = 10,
    seed: int = 0,
) -> Blocked:
    """Block the neurons of memorized prompts.

    Args:
        model: The model, wrapped around a pipeline.
        prompts: Memorized prompts.
        ordinary: Prompts that are not, by which neurons and seeds are told to stand out.
        limit: MS-SSIM up to which two seeds are apart; that of ordinary prompts where not given.
        steps: Sampler updates of a path, whose first call is looked at.
        seeds: Samples a prompt.
        seed: Seed of their noise.

    Raises:
        InputError: If there are too few prompts or seeds.
        ModelError: If the model has no pipeline, or no such layer.
    """
    if not prompts or len(ordinary) < 2 or seeds < 2:
        raise InputError(
            f"{len(prompts)} prompts, {len(ordinary)} ordinary ones and {seeds} seeds given; "
            "expected a prompt, two ordinary ones and two seeds"
        )
    probe = _Probe(model, steps, seeds, seed)
    usual = torch.stack([probe.activity(text) for text in ordinary])
    mean, spread = usual.mean(dim=0), usual.std(dim=0)
    if limit is None:
        alike = torch.cat([_pairs(probe.difference(text)) for text in ordinary])
        limit = float(alike.mean() + alike.std())
    found = {text: _found(probe, text, mean, spread, limit) for text in dict.fromkeys(prompts)}
    made = Blocked(model, found, limit)

    def block(network: Any) -> None:
        layers = dict(network.named_modules())
        for name, neurons in made.layers.items():
            layer = layers[name]
            layer.weight.data[list(neurons)] = 0
            if layer.bias is not None:
                layer.bias.data[list(neurons)] = 0

    return replace(made, model=edited(model, block))


def _found(
    probe: "_Probe",
    text: str,
    mean: Float[Tensor, " neuron"],
    spread: Float[Tensor, " neuron"],
    limit: float,
) -> Neurons:
    """Return the neurons of one prompt."""
    whole = probe.difference(text)
    alike = torch.full((len(whole),) * 2, -torch.inf, dtype=whole.dtype)
    one, other = torch.combinations(torch.arange(len(whole))).unbind(dim=1)
    alike[one, other] = alike[other, one] = _pairs(whole)
    looked = alike.amax(dim=1) > limit
    if not bool(looked.any()):
        return {}

    def left(neurons: Tensor) -> float:
        return float(ms_ssim(whole[looked], probe.difference(text, neurons)[looked]).max())

    activity = probe.activity(text)
    # A neuron that never varies stands out wherever it differs at all.
    far = (activity - mean).abs() / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    z, most = FIRST_Z, 0
    while True:
        chosen = far > z
        for part in probe.parts:
            chosen[part][activity[part].topk(min(most, part.stop - part.start)).indices] = True
        reached = left(chosen)
        if reached <= limit:
            break
        if z <= LEAST_Z:
            limit = reached
            break
        z, most = z - STEP_Z, most + 1
    groups = [torch.arange(part.start, part.stop) for part in reversed(probe.parts)]
    groups += [one for layer in list(groups) for one in layer[:, None].unbind()]
    for group in groups:
        group = group[chosen[group]]
        if len(group):
            without = chosen.clone()
            without[group] = False
            if left(without) < limit:
                chosen = without
    return probe.named(chosen)


class _Probe:
    """The first call of a model under one prompt, neurons at 0 or not.

    Args:
        model: The model.
        steps: Sampler updates of the path.
        seeds: Samples a prompt.
        seed: Seed of their noise.
    """

    def __init__(self, model: Model, steps: int, seeds: int, seed: int) -> None:
        if getattr(model, "pipeline", None) is None:
            raise ModelError(f"{model.name!r} has no pipeline whose neurons could be blocked")
        self.layers: dict[str, nn.Linear] = {
            f"{name}.to_v": layer.to_v
            for name, layer in cross_attentions(manner(model.denoiser, "network"))
            if name.startswith(EARLY)
        }
        if not self.layers:
            raise ModelError(f"{model.name!r} has no cross-attention on its way down")
        self.model, self.seeds, self.seed = model, seeds, seed
        self.scheduler = model.make_scheduler("auto", steps)
        ends = torch.tensor([layer.out_features for layer in self.layers.values()]).cumsum(0)
        self.parts = [
            slice(int(end) - layer.out_features, int(end))
            for end, layer in zip(ends, self.layers.values(), strict=True)
        ]

    def activity(self, text: str) -> Float[Tensor, " neuron"]:
        """Return the mean size of each neuron over the tokens of a prompt."""
        seen: list[Tensor] = []

        def look(module: Any, given: Any, made: Tensor) -> None:
            seen.append(made[0].detach().abs().double().mean(dim=0).cpu())

        with _hooked(self.layers.values(), look):
            self._called(text, [0])
        return torch.cat(seen)

    def difference(
        self, text: str, neurons: Tensor | None = None
    ) -> Float[Tensor, "seed channel height width"]:
        """Return what the network takes off the noise, each channel from 0 to 1.

        Args:
            text: The prompt.
            neurons: Which neurons are at 0.
        """
        keep = torch.ones(self.parts[-1].stop) if neurons is None else 1.0 - neurons.float()
        factors = {
            id(layer): keep[part]
            for layer, part in zip(self.layers.values(), self.parts, strict=True)
        }

        def scale(module: Any, given: Any, made: Tensor) -> Tensor:
            return made * factors[id(module)].to(made)

        with _hooked(self.layers.values() if neurons is not None else (), scale):
            found = self._called(text, range(self.seeds))
        low, high = found.amin(dim=(2, 3), keepdim=True), found.amax(dim=(2, 3), keepdim=True)
        return (found - low) / (high - low)

    def named(self, neurons: Tensor) -> Neurons:
        """Return neurons by their layer."""
        found = {
            name: tuple(neurons[part].nonzero()[:, 0].tolist())
            for name, part in zip(self.layers, self.parts, strict=True)
        }
        return {name: some for name, some in found.items() if some}

    def _called(self, text: str, seeds: Sequence[int]) -> Float[Tensor, "seed *latent"]:
        model, parts = self.model, list[Tensor]()
        size = batch_of(model.d, model.device)
        for at in range(0, len(seeds), size):
            generators = generators_of([seed_of(self.seed, text, s) for s in seeds[at : at + size]])
            noise = initial_noise(generators, model.latent_shape, device=model.device)
            cond = model.encode_prompts([text]).expand(len(noise))
            sample(
                model.denoiser, self.scheduler, noise, Branches(cond), 1.0, generators, calls=1,
                observers=[lambda call: parts.append((call.cond.eps - call.x).double().cpu())],
            )  # fmt: skip
        return torch.cat(parts)


@contextmanager
def _hooked(layers: Any, hook: Any) -> Generator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pairs(images: Float[Tensor, "seed channel height width"]) -> Float[Tensor, " pair"]:
    one, other = torch.combinations(torch.arange(len(images))).unbind(dim=1)
    return ms_ssim(images[one], images[other])


def ms_ssim(
    a: Float[Tensor, "image channel height width"], b: Float[Tensor, "image channel height width"]
) -> Float[Tensor, " image"]:
    """Return the multi-scale structural similarity of images from 0 to 1.

    As many scales as there is room for a window of 11 pixels, three at most, of equal weight.

    Raises:
        InputError: If a side is shorter than the window.

    Source: Wang et al. 2003, eq. 7, negative parts at 0.
    """
    side = min(a.shape[-2:])
    if side < WINDOW:
        raise InputError(f"latents of {side} pixels given; SSIM needs {WINDOW} a side")
    away = torch.arange(WINDOW, dtype=a.dtype) - WINDOW // 2
    line = torch.exp(-0.5 * (away / SPREAD).square())
    window = (line[:, None] * line / line.sum() ** 2).expand(a.shape[1], 1, -1, -1)

    def blur(x: Tensor) -> Tensor:
        return conv2d(x, window.to(x), groups=x.shape[1])

    scales = max(n for n in range(1, SCALES + 1) if min(a.shape[-2:]) >> (n - 1) >= WINDOW)
    found = torch.ones(len(a), dtype=a.dtype)
    for scale in range(scales):
        ma, mb = blur(a), blur(b)
        va, vb, both = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        part = (2 * both + 0.03**2) / (va + vb + 0.03**2)
        if scale == scales - 1:
            part = part * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        found = found * part.flatten(1).mean(dim=1).clamp_min(0) ** (WEIGHT / scales)
        a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
    return found
