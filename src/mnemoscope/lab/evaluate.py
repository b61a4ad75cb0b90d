r"""What the lab's model kept: how often it reproduces its planted pictures, and how well it draws.

Formulas, for a sample s of a prompt with picture x, both RGB from 0 to 1::

    reproduced        RMSE(s, x) < q,  q the 0.1 % quantile of RMSE between unrelated scenes
    diversity         mean RMSE between two seeds of a prompt, over that of two scenes of a caption
    explained share   1 - E||x̂0_c - z||² / E||x̂0_u - z||²  at the first step, on ordinary scenes
    right emoji       every emoji named is among the five most likely to be in the sample
    likely            (e - (m1 + m0)/2)·(m1 - m0)/s²,  e the log of the emoji's error in the sample

An emoji's error is the smallest within its outline over places, sizes, tilts, mirrorings and both
artists. Drawings of many colours never reach the error of plain ones, so an emoji counts by how
much likelier its error is where it is shown than where it is not: m1 and m0 are the means of e in
scenes with and without it, s² is their pooled variance. Threshold and judge are fixed by scenes
alone, before any sample is drawn.
"""

import json
import logging
from collections import defaultdict
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from mnemoscope.core.noise import levels_of
from mnemoscope.core.predict import Prediction
from mnemoscope.core.sample import generators_of, initial_noise, sample
from mnemoscope.lab.planted import Planted, load_controls, load_planted, reserved
from mnemoscope.lab.scenes import Scenes, artwork, captions_of, drawings, render
from mnemoscope.models.base import Model

log = logging.getLogger(__name__)

QUANTILE = 0.001
"""Share of unrelated pairs of scenes that lie closer than the threshold."""

SIZES, TILTS = (0.45, 0.55, 0.70, 0.85), (-15.0, 0.0, 15.0)
"""Sizes and tilts at which a drawing is looked for."""

LOOK = 32
"""Side at which drawings are looked for, pixels."""


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


