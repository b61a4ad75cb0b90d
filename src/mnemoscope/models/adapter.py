r"""An adapter is a sum of channels, each of which lies more or less along what its base does.

Formulas, for a layer with weights W and the update of rank r that a LoRA adds to them::

    update       B·A·(alpha / r) = Σ_i s_i·u_i·v_i'         its singular value decomposition
    principal    U, V: the leading singular directions of W, those that hold a share p of ||W||²
    alignment    a_i = (||U'u_i||² + ||V'v_i||²) / 2         1 if u_i and v_i lie among them
    chance       c   = (k/m + k/n) / 2                      a of random directions, W being m x n
    anchored     (a_i - c) / (1 - c)                         1 along the base, 0 as by chance

A filter of strength t takes a share t of Σ s_i², over all layers, out of the update: whole
channels, the least anchored first, and of the last one as much as is wanted. Scaling the update by
sqrt(1 - t) takes out as much, and asks nothing of the base: it is what a filter has to beat.

While something is sampled, an adapter may as well lie in the weights themselves, W + B·A: two
products fewer a layer.

Contents: `Channels`, `channels_of`, `filtered`; `folded`.

Source: the idea of Yu et al. 2026 (arXiv 2605.10439, base-anchored filtering: keep what lies along
the principal subspace of the pretrained weights, suppress the rest). Their code and formula were
not at hand: alignment, ranking and strength as defined here are ours.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mnemoscope.errors import InputError, ModelError

PRINCIPAL = 0.5
"""Share of a layer's squared norm that its principal directions hold."""

NOTHING = 1e-12
"""Largest singular value that counts as 0, relative to the largest."""


@dataclass(frozen=True, eq=False)
class Channels:
    """The update of one layer, as singular channels.

    Attributes:
        name: The layer, as diffusers names it in a LoRA file, its part of the pipeline first.
        up: Left singular directions u_i, a column each.
        values: Singular values s_i.
        down: Right singular directions v_i, a row each.
        anchored: How far each lies along the base beyond chance.
        kernel: Shape of a convolution's kernel; empty for a linear layer.
    """

    name: str
    up: Float[Tensor, "out channel"]
    values: Float[Tensor, " channel"]
    down: Float[Tensor, "channel in"]
    anchored: Float[Tensor, " channel"]
    kernel: tuple[int, ...] = ()

    def state(self, kept: Float[Tensor, " channel"]) -> dict[str, Tensor]:
        """Return the layer's matrices as a LoRA file holds them.

        Args:
            kept: Factor on each channel.
        """
        root = (self.values * kept).sqrt()
        up, down = self.up * root, root[:, None] * self.down
        if self.kernel:
            up = up[..., *[None] * len(self.kernel)]
            down = down.unflatten(1, (-1, *self.kernel))
        return {
            f"{self.name}.lora_A.weight": down.float().contiguous(),
            f"{self.name}.lora_B.weight": up.float().contiguous(),
        }


def channels_of(pipeline: Any, principal: float = PRINCIPAL) -> list[Channels]:
    """Decompose the adapter of a pipeline.

    Args:
        pipeline: A pipeline with one LoRA beside its weights.
        principal: Share p of a layer's squared norm that its principal directions hold.

    Returns:
        The layers that the adapter changes.

    Raises:
        InputError: If the share is not between 0 and 1.
        ModelError: If a layer is adapted in a way that is not the product of two matrices.
    """
    if not 0 < principal < 1:
        raise InputError(f"principal {principal} given; expected a share between 0 and 1")
    return [
        _channels(f"{part}.{name}", layer, principal)
        for part, network in pipeline.components.items()
        if isinstance(network, torch.nn.Module)
        for name, layer in network.named_modules()
        if hasattr(layer, "get_base_layer")
    ]


