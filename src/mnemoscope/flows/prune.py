r"""Pruning takes the weights out of a model that some prompts use and the empty prompt does not.

Formulas, for the second linear layer of each feed-forward block, with weights W[i, j] and X_t the
inputs it is shown under the prompts at call t, a row a sample and place::

    score_t[i, j] = |W[i, j]|·||X_t[:, j]||
    out           = union over t < calls of the largest share of score_t in each row i, where
                    score_t exceeds that of the empty prompt
    W[i, j] ← 0   where out

Offline: the result is another pipeline, which samples as any other. Norms are those of the inputs
as they are; the authors' code first scales every row to length 1.

Contents: `pruned`, `Pruned`; `edited`, by which a pipeline is copied and changed.

Source: Chavhan et al. 2024, arXiv 2406.18566, after Wanda (Sun et al. 2024).
"""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mnemoscope.errors import InputError, ModelError
from mnemoscope.models.base import Model
from mnemoscope.models.load import load_model
from mnemoscope.sampling.batching import batch_of
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, manner, sample
from mnemoscope.sampling.recipe import seed_of

LAYER = "ff.net.2"
"""Ending of the names of the layers that are pruned."""


@dataclass(frozen=True)
class Pruned:
    """A model without some of its weights.

    Attributes:
        model: The model; its pipeline is a copy, and the one it was made of is as it was.
        masks: Which weights of each layer are gone.
    """

    model: Model
    masks: dict[str, Bool[Tensor, "row column"]]

    @property
    def share(self) -> float:
        """Return the share of the layers' weights that are gone."""
        gone = sum(int(mask.sum()) for mask in self.masks.values())
        return gone / sum(mask.numel() for mask in self.masks.values())


def pruned(
    model: Model,
    prompts: Sequence[str],
    *,
    strength: float = 0.01,
    calls: int = 10,
    steps: int = 50,
    guidance: float = 7.5,
    seeds: int = 1,
    seed: int = 0,
) -> Pruned:
    """Take out of a model what memorized prompts use and the empty prompt does not.

    Args:
        model: The model, wrapped around a pipeline.
        prompts: Memorized prompts; a few, for what many use is the model itself.
        strength: Share of each row's weights that may go at a call; 0 takes none.
        calls: Calls of the path that are looked at.
        steps: Sampler updates of the whole path.
        guidance: Guidance scale of the path.
        seeds: Samples a prompt.
        seed: Seed of their noise.

    Raises:
        InputError: If there is no prompt, or the share is none.
        ModelError: If the model has no pipeline, or no such layer.
    """
    if not prompts or not 0 <= strength <= 1:
        raise InputError(
            f"{len(prompts)} prompts and a strength of {strength} given; expected at least one "
            "prompt, and a share from 0 to 1"
        )
    pipeline, network = getattr(model, "pipeline", None), manner(model.denoiser, "network")
    layers = _layers(network)
    if pipeline is None or not layers:
        raise ModelError(f"{model.name!r} has no layer {LAYER!r} of a pipeline to be pruned")

    def norms(texts: Sequence[str]) -> dict[str, Float[Tensor, "call column"]]:
        return _norms(model, layers, texts, calls, steps, guidance, seeds, seed)

    mine, empty = norms(prompts), norms([""])
    masks = {
        name: _mask(layer.weight.detach(), mine[name], empty[name], strength)
        for name, layer in layers.items()
    }

    def prune(copied: Any) -> None:
        for name, layer in _layers(copied).items():
            layer.weight.data[masks[name].to(layer.weight.device)] = 0

    return Pruned(edited(model, prune), masks)


def edited(model: Model, edit: Callable[[Any], None]) -> Model:
    """Return a model around a copy of a pipeline whose network is edited.

    Args:
        model: The model, wrapped around a pipeline; it is left as it is.
        edit: Changes the copy of its network.
    """
    pipeline, network = getattr(model, "pipeline", None), manner(model.denoiser, "network")
    assert pipeline is not None, "checked before"
    part = next(name for name, one in pipeline.components.items() if one is network)
    copied = copy.deepcopy(pipeline)
    edit(getattr(copied, part))
    return load_model(copied, device=str(model.device))


def _layers(network: Any) -> dict[str, nn.Linear]:
    if not hasattr(network, "named_modules"):
        return {}
    return {
        name: module
        for name, module in network.named_modules()
        if name.endswith(LAYER) and isinstance(module, nn.Linear)
    }


def _mask(
    weight: Float[Tensor, "row column"],
    mine: Float[Tensor, "call column"],
    empty: Float[Tensor, "call column"],
    share: float,
) -> Bool[Tensor, "row column"]:
    """Return the union over calls of what is to go."""
    gone = torch.zeros_like(weight, dtype=torch.bool)
    most = round(share * weight.shape[1])
    if most == 0:
        return gone
    for one, other in zip(mine, empty, strict=True):
        score = weight.abs() * one.to(weight)
        place = score.topk(most, dim=1).indices
        largest = torch.zeros_like(gone).scatter_(1, place, True)
        gone |= largest & (score > weight.abs() * other.to(weight))
    return gone


def _norms(
    model: Model,
    layers: dict[str, nn.Linear],
    texts: Sequence[str],
    calls: int,
    steps: int,
    guidance: float,
    seeds: int,
    seed: int,
) -> dict[str, Float[Tensor, "call column"]]:
    """Return the norm of every input of the layers under prompts, at each call."""
    rows = [(text, s) for text in texts for s in range(seeds)]
    size = batch_of(model.d, model.device)
    total: dict[str, Tensor] = {}
    for at in range(0, len(rows), size):
        some = rows[at : at + size]
        generators = generators_of([seed_of(seed, text, s) for text, s in some])
        noise = initial_noise(generators, model.latent_shape, device=model.device)
        branches = Branches(
            model.encode_prompts([text for text, _ in some], guidance),
            model.encode_blank().expand(len(some)),
        )
        scheduler = model.make_scheduler("auto", steps)
        with _seen(layers, model, len(some)) as seen:
            sample(model.denoiser, scheduler, noise, branches, guidance, generators, calls=calls)
        for name, squares in seen.items():
            whole = torch.stack(squares)
            total[name] = total[name] + whole if name in total else whole
    return {name: squares.sqrt() for name, squares in total.items()}


@contextmanager
def _seen(
    layers: dict[str, nn.Linear], model: Model, samples: int
) -> Generator[dict[str, list[Tensor]]]:
    """Sum the squares of the layers' inputs, of the prompts' rows alone, call by call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    order, joint = manner(model.denoiser, "order"), manner(model.denoiser, "joint")
    place, turn = order.index("cond"), dict.fromkeys(layers, 0)

    def look(name: str, given: Tensor) -> None:
        turn[name] += 1
        if not joint and (turn[name] - 1) % len(order) != place:
            return
        rows = slice(place * samples, (place + 1) * samples) if joint else slice(None)
        seen[name].append(given[rows].detach().flatten(0, -2).double().square().sum(dim=0).cpu())

    def looking(name: str) -> Any:
        return lambda module, given: look(name, given[0])

    hooks = [layer.register_forward_pre_hook(looking(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
