"""A run folder whose truth is known: the synthetic paths of the mechanism's tests, with pictures.

Prompts m0..m5 leak their image and their samples are copies of it; p0..p5 and controls c0..c3 do
not, and theirs are noise.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mnemoscope.core.gram import NAMES, PAIRS
from mnemoscope.core.level import Level
from mnemoscope.mechanism.base import Record
from mnemoscope.runs.folder import Manifest, Run, Writer
from mnemoscope.runs.tables import TABLES
from tests.mechanism.synthetic import record
from tests.views import recipe_of

SEEDS = 4
FILM = (0, 12, 24, 36, 49)
"""Calls of which filmstrips are kept."""
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</script><img src=x onerror=\"document.title='pwned'\">",
    "{{ 7 * 7 }} {% raw %} 'single' \"double\" `back` & &amp; <!-- <![CDATA[",
    "right\u202eleft \u2066isolate\u2069 zero\u200bwidth \ufeff end",
    "null\x00 bell\x07 escape\x1b[31m del\x7f next\x85 line\u2028para\u2029graph\ttab\r\nend",
    "https://example.invalid/a.png url(https://example.invalid/b.png) <link href=//c.invalid>",
)
STRENGTHS = {
    **{f"m{i}": 0.5 + 0.08 * i for i in range(6)},
    **{f"p{i}": 0.02 * i for i in range(6)},
    **{f"c{i}": 0.0 for i in range(4)},
}
SCALES = (1.0, 7.5)
EVEN = frozenset({"m0", "m2", "m4"})
"""Prompts that a second run has forgotten."""


def picture(seed: int, side: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def strip(branches: int, calls: int, side: int = 8) -> bytes:
    """Draw a filmstrip whose frame of branch b and call c has the colour (64·b, 16·c, 0)."""
    grid = np.zeros((branches * side, calls * side, 3), np.uint8)
    for b in range(branches):
        for c in range(calls):
            grid[b * side : (b + 1) * side, c * side : (c + 1) * side] = (64 * b, 16 * c, 0)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def manifest(**changed: Any) -> Manifest:
    known: dict[str, Any] = {
        "given": {"model": "embedded", "seeds": SEEDS, "guidance": [1.0, 7.5]},
        "options": {"model": "embedded", "seeds": SEEDS, "similarity": ["l2"], "scheduler": "ddim"},
        "packages": {"torch": "2"},
        "model": {"name": "embedded", "digest": "0" * 64},
        "prompts": "1" * 64,
        "device": "cpu",
        "dtype": "float32",
        "final_level": (0.9996, 0.0292),
        "d": 512,
        "latent_shape": (2, 16, 16),
        "started": "2025-01-01T00:00:00+00:00",
    }
    return Manifest(**(known | changed))


def texts() -> dict[str, str]:
    return {
        name: HOSTILE[i] if i < len(HOSTILE) else f"a picture of {name}"
        for i, name in enumerate(STRENGTHS)
    }


def rows(forgotten: frozenset[str] = frozenset()) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a whole run, by table; forgotten prompts no longer copy their image."""
    strengths = {name: 0.0 if name in forgotten else lam for name, lam in STRENGTHS.items()}
    source = record(strengths, {}, seeds=SEEDS)
    names = list(STRENGTHS)
    made: dict[str, list[dict[str, Any]]] = {
        "gram": _gram(source),
        "convergence": _convergence(source),
        "prompts": [
            {
                "prompt_id": name,
                "prompt": texts()[name],
                "group": "control" if name[0] == "c" else "planted",
                "kind": "ordinary",
                "level": {"m": 2, "p": 1, "c": 0}[name[0]],
                "repetitions": {"m": 128, "p": 2, "c": 0}[name[0]],
                "tokens": 7,
                "truncated": False,
                "references": [f"ref-{name}"],
            }
            for name in names
        ],
        "references": [
            {
                "reference_id": f"ref-{name}",
                "prompt_ids": [name],
                "digest": "2" * 64,
                "width": 32,
                "height": 32,
                "image": picture(i),
                "masked": False,
            }
            for i, name in enumerate(names)
        ],
    }
    made["recipes"] = [
        {
            "recipe": recipe_of(g), "guidance": g, "scheduler": "ddim", "steps": 50, "eta": 0.0,
            "seed": 0, "noise": "independent", "intervention": None,
        }
        for g in SCALES
    ]  # fmt: skip
    made["scores"] = _scores(names, forgotten)
    made |= {"samples": [], "similarities": [], "severity": []}
    for g in SCALES:
        for i, name in enumerate(names):
            copied = name[0] == "m" and g > 1 and name not in forgotten
            value = 0.9 + 0.01 * i if copied else 0.6 + 0.01 * i
            for seed in range(SEEDS):
                broken = name == "p1" and seed == 3
                key = {"prompt_id": name, "seed": seed, "recipe": recipe_of(g)}
                made["samples"].append(
                    key
                    | {
                        "status": "nonfinite" if broken else "ok",
                        "reason": "call 3 is not finite" if broken else None,
                        "network_calls": 100,
                        "seconds": 0.1,
                        "image": None if broken else picture(i if copied else 1000 + 10 * i + seed),
                    }
                )
                if not broken:
                    made["similarities"].append(
                        key
                        | {
                            "measure": "l2",
                            "reference_id": f"ref-{name}",
                            "relation": "own",
                            "value": value + 0.002 * seed,
                        }
                    )
            made["severity"].append(
                {
                    "prompt_id": name,
                    "recipe": recipe_of(g),
                    "measure": "l2",
                    "mean": value + 0.003,
                    "max": value + 0.006,
                    "share": float(copied),
                    "n": SEEDS,
                    "threshold": 0.85,
                    "grade": "matching verbatim" if copied else "none",
                    "nearest_reference_id": f"ref-{name}",
                }
            )
    made["filmstrips"] = [
        {
            "prompt_id": name,
            "seed": seed,
            "recipe": recipe_of(g),
            "calls": list(FILM),
            "branches": ["unconditional", "conditional"] + ["guided"] * (g > 1),
            "side": 8,
            "image": strip(2 + (g > 1), len(FILM)),
        }
        for name in names
        for seed in range(SEEDS)
        for g in SCALES
        if not (name == "p1" and seed == 3)
    ]
    made["null"] = [
        {
            "measure": "l2", "n": 12000, "q50": 0.62, "q95": 0.71, "q99": 0.75, "q999": 0.79,
            "max": 0.83, "threshold": 0.85, "rate": 0.001,
        }
    ]  # fmt: skip
    return made


