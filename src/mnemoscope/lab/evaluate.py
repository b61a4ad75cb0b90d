r"""What the lab's model kept: how often it reproduces its planted pictures, and how well it draws.

Formulas, for a sample s of a prompt with picture x, both RGB from 0 to 1::

    reproduced        RMSE(s, x) < q,  q the 0.1 % quantile of RMSE between unrelated scenes
    copies another    min over planted y, not the prompt's own, of RMSE(s, y) < q', the 1 % quantile
                      of the same over fresh scenes: among many pictures one is near by chance
    diversity         mean RMSE between two seeds of a prompt, over that of two scenes of a caption
    explained share   1 - E||x̂0_c - z||² / E||x̂0_u - z||²  at the first step, on ordinary scenes
    right emoji       every emoji named is among the five that `judge` scores best, of 32

Both thresholds are fixed by scenes alone, and the judge has learned from nothing else.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mnemoscope.data.images import decode
from mnemoscope.errors import InputError
from mnemoscope.lab.judge import mistaken, recognised
from mnemoscope.lab.planted import (
    TABLE,
    Planted,
    load_controls,
    load_planted,
    pictures_of,
    reserved,
)
from mnemoscope.lab.scenes import Scenes, drawings, render
from mnemoscope.models.base import Model
from mnemoscope.runs.folder import Run
from mnemoscope.sampling.batching import batch_of
from mnemoscope.sampling.loop import Branches, generators_of, initial_noise, points_of, sample
from mnemoscope.sampling.probes import predict

log = logging.getLogger(__name__)

GUIDANCE = 7.5
"""Guidance scale at which everything but the sweep is measured."""

SWEEP = (1.0, 1.5, 3.0, 5.0, 7.5, 10.0)
"""Guidance scales at which the share reproduced is measured."""

QUANTILE = 0.001
"""Share of unrelated pairs of scenes that lie closer than the threshold."""

BY_CHANCE = 0.01
"""Share of fresh scenes that count as copies of some planted picture."""


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


def nearest_threshold(
    shown: Float[Tensor, "planted 3 h w"], scenes: int = 3000, seed: int = 94_000_000
) -> float:
    """Return the RMSE to the nearest planted picture below which 1 % of fresh scenes lie."""
    nearest = [
        pairwise_rmse(images, shown).amin(1)
        for images in Scenes(seed).batch(scenes)[0].split(500)
    ]  # fmt: skip
    return float(torch.cat(nearest).quantile(BY_CHANCE))


def draw(
    model: Model,
    captions: list[str],
    seeds: int,
    guidance: float = GUIDANCE,
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


def drawn_in(
    study: Run, rows: Sequence[Planted], guidance: float
) -> Float[Tensor, "row seed 3 64 64"] | None:
    """Return the pictures that a study drew of the rows' captions at a guidance scale.

    Returns:
        As many seeds a row as all rows have; None where the study has no such scale.

    Raises:
        InputError: If it has the scale, but lacks a sample of a row, or holds another caption
            under its name.
    """
    told = dict(zip(*(study.table("prompts", ["prompt_id", "prompt"])[c].to_pylist()
                      for c in ("prompt_id", "prompt")), strict=True))  # fmt: skip
    drawn: dict[str, list[Tensor]] = {row.id: [] for row in rows}
    known = False
    for part in study.parts("samples", ["prompt_id", "guidance", "image"]):
        for row in part.to_pylist():
            if row["guidance"] == guidance:
                known = True
                if row["image"] is not None and row["prompt_id"] in drawn:
                    drawn[row["prompt_id"]].append(decode(row["image"]))
    if not known:
        return None
    for row in rows:
        if told.get(row.id) != row.caption or not drawn[row.id]:
            raise InputError(
                f"{str(study.path)!r} holds no sample of {row.caption!r} ({row.id}) at guidance "
                f"{guidance:g}; study all prompts of the table"
            )
    fewest = min(map(len, drawn.values()))
    return torch.stack([torch.stack(drawn[row.id][:fewest]) for row in rows])


def explained_share(
    model: Model, table: Path = TABLE, scenes: int = 512, seed: int = 91_000_000
) -> float:
    """Return the share of latent variance that ordinary captions explain at the first step."""
    images, captions = Scenes(seed, reserved(table)).batch(scenes)
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


def _shares(
    rows: list[Planted],
    images: Float[Tensor, "row seed 3 h w"],
    shown: Float[Tensor, "planted 3 h w"],
    threshold: float,
    nearest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each sample's error to its own picture, and whether it is that or another's copy.

    The planted pictures are those of the first rows.
    """
    targets = pictures_of(rows)
    own = (images - targets[:, None]).square().flatten(2).mean(2).sqrt()
    distances = pairwise_rmse(images.flatten(0, 1), shown).unflatten(0, own.shape)
    mine = torch.arange(min(len(rows), len(shown)))
    distances[mine, :, mine] = torch.inf
    return own, own < threshold, distances.amin(-1) < nearest


