"""Outcomes of a trial are read from its tables beside those of plain guidance, a prompt at a time.

What a copy is, severity has said of every sample (`severity.truth`); what a picture looks like is
told here, of the pictures in the tables, of which those of one prompt are held at a time.

Contents: `Reading`; `rows_of`, the rows of a recipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mnemoscope.core.gram import Gram
from mnemoscope.data.images import decode
from mnemoscope.data.prompts import Prompt
from mnemoscope.errors import InputError
from mnemoscope.flows.alignment import Judge
from mnemoscope.mitigations import parse
from mnemoscope.mitigations.base import Mitigation
from mnemoscope.ranking.outcomes import AVERAGED, Outcome, Values
from mnemoscope.runs.folder import Run
from mnemoscope.sampling.chain import Chain
from mnemoscope.sampling.hooks import Intervention
from mnemoscope.severity.truth import Truth, judge

Pictures = Float[Tensor, "seed 3 height width"]
"""The samples of a prompt; NaN where one is lacking."""

EFFECTS = ("k", "w0", "wT")
"""What is told of the mechanism."""


@dataclass(frozen=True)
class Reading:
    """How runs are read: prompts as the truth has them, seeds within.

    Attributes:
        truth: The prompts.
        texts: The same with their texts, by prompt_id.
        seeds: Samples a prompt.
        judges: What says what pictures show.
        measure: The primary similarity measure.
    """

    truth: Truth
    texts: Mapping[str, Prompt]
    seeds: int
    judges: Sequence[Judge]
    measure: str

    def outcomes(self, plain: Run, recipe: str, trial: Run) -> list[Outcome]:
        """Return what became of the samples of a trial, those of plain guidance first.

        Args:
            plain: The run without mitigation.
            recipe: Its recipe.
            trial: The run of all mitigations, on the same prompts and seeds.

        Raises:
            InputError: If the prompts differ, or no sample of a recipe was finished.
        """
        keys = [recipe, *trial.recipes]
        runs = {key: plain if key == recipe else trial for key in keys}
        told = {key: self._told(run, key) for key, run in runs.items()}
        prompts = [_by_prompt(run, key) for key, run in runs.items()]
        for place, rows in enumerate(zip(*prompts, strict=True)):
            names = {name for name, _ in rows}
            if names != {self.truth.prompt_id[place]}:
                raise InputError(f"the runs hold different prompts at place {place}: {names}")
            text = self.texts[self.truth.prompt_id[place]]
            shown = [_decoded(samples, self.seeds) for _, samples in rows]
            for key, (_, samples), pictures in zip(keys, rows, shown, strict=True):
                values = told[key]
                for seed, row in samples.items():
                    for name in ("network_calls", "seconds"):
                        values[name][place, seed] = row[name]
                if pictures is not None:
                    for name, found in self._looks(pictures, shown[0], text).items():
                        values[name][place] = found
        ordinary = self.truth.judged & ~self.truth.memorized
        usual = told[recipe]["diversity"][ordinary]
        apart = float(np.nanmean(usual)) if np.isfinite(usual).any() else nan
        for key, values in told.items():
            if not np.isfinite(values["saturation"]).any():
                raise InputError(f"no sample of {key} was finished")
            values["changed"] = values["changed"] / (apart if apart > 0 else nan)
            values["right_new"] = values["right"] * (1 - values["copies"])
        by = {key: parse(str(row["intervention"])) for key, row in trial.recipes.items()}
        return [_outcome(by.get(key), told[key]) for key in keys]

    def _told(self, run: Run, recipe: str) -> dict[str, Values]:
        """Return what the tables tell of every sample; all else is NaN as yet."""
        values = {name: np.full((len(self.texts), self.seeds), nan) for name in AVERAGED}
        place = {name: at for at, name in enumerate(self.truth.prompt_id)}
        for row in rows_of(run, "similarities", recipe):
            at = place[row["prompt_id"]], row["seed"]
            if (row["measure"], row["relation"]) == (self.measure, "own") and row["value"]:
                values["severity"][at] = np.fmax(values["severity"][at], row["value"])
        held = {row["prompt_id"]: [] for row in rows_of(run, "samples", recipe, "prompt_id")}
        for row in rows_of(run, "samples", recipe, "prompt_id", "seed", "status"):
            held[row["prompt_id"]] += [row["seed"]] if row["status"] == "ok" else []
        graded = run.table("severity").to_pylist()
        for name, found in judge(
            [r for r in graded if r["recipe"] == recipe], self.measure
        ).items():
            for metric, seeds in (("reproduced", found.own_seeds), ("copies", found.copies)):
                if seeds is not None:
                    values[metric][place[name], held[name]] = np.isin(held[name], list(seeds))
        return values | self._mechanism(run, recipe, place)

    def _mechanism(self, run: Run, recipe: str, place: Mapping[str, int]) -> dict[str, Values]:
        found = {name: np.full((len(place), self.seeds), nan) for name in EFFECTS}
        if run.units("effects"):
            rows = rows_of(run, "effects", recipe)
        else:
            gram, keys = run.gram(law="path", recipe=recipe)
            numbers = mechanism_of(gram)
            names = ("prompt_id", "seed", *numbers)
            columns = (keys["prompt_id"], keys["seed"], *numbers.values())
            rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        for row in rows:
            for name in EFFECTS:
                number = row[name]
                found[name][place[row["prompt_id"]], row["seed"]] = (
                    nan if number is None else number
                )
        return found

    def _looks(
        self, images: Pictures, plain: Pictures | None, prompt: Prompt
    ) -> dict[str, Float[np.ndarray, " seed"]]:
        """Return what the pictures of a prompt look like."""
        fine = torch.isfinite(images).flatten(1).all(dim=1).numpy()
        apart = (images[:, None] - images[None]).square().flatten(2).mean(2).sqrt()
        apart.fill_diagonal_(torch.nan)
        beside = torch.full_like(images, torch.nan) if plain is None else plain
        moved = (images - beside).square().flatten(1).mean(1).sqrt().double().numpy()
        found = {
            "diversity": apart.nanmean(dim=1).double().numpy(),
            "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)).double().numpy(),
            "changed": moved,
            "identical": np.where(np.isfinite(moved), moved == 0, nan),
        }
        for one in self.judges:
            seen = one.look(torch.nan_to_num(images), [prompt] * len(images))
            found |= {name: np.where(fine, values, nan) for name, values in seen.items()}
        return found


def mechanism_of(gram: Gram) -> dict[str, Float[np.ndarray, " sample"]]:
    """Return what the founding paper looks at, a number a sample: score, k, w0 and wT.

    Source: Kim et al. 2025, sections 4.2 and 5; the score after Wen et al. 2024, told in clean
        estimates.
    """
    believed = gram.fit("x0_g", ["target"]).weights[:, 0, 0]
    states = gram.states()
    weights = states.fit("x", ["target", "x_T"]).weights
    above = (weights[..., 0] - states.level.alpha).amax(dim=1)
    below = (states.level.sigma - weights[..., 1]).amax(dim=1)
    return {
        "score": (gram.square({"x0_c": 1.0, "x0_u": -1.0})[:, 0].sqrt() / gram.d**0.5).numpy(),
        "k": believed.numpy(),
        "w0": above.numpy(),
        "wT": below.numpy(),
    }


def _outcome(by: Intervention | None, values: Mapping[str, Values]) -> Outcome:
    if by is None:
        return Outcome("", "plain", nan, "", False, values)
    if isinstance(by, Mitigation):
        return Outcome(str(by), by.name, by.strength, by.source, False, values)
    # As the command line takes them, for lists of settings are too long for a figure.
    parts = by.parts if isinstance(by, Chain) else ()
    short = [f"{p.name}:{p.strength:g}" if isinstance(p, Mitigation) else p.name for p in parts]
    return Outcome(str(by), "+".join(short) or by.name, nan, by.source, False, values)


def _units(run: Run, table: str, recipe: str) -> list[str]:
    # A unit is named by where it begins in the list and by its recipe.
    return [unit for unit in run.units(table) if unit.endswith(f"-{recipe}")]


def rows_of(run: Run, table: str, recipe: str, *columns: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that are of a recipe; a run may hold a hundred of them."""
    for unit in _units(run, table, recipe):
        yield from run.part(table, unit, columns or None).to_pylist()


def _by_prompt(run: Run, recipe: str) -> Iterator[tuple[str, dict[int, dict[str, Any]]]]:
    """Yield the samples of each prompt that are ok, by seed."""
    rows = rows_of(run, "samples", recipe)
    for name, some in groupby(rows, key=lambda row: row["prompt_id"]):
        yield name, {row["seed"]: row for row in some if row["status"] == "ok"}


def _decoded(samples: Mapping[int, Mapping[str, Any]], seeds: int) -> Pictures | None:
    found = {seed: decode(row["image"]) for seed, row in samples.items()}
    if not found:
        return None
    images = torch.full((seeds, *next(iter(found.values())).shape), torch.nan)
    for seed, picture in found.items():
        images[seed] = picture
    return images