@torch.no_grad()
def _channels(name: str, layer: Any, principal: float) -> Channels:
    names = list(layer.lora_A)
    if len(names) != 1 or len(getattr(layer, "lora_magnitude_vector", ())):
        raise ModelError(
            f"layer {name!r} is not adapted by a product of two matrices alone, as by DoRA; a "
            "filter takes plain LoRA"
        )
    down, up = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    base, kernel = layer.get_base_layer().weight, tuple(down.shape[2:])
    left, right = up.double().flatten(1), down.double().flatten(1)
    # The update has rank r at most: its singular vectors lie in those of its two factors.
    q_up, r_up = torch.linalg.qr(left * float(layer.scaling[names[0]]))
    q_down, r_down = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T)
    u, v = q_up @ u, v @ q_down.T
    anchored = _anchored(u, v, base.double().flatten(1), principal)
    return Channels(name, u, values, v, anchored, kernel)


def _anchored(
    u: Float[Tensor, "out channel"],
    v: Float[Tensor, "channel in"],
    base: Float[Tensor, "out in"],
    principal: float,
) -> Float[Tensor, " channel"]:
    """Return how far channels lie along the principal directions of a layer, beyond chance."""
    out, into = base.shape
    wide = into >= out
    # The smaller of the two products has all singular values, and costs least.
    squares, vectors = torch.linalg.eigh(base @ base.T if wide else base.T @ base)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    held = squares.cumsum(0) / squares.sum().clamp(min=torch.finfo(squares.dtype).tiny)
    k = int((held < principal).sum()) + 1
    near = vectors[:, :k]
    far = (base.T @ near if wide else base @ near) / squares[:k].sqrt().clamp(min=NOTHING)
    left, right = (near, far) if wide else (far, near)
    along = ((left.T @ u).square().sum(0) + (v @ right).square().sum(1)) / 2
    chance = (k / out + k / into) / 2
    return (along - chance) / max(1 - chance, NOTHING)


def filtered(channels: Sequence[Channels], strength: float) -> dict[str, Tensor]:
    """Take the least anchored channels out of an adapter.

    Args:
        channels: Its layers.
        strength: Share t of the update's squared norm that goes.

    Returns:
        What is left, as the tensors of a LoRA file.

    Raises:
        InputError: If the strength is not between 0 and 1, or there is nothing to filter.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"strength {strength} given; expected a share from 0 to 1")
    if not channels:
        raise InputError("the adapter changes no layer; there is nothing to filter")
    energy = torch.cat([one.values.square() for one in channels])
    order = torch.cat([one.anchored for one in channels]).argsort(stable=True)
    going = (strength * energy.sum() - (energy[order].cumsum(0) - energy[order])).clamp(min=0)
    left = (1 - going / energy[order].clamp(min=torch.finfo(energy.dtype).tiny)).clamp(min=0)
    kept = torch.ones_like(energy)
    kept[order] = left.sqrt()
    held: dict[str, Tensor] = {}
    for one, factors in zip(channels, kept.split([len(c.values) for c in channels]), strict=True):
        held |= one.state(factors)
    return held


@contextmanager
def folded(parts: Iterable[nn.Module]) -> Generator[None]:
    """Fold adapters into the weights they adapt, and put these back bit for bit afterwards.

    What is folded already, switched off, or adapts weights that are no numbers (quantized ones) is
    left alone.

    Args:
        parts: Networks, such as those of a pipeline.
    """
    layers: list[Any] = []
    held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for layer in (each for part in parts for each in part.modules()):
                if not isinstance(layer, BaseTunerLayer) or layer.merged or layer.disable_adapters:
                    continue
                weights = [*layer.get_base_layer().parameters(recurse=False)]
                if all(weight.is_floating_point() for weight in weights):
                    held += [(weight, weight.data, weight.data.clone()) for weight in weights]
                    layers.append(layer)
                    layer.merge()
        yield
    finally:
        for weight, there, before in held:
            weight.data = there.copy_(before)
        for layer in layers:
            layer.merged_adapters.clear()