def _scores(names: list[str], forgotten: frozenset[str]) -> list[dict[str, Any]]:
    """Score as a study's detectors would: one tells all apart, one some, one lacks a number."""
    made: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        copied = name[0] == "m" and name not in forgotten
        told: dict[str, float | None] = {
            "consensus_whitened": 5.0 * copied + 0.01 * place,
            "gap_norm": 2.0 * copied * (name != "m0") + 0.1 * (place % 7),
            "length": None if name == "p3" else float(place % 3),
            HOSTILE[0]: -0.001 * place,
        }
        for g in SCALES:
            made += [
                {
                    "prompt_id": name,
                    "recipe": recipe_of(g),
                    "detector": detector,
                    "kind": "prompt",
                    "score": None if score is None else score + g,
                    "reason": HOSTILE[1] if score is None else None,
                    "seeds": SEEDS,
                    "network_calls": 100,
                    "seconds": 0.01,
                }
                for detector, score in told.items()
            ]
    return made


def write(folder: Path, tables: dict[str, list[dict[str, Any]]], **changed: Any) -> Run:
    """Write a run folder that holds the given rows."""
    known = manifest(**changed)
    with Writer.open(folder, known) as writer:
        writer.append("all", {name: TABLES[name].of_rows(part) for name, part in tables.items()})
        return writer.close(known, "complete")


def _gram(source: Record) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for (law, g), samples in source.samples.items():
        level: Level = samples.gram.level
        products = samples.gram.products.numpy()
        for i, (prompt, seed) in enumerate(zip(samples.prompts, samples.seeds, strict=True)):
            for j, call in enumerate(samples.calls):
                row: dict[str, Any] = {
                    "prompt_id": str(prompt),
                    "seed": int(seed),
                    "recipe": None if g is None else recipe_of(g),
                    "law": law,
                    "call": int(call),
                    "alpha": float(level.alpha[j]),
                    "sigma": float(level.sigma[j]),
                }
                for a, b in PAIRS:
                    value = float(products[i, j, NAMES.index(a), NAMES.index(b)])
                    row[f"{a}·{b}"] = value if np.isfinite(value) else None
                made.append(row)
    return made


def _convergence(source: Record) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for g, spread in source.convergence.items():
        parts = asdict(spread)
        for i, prompt in enumerate(spread.prompts):
            for j, call in enumerate(spread.calls):
                row: dict[str, Any] = {
                    "prompt_id": prompt,
                    "recipe": recipe_of(g),
                    "call": int(call),
                }
                row |= {"sigma": parts["sigma"][j], "alpha": np.sqrt(1 - parts["sigma"][j] ** 2)}
                row |= {name: float(table[i, j]) for name, table in spread.values.items()}
                made.append(row | {"seeds": SEEDS})
    return made