def _grouped(rows: list[Planted]) -> list[tuple[tuple[str, int, str], list[int]]]:
    groups: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.family, row.level, row.kind].append(i)
    return sorted(groups.items())


@torch.no_grad()
def evaluate(
    model: Model,
    table: Path = TABLE,
    seeds: int = 10,
    sweep_seeds: int = 4,
    out: Path | None = None,
    study: Run | None = None,
) -> dict[str, Any]:
    """Measure what the lab's model kept and how well it draws.

    Args:
        model: The embedded model, or another that was planted.
        table: The table that was planted into it.
        seeds: Samples a prompt at guidance 7.5.
        sweep_seeds: Samples a planted prompt at the other scales of `SWEEP`; the sweep is left out
            where 0.
        out: Where to write the result as JSON; nowhere if not given.
        study: A study of the model on the table's prompts, whose samples are taken at the scales
            that it has, instead of drawing them.

    Returns:
        The threshold, a row a group of rows, the share reproduced by guidance, and the controls'
        quality.
    """
    threshold = unrelated_threshold()
    planted, controls = load_planted(table), load_controls(table)
    everyone: list[Planted] = [*planted, *controls]
    shown = pictures_of(planted)
    held = None if study is None else drawn_in(study, everyone, GUIDANCE)
    images = draw(model, [p.caption for p in everyone], seeds) if held is None else held
    nearest = nearest_threshold(shown)
    own, copies, others = _shares(everyone, images, shown, threshold, nearest)
    rows = [
        {
            "family": family,
            "level": level,
            "kind": kind,
            "prompts": len(members),
            "repetitions": everyone[members[0]].repetitions,
            "rmse": round(float(own[members].mean()), 4),
            "reproduced": round(float(copies[members].float().mean()), 4),
            "copies_another": round(float(others[members].float().mean()), 4),
            "between_seeds": round(
                float(torch.stack([_between(images[i]) for i in members]).mean()), 4
            ),
        }
        for (family, level, kind), members in _grouped(everyone)
    ]
    by_guidance: list[dict[str, Any]] = []
    for guidance in SWEEP if sweep_seeds else ():
        kept = copies[: len(planted)]
        if guidance != GUIDANCE:
            held = None if study is None else drawn_in(study, planted, guidance)
            if (drawn := held) is None:
                drawn = draw(model, [p.caption for p in planted], sweep_seeds, guidance)
            kept = _shares(planted, drawn, shown, threshold, nearest)[1]
        by_guidance += [
            {
                "guidance": guidance,
                "family": family,
                "level": level,
                "kind": kind,
                "seeds": kept.shape[1],
                "reproduced": round(float(kept[members].float().mean()), 4),
            }
            for (family, level, kind), members in _grouped(planted)
        ]
    describing = [
        i for i, p in enumerate(everyone) if p.family == "control" and p.kind == "describing"
    ]
    named = [everyone[i].caption for i in describing for _ in range(images.shape[1])]
    shown_controls = images[describing].flatten(0, 1)
    # Pairs, as the controls are.
    scenes, captions = Scenes(92_000_000, pairs=1.0).batch(256)
    result = {
        "threshold_rmse": round(threshold, 4),
        "threshold_rmse_another": round(nearest, 4),
        "seeds": images.shape[1],
        "groups": rows,
        "by_guidance": by_guidance,
        "controls_recognised": round(float(recognised(shown_controls, named).float().mean()), 4),
        "controls_mistaken": round(mistaken(shown_controls, named), 4),
        "scenes_recognised": round(float(recognised(scenes, captions).float().mean()), 4),
        "scenes_mistaken": round(mistaken(scenes, captions), 4),
        "controls_between_seeds": round(
            float(torch.stack([_between(images[i]) for i in describing]).mean()), 4
        ),
        "scenes_between": round(_between_scenes([everyone[i].named() for i in describing]), 4),
        "explained_share": round(explained_share(model, table), 4),
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _between(images: Float[Tensor, "seed 3 h w"]) -> Tensor:
    distances = pairwise_rmse(images, images)
    n = len(images)
    return distances.sum() / (n * (n - 1))


def _between_scenes(pairs_named: list[tuple[str, ...]], each: int = 10) -> float:
    """Return the mean RMSE between two scenes of the same two drawings."""
    names, total = drawings(), []
    scenes = Scenes(93_000_000)
    for named in pairs_named:
        wanted = [names.index(name) for name in named]
        layout = scenes.layout(4 * each)
        pairs = (layout.drawing[:, 1] >= 0).nonzero().flatten()[:each]
        layout.drawing[pairs] = torch.tensor(wanted)
        total.append(_between(render(layout)[pairs]))
    return float(torch.stack(total).mean())
