"""Calibrating sets the score above which a prompt of a model counts as suspicious.

Ordinary prompts are scored by the detector, as a guard will score those of a live pipeline, once
for each number of samples; the threshold is the score that a further ordinary prompt exceeds with
the chance wanted (`guarding.calibration`).

Contents: `Calibrating`, `calibrate`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mnemoscope.core.stats import bootstrap
from mnemoscope.data.prompts import PromptList
from mnemoscope.errors import InputError, ModelError
from mnemoscope.flows.detect import detect
from mnemoscope.flows.options import brought, listed, loaded, recipe_of, values_of
from mnemoscope.guarding.calibration import Calibration, Threshold, fingerprint
from mnemoscope.guarding.first_step import scorer
from mnemoscope.guarding.rule import SCORE
from mnemoscope.lab.prompts import ordinary_prompts
from mnemoscope.models.base import Model
from mnemoscope.models.source import Source
from mnemoscope.options import option
from mnemoscope.ranking.thresholds import conformal, fewest
from mnemoscope.runs.manifest import packages
from mnemoscope.sampling.loop import points_of
from mnemoscope.sampling.recipe import Recipe


@dataclass(frozen=True)
class Calibrating(Recipe, Source):
    """What to calibrate. Every field is an option of `mnemoscope calibrate`."""

    prompts: str | Path | None = option(
        None, "File of ordinary prompts; the embedded model brings its own."
    )
    detector: str = option(SCORE, "Score of the first step that is calibrated.")
    fpr: float = option(0.01, "Share of ordinary prompts that may count as suspicious.")
    seeds: int = option(4, "Most samples of a prompt; thresholds are set for 1, 2, 4 ... of them.")
    batch: int | None = option(None, "Samples a batch; chosen by size where not given.")
    out: str | Path = option("calibration.json", "Where to write it.")

    def __post_init__(self) -> None:
        """Bring values to their type and refuse those that mean nothing.

        Raises:
            InputError: If a value is out of range.
        """
        super().__post_init__()
        brought(self)
        if not 0 < self.fpr < 1:
            raise InputError(f"fpr {self.fpr} given; expected a share between 0 and 1")

    @classmethod
    def of_options(cls, options: Mapping[str, Any]) -> "Calibrating":
        """Make it of options as a command line has them.

        Raises:
            InputError: If a value does not fit.
        """
        return cls(**values_of(cls, options))


def calibrate(
    asked: Calibrating,
    model: Model | None = None,
    notify: Callable[[str], None] | None = None,
    progress: bool = False,
) -> Calibration:
    """Set thresholds on ordinary prompts, and write them.

    Args:
        asked: What to calibrate.
        model: The model, where it is loaded already.
        notify: Told what is scored, and at what price.
        progress: Whether to draw a progress bar on standard error.

    Returns:
        The calibration, as it was written to `asked.out`.

    Raises:
        InputError: If the detector takes more than a first step, or there are too few prompts.
        ModelError: If the model has no unconditional branch.

    Source: split conformal calibration (Vovk et al. 2005).
    """
    say = notify or (lambda line: None)
    least = scorer(asked.detector).needs.seeds
    if asked.seeds < least:
        raise InputError(f"{asked.detector} takes at least {least} samples; --seeds {asked.seeds}")
    prompts = _ordinary(asked)
    if len(prompts) < fewest(asked.fpr):
        raise InputError(
            f"{len(prompts)} ordinary prompts given; a threshold for {asked.fpr:.2%} false "
            f"positives takes at least {fewest(asked.fpr)}: give more, or a larger --fpr"
        )
    known = loaded(asked) if model is None else model
    if not known.has_uncond:
        raise ModelError(f"{known.name!r} cannot be calibrated: {known.no_uncond}")
    recipe = {f.name: getattr(asked, f.name) for f in fields(Recipe)}
    levels: list[Threshold] = []
    for seeds in _counts(least, asked.seeds):
        scores = detect(
            known, prompts, detectors=asked.detector, seeds=seeds, batch=asked.batch,
            notify=say, progress=progress, **recipe,
        ).of(asked.detector)  # fmt: skip
        levels.append(_threshold(scores[np.isfinite(scores)], seeds, asked.fpr))
    used = recipe_of(asked, known)
    first = points_of(known.make_scheduler(used.scheduler, used.steps))[0]
    made = Calibration(
        asked.detector,
        asked.fpr,
        float(first.level.alpha),
        tuple(levels),
        {
            "name": known.name,
            "digest": known.digest,
            "fingerprint": fingerprint(getattr(known.denoiser, "network", known.denoiser)),
        },
        used.row,
        packages(),
    )
    made.write(asked.out)
    return made


def _ordinary(asked: Calibrating) -> PromptList:
    """Return the prompts that thresholds are set on."""
    if asked.prompts is None and asked.model.startswith("embedded"):
        return PromptList.of(ordinary_prompts())
    return listed(asked.prompts, asked.model)


def _counts(least: int, most: int) -> list[int]:
    """Return the numbers of samples that thresholds are set for: powers of two, and the most.

    >>> _counts(1, 6)
    [1, 2, 4, 6]
    """
    powers = (1 << k for k in range(most.bit_length()))
    return sorted({n for n in (*powers, most) if least <= n <= most})


def _threshold(scores: np.ndarray, seeds: int, fpr: float) -> Threshold:
    value = float(conformal(scores, fpr))
    if math.isnan(value):
        raise InputError(
            f"only {len(scores)} prompts could be scored; a threshold for {fpr:.2%} takes "
            f"{fewest(fpr)}"
        )
    spread = bootstrap(partial(conformal, fpr=fpr), scores)
    return Threshold(seeds, value, spread.low, spread.high, len(scores))
