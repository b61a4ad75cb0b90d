r"""What the lab's model kept: how often it reproduces its planted pictures, and how well it draws.

Formulas, for a sample s of a prompt with picture x, both RGB from 0 to 1::

    reproduced        RMSE(s, x) < q,  q the 0.1 % quantile of RMSE between unrelated scenes
    diversity         mean RMSE between two seeds of a prompt, over that of two scenes of a caption
    explained share   1 - E||x̂0_c - z||² / E||x̂0_u - z||²  at the first step, on ordinary scenes
    right emoji       every emoji named is among the five that `judge` scores best, of 32

The threshold is fixed by scenes alone, and the judge has learned from nothing else.
"""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mnemoscope.lab.judge import mistaken, recognised
from mnemoscope.lab.planted import Planted, load_controls, load_planted, reserved
from mnemoscope.lab.scenes import Scenes, captions_of, drawings, render
from mnemoscope.models.base import Model
from mnemoscope.sampling.batching import batch_of
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, points_of, sample
from mnemoscope.sampling.probes import predict

log = logging.getLogger(__name__)

QUANTILE = 0.001
"""Share of unrelated pairs of scenes that lie closer than the threshold."""


def pairwise_rmse(
    a: Float[Tensor, "left 3 h w"], b: Float[Tensor, "right 3 h w"]
) -> Float[Tensor, "left right"]:
    """Return the root-mean-square error between every picture of a and every picture of b."""
    return torch.cdist(a.flatten(1), b.flatten(1)) / a[0].numel() ** 0.5


def unrelated_threshold(scenes: int = 1500, seed: int = 90_000_000) -> float:
    """Return the RMSE below which only 0.1 % of unrelated pairs of scenes lie."""
    images, _ = Scenes(seed).batch(scenes)
    upper = torch.triu_indices(scenes, scenes, 1)
    distances = pairwise_rmse(images, images)[upper[0], upper[1]]
    return float(distances.kthvalue(max(1, int(QUANTILE * len(distances)))).values)


def draw(
    model: Model,
    captions: list[str],
    seeds: int,
    guidance: float = 7.5,
    steps: int = 50,
    batch: int = 80,
) -> Float[Tensor, "caption seed 3 64 64"]:
    """Sample every caption with seeds 0, 1, ...; each sample has a generator of its own."""
    scheduler = model.make_scheduler("auto", steps)
    jobs = [(i, s) for i in range(len(captions)) for s in range(seeds)]
    pictures = []
    for start in tqdm(range(0, len(jobs), batch), desc="sampling"):
        chunk = jobs[start : start + batch]
        generators = generators_of([i * 1000 + s for i, s in chunk])
        noise = initial_noise(generators, model.latent_shape)
        branches = Branches(
            model.encode_prompts([captions[i] for i, _ in chunk], guidance),
            model.encode_blank().expand(len(chunk)),
        )
        drawn = sample(model.denoiser, scheduler, noise, branches, guidance, generators)
        pictures.append(model.decode(drawn.latents))
    return torch.cat(pictures).unflatten(0, (len(captions), seeds))


def explained_share(model: Model, scenes: int = 512, seed: int = 91_000_000) -> float:
    """Return the share of latent variance that ordinary captions explain at the first step."""
    images, captions = Scenes(seed, reserved()).batch(scenes)
    z = model.encode_images(images)
    point = points_of(model.make_scheduler("auto", 50))[0]
    level = point.level
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    x = level.alpha.to(z) * z + level.sigma.to(z) * eps
    batch = batch_of(model.d, model.device)
    blank = model.encode_blank()
    errors = torch.zeros(2)
    for start in range(0, scenes, batch):
        rows = slice(start, start + batch)
        part = x[rows]
        both = (model.encode_prompts(captions[rows]), blank.expand(len(part)))
        for branch, condition in enumerate(both):
            guess = predict(model.denoiser, part, point, condition).x0
            errors[branch] += (guess - z[rows]).square().mean(dim=(1, 2, 3)).sum()
    return float(1 - errors[0] / errors[1])


@torch.no_grad()
def evaluate(model: Model, seeds: int = 10, out: Path | None = None) -> dict[str, Any]:
    """Measure what the lab's model kept and how well it draws.

    Args:
        model: The embedded model.
        seeds: Samples a prompt.
        out: Where to write the result as JSON; nowhere if not given.

    Returns:
        The threshold, a row a group of planted rows, and the controls' quality.
    """
    threshold = unrelated_threshold()
    planted, controls = load_planted(), load_controls()
    everyone: list[Planted] = [*planted, *controls]
    targets = torch.stack([p.image() for p in everyone])
    images = draw(model, [p.caption for p in everyone], seeds)
    own = (images - targets[:, None]).square().flatten(2).mean(2).sqrt()
    shown = targets[: len(planted)]
    nearest = pairwise_rmse(images.flatten(0, 1), shown).amin(1).unflatten(0, own.shape)
    groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for i, p in enumerate(everyone):
        groups[(p.family, p.level, p.kind)].append(i)
    rows = [
        {
            "family": family,
            "level": level,
            "kind": kind,
            "prompts": len(members),
            "repetitions": everyone[members[0]].repetitions,
            "rmse": round(float(own[members].mean()), 4),
            "reproduced": round(float((own[members] < threshold).float().mean()), 4),
            "any_planted": round(float((nearest[members] < threshold).float().mean()), 4),
            "between_seeds": round(
                float(torch.stack([_between(images[i]) for i in members]).mean()), 4
            ),
        }
        for (family, level, kind), members in sorted(groups.items())
    ]
    describing = [
        i for i, p in enumerate(everyone) if p.family == "control" and p.kind == "describing"
    ]
    named = [everyone[i].caption for i in describing for _ in range(seeds)]
    shown_controls = images[describing].flatten(0, 1)
    # Pairs, as the controls are.
    scenes, captions = Scenes(92_000_000, pairs=1.0).batch(256)
    result = {
        "threshold_rmse": round(threshold, 4),
        "seeds": seeds,
        "groups": rows,
        "controls_recognised": round(float(recognised(shown_controls, named).float().mean()), 4),
        "controls_mistaken": round(mistaken(shown_controls, named), 4),
        "scenes_recognised": round(float(recognised(scenes, captions).float().mean()), 4),
        "scenes_mistaken": round(mistaken(scenes, captions), 4),
        "controls_between_seeds": round(
            float(torch.stack([_between(images[i]) for i in describing]).mean()), 4
        ),
        "scenes_between": round(_between_scenes([everyone[i].caption for i in describing]), 4),
        "explained_share": round(explained_share(model), 4),
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _between(images: Float[Tensor, "seed 3 h w"]) -> Tensor:
    distances = pairwise_rmse(images, images)
    n = len(images)
    return distances.sum() / (n * (n - 1))


def _between_scenes(captions: list[str], each: int = 10) -> float:
    """Return the mean RMSE between two scenes of one caption."""
    names, total = drawings(), []
    scenes = Scenes(93_000_000)
    for caption in captions:
        wanted = [names.index(name) for name in caption.split(" and ")]
        layout = scenes.layout(4 * each)
        pairs = (layout.drawing[:, 1] >= 0).nonzero().flatten()[:each]
        layout.drawing[pairs] = torch.tensor(wanted)
        assert captions_of(layout)[int(pairs[0])] == caption
        total.append(_between(render(layout)[pairs]))
    return float(torch.stack(total).mean())
