"""Runs in which no sample has anything to do with any training image, so that no grade is right.

A sample is a picture of its own kind: as contrasty as training images, or grey, or blurred, and the
seeds of a prompt may be alike. Pictures have a few strong coordinates, as low frequencies are.
"""

from typing import Any

import numpy as np

from mnemoscope.severity.grade import Severity, severities
from mnemoscope.severity.null import Kin, Null, fit_nulls, generated_null, unrelated

COORDINATES = 60


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1 minus the root mean square difference, a row a picture of `a`."""
    square = (a**2).mean(-1)[:, None] + (b**2).mean(-1) - 2 * a @ b.T / a.shape[-1]
    return 1 - np.sqrt(np.maximum(square, 0))


def pictures(rng: np.random.Generator, *shape: int) -> np.ndarray:
    scale = 0.6 / np.arange(1, COORDINATES + 1) ** 0.5
    return rng.normal(size=(*shape, COORDINATES)) * scale


def chance(
    prompts: int, seeds: int, seed: int, *, contrast: float = 1.0, blur: float = 1.0, alike=0.0
) -> tuple[list[Severity], list[Severity]]:
    """Judge a run of chance.

    Args:
        prompts: Number of prompts, each with a training image.
        seeds: Samples a prompt.
        seed: Seed of everything.
        contrast: Factor on a sample's coordinates; training images have contrasts of their own.
        blur: Share of the coordinates a sample has, the strongest.
        alike: Correlation of the seeds of a prompt.

    Returns:
        Severities by the thresholds of training and generated pairs with contrast taken off, and by
        those of training pairs alone.
    """
    rng = np.random.default_rng(seed)
    images = pictures(rng, prompts) * rng.uniform(0.5, 1.5, size=(prompts, 1))
    own = np.sqrt(1 - alike) * pictures(rng, prompts, seeds)
    made = contrast * (own + np.sqrt(alike) * pictures(rng, prompts, 1))
    made[..., int(blur * COORDINATES) :] = 0
    kin = [Kin(f"r{p}", frozenset({f"p{p}"})) for p in range(prompts)]
    nulls = fit_nulls("l2", similarity(images, images), unrelated(kin))
    values = similarity(made.reshape(-1, COORDINATES), images)
    whose = np.repeat(np.arange(prompts), seeds)
    apart = np.where(whose[:, None] == np.arange(prompts), np.nan, values)
    nearest = np.nanargmax(apart, axis=1)
    middle = np.nanmedian(apart, axis=1)
    samples: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for at, prompt in enumerate(whose.tolist()):
        key = {"prompt_id": f"p{prompt}", "seed": at % seeds, "guidance": 7.5, "recipe": "g"}
        samples.append(key | {"status": "ok"})
        for relation, place, value in (
            ("own", prompt, values[at, prompt]),
            ("nearest", int(nearest[at]), values[at, nearest[at]]),
            ("typical", -1, middle[at]),
        ):
            more = {"measure": "l2", "relation": relation, "reference_id": f"r{place}"}
            rows.append(key | more | {"value": float(value)})
    fitted: list[Null] = [*nulls, generated_null(apart, nulls[0], "g")]
    bare = [row for row in rows if row["relation"] != "typical"]
    return severities(samples, rows, fitted), severities(samples, bare, list(nulls))