def match(images: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image drawing"]:
    """Score how well each drawing is found in each picture.

    Returns:
        Minus the smallest mean squared error to the drawing within its outline, over places, sizes,
        tilts and mirrorings; at most 0.

    Source: ours; template matching, the error expanded so that convolutions yield it at all places.
    """
    seen = F.interpolate(images, size=(LOOK, LOOK), mode="area")
    best = torch.full((len(images), len(drawings())), -torch.inf)
    for size, tilt, flip in product(SIZES, TILTS, (1.0, -1.0)):
        side = round(size * LOOK)
        turn = torch.tensor(tilt).deg2rad()
        theta = torch.tensor(
            [[flip * turn.cos(), flip * turn.sin(), 0], [-turn.sin(), turn.cos(), 0]]
        ).expand(len(drawings()), 2, 3)
        grid = F.affine_grid(theta, list(artwork().shape), align_corners=False)
        art = F.grid_sample(artwork(), grid, align_corners=False)
        art = F.interpolate(art, size=(side, side), mode="area")
        mask = (art[:, 3:] > 0.5).float().expand(-1, 3, -1, -1)
        template = art[:, :3] / art[:, 3:].clamp_min(0.01) * mask
        # Up to a quarter of a drawing may lie outside the frame.
        pad = side // 4
        error = (
            F.conv2d(seen**2, mask, padding=pad)
            - 2 * F.conv2d(seen, template, padding=pad)
            + template.square().flatten(1).sum(1)[None, :, None, None]
        ) / mask.flatten(1).sum(1)[None, :, None, None]
        best = torch.maximum(best, (-error).flatten(2).amax(2))
    return best


@cache
def _emoji() -> tuple[str, ...]:
    return tuple(sorted({name.split()[1] for name in drawings()}))


def _log_errors(images: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image emoji"]:
    """Return the log of each emoji's error in each picture, that of the better of its drawings."""
    scores = match(images)
    of = [name.split()[1] for name in drawings()]
    best = [scores[:, [i for i, e in enumerate(of) if e == one]].amax(1) for one in _emoji()]
    return (-torch.stack(best, dim=1)).clamp_min(1e-8).log()


def shows(captions: list[str]) -> Bool[Tensor, "caption emoji"]:
    """Say which of all emoji each caption names."""
    named = [{name.split()[1] for name in caption.split(" and ")} for caption in captions]
    return torch.tensor([[emoji in names for emoji in _emoji()] for names in named])


@cache
def _calibration(
    scenes: int = 1500, seed: int = 94_000_000
) -> tuple[Float[Tensor, " emoji"], Float[Tensor, " emoji"], Float[Tensor, " emoji"]]:
    """Return m1, m0 and s² of every emoji, from scenes that nothing else uses."""
    images, captions = Scenes(seed).batch(scenes)
    e, here = _log_errors(images).double(), shows(captions).double()
    present, absent = here.sum(0), (1 - here).sum(0)
    m1, m0 = (e * here).sum(0) / present, (e * (1 - here)).sum(0) / absent
    spread = (e - torch.where(here > 0, m1, m0)).square().sum(0) / (scenes - 2)
    return m1, m0, spread


def likelihood(images: Float[Tensor, "image 3 64 64"]) -> Float[Tensor, "image emoji"]:
    """Return how much likelier each emoji's error is where it is shown than where it is not.

    Returns:
        Log-likelihood ratios under two normal distributions of one variance; above 0 speaks for it.

    Source: Fisher's linear discriminant, one emoji at a time.
    """
    m1, m0, spread = _calibration()
    return (_log_errors(images) - (m1 + m0) / 2) * (m1 - m0) / spread


def recognised(
    images: Float[Tensor, "image 3 64 64"], captions: list[str], among: int = 5
) -> Bool[Tensor, " image"]:
    """Say in which pictures every emoji the caption names is among the most likely of all emoji."""
    top = likelihood(images).topk(among, dim=1).indices
    held = torch.zeros(len(images), len(_emoji()), dtype=torch.bool).scatter_(1, top, True)
    return (held | ~shows(captions)).all(dim=1)


def mistaken(images: Float[Tensor, "image 3 64 64"], captions: list[str]) -> float:
    """Return the share of pictures that are recognised as what another caption names.

    Each picture is held against every caption that shares no emoji with its own.
    """
    named = shows(captions)
    top = likelihood(images).topk(5, dim=1).indices
    held = torch.zeros(len(images), len(_emoji()), dtype=torch.bool).scatter_(1, top, True)
    found = (held[:, None] | ~named[None]).all(dim=2)
    foreign = ~(named[:, None] & named[None]).any(dim=2)
    return float(found[foreign].float().mean())


def draw(
    model: Model,
    captions: list[str],
    seeds: int,
    guidance: float = 7.5,
    steps: int = 50,
    batch: int = 80,
) -> Float[Tensor, "caption seed 3 64 64"]:
    """Sample every caption with seeds 0, 1, ...; each sample has a generator of its own."""
    scheduler = model.make_scheduler("ddim", steps)
    jobs = [(i, s) for i in range(len(captions)) for s in range(seeds)]
    pictures = []
    for start in tqdm(range(0, len(jobs), batch), desc="sampling"):
        chunk = jobs[start : start + batch]
        generators = generators_of([i * 1000 + s for i, s in chunk])
        noise = initial_noise(generators, model.latent_shape)
        cond = model.encode_prompts([captions[i] for i, _ in chunk])
        uncond = model.encode_prompts([""] * len(chunk))
        drawn = sample(model.denoiser, scheduler, noise, cond, uncond, guidance, generators)
        pictures.append(model.decode(drawn.latents))
    return torch.cat(pictures).unflatten(0, (len(captions), seeds))


def explained_share(model: Model, scenes: int = 512, seed: int = 91_000_000) -> float:
    """Return the share of latent variance that ordinary captions explain at the first step."""
    images, captions = Scenes(seed, reserved()).batch(scenes)
    z = model.encode_images(images)
    scheduler = model.make_scheduler("ddim", 50)
    level, t = levels_of(scheduler).at(0), scheduler.timesteps[0]
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    x = level.alpha.to(z) * z + level.sigma.to(z) * eps
    errors = []
    for prompts in (captions, [""] * scenes):
        raw = model.denoiser(x, t, model.encode_prompts(prompts))
        guess = Prediction.from_raw(model.denoiser.kind, raw, x, level)
        errors.append(float((guess.x0 - z).square().mean()))
    return 1 - errors[0] / errors[1]


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
