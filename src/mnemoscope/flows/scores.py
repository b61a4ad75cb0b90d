"""Scores of detectors as rows of table `scores`, from evidence that was gathered.

Contents: `choose`, `free`, `union`, `score_rows`, `unscored`, `methods_of`.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from mnemoscope.data.prompts import Prompt
from mnemoscope.detectors import Detector, all_detectors, get_detector
from mnemoscope.errors import InputError, MnemoscopeError, did_you_mean
from mnemoscope.evidence import Bank, Evidence, MissingEvidence, Piece, Price, price_in
from mnemoscope.evidence.piece import NO_IMAGE
from mnemoscope.evidence.sitting import told as reason_of
from mnemoscope.models.base import Model
from mnemoscope.runs.tables import TABLES

NONE = "none"
"""Stands for no detector."""

MANY = ("all", "first-step", "free")
"""What stands for many."""


def choose(names: Sequence[str | Detector] | str | Detector) -> tuple[Detector, ...]:
    """Return detectors by name.

    "all" stands for all that are not dear, "first-step" for the quick ones, "free" for those that
    take nothing a study does not gather anyway, "none" for none.

    Raises:
        InputError: If a name is unknown, or nothing is named.
    """
    found: dict[str, Detector] = {}
    asked = (names,) if isinstance(names, str | Detector) else tuple(names)
    for name in asked:
        if isinstance(name, Detector):
            found[name.name] = name
        elif name == "all":
            found |= {d.name: d for d in all_detectors() if not d.dear}
        elif name == "first-step":
            found |= {d.name: d for d in all_detectors() if d.first_step}
        elif name == "free":
            found |= {d.name: d for d in all_detectors() if free(d)}
        elif name != NONE:
            found[name] = _named(name)
    if not found and NONE not in asked:
        raise InputError("no detector given; expected names, 'first-step', 'free' or 'all'")
    return tuple(found.values())


def _named(name: str) -> Detector:
    known = [detector.name for detector in all_detectors()]
    if name not in known:
        raise InputError(
            did_you_mean(name, (*MANY, NONE, *known), "detector")
            + " `mnemoscope list detectors` says what each takes."
        )
    return get_detector(name)


def free(detector: Detector) -> bool:
    """Return whether a study gathers all that a detector takes: the path and its pictures."""
    return all(
        piece.extra(1) == Price() and not (piece.attention or piece.pair or piece.own_network)
        for piece in detector.needs.pieces
    )


def union(detectors: Iterable[Detector]) -> tuple[Piece[Any], ...]:
    """Return the pieces that detectors need together, each once."""
    return tuple(dict.fromkeys(piece for d in detectors for piece in d.needs.pieces))


def methods_of(detectors: Iterable[Detector], files: Iterable[str] = ()) -> str:
    """Return the SHA-256 over all that makes a score what it is; empty where there is none.

    Args:
        detectors: The detectors.
        files: Digests of files that similarities are computed by.
    """
    told: list[Any] = [(repr(d), d.formula, str(d.needs)) for d in detectors]
    told += files
    return hashlib.sha256(repr(told).encode()).hexdigest() if told else ""


def score_rows(
    detectors: Sequence[Detector],
    evidence: Evidence,
    prompts: Sequence[Prompt],
    bank: Bank,
    spent: Mapping[Piece[Any], float],
) -> pa.Table:
    """Let detectors score what was gathered about some prompts.

    Args:
        detectors: The detectors.
        evidence: What was gathered; each sees what it declared, and nothing else.
        prompts: The prompts, in order.
        bank: What they share.
        spent: Seconds that gathering took, by piece.

    Returns:
        Rows of table `scores`, prompt by prompt.
    """
    count, each = len(prompts), len(detectors)
    columns: dict[str, list[Any]] = {
        name: [None] * (count * each) for name in ("score", "reason", "network_calls", "seconds")
    }
    for at, detector in enumerate(detectors):
        begun = time.perf_counter()
        told = _score(detector, evidence, prompts, bank.model)
        seconds = time.perf_counter() - begun
        seconds += sum(spent.get(piece, 0.0) for piece in detector.needs.pieces)
        alone = price_in(bank, detector.needs.pieces).calls
        for row, (score, reason) in enumerate(told):
            place = row * each + at
            columns["score"][place] = None if reason else score
            columns["reason"][place] = reason
            columns["network_calls"][place] = 0 if reason == NO_IMAGE else alone
            columns["seconds"][place] = seconds / count
    names = [detector.name for detector in detectors] * count
    kinds = [detector.kind for detector in detectors] * count
    return TABLES["scores"].of(
        {
            "prompt_id": [prompt.prompt_id for prompt in prompts for _ in range(each)],
            "recipe": [bank.recipe.key] * (count * each),
            "detector": names,
            "kind": kinds,
            "seeds": [bank.seeds] * (count * each),
            **columns,
        }
    )


def unscored(
    detectors: Sequence[Detector], prompts: Sequence[Prompt], bank: Bank, reason: str
) -> pa.Table:
    """Return rows of table `scores` for prompts of which nothing could be gathered."""
    each = len(detectors)
    rows = len(prompts) * each
    return TABLES["scores"].of(
        {
            "prompt_id": [prompt.prompt_id for prompt in prompts for _ in range(each)],
            "recipe": [bank.recipe.key] * rows,
            "detector": [detector.name for detector in detectors] * len(prompts),
            "kind": [detector.kind for detector in detectors] * len(prompts),
            "reason": [reason] * rows,
            "seeds": [bank.seeds] * rows,
            "network_calls": [0] * rows,
            "seconds": [0.0] * rows,
        }
    )


def _score(
    detector: Detector, evidence: Evidence, prompts: Sequence[Prompt], model: Model
) -> list[tuple[float, str | None]]:
    """Return score and reason of each prompt."""
    needs, nothing = detector.needs, float("nan")
    if needs.uncond and not model.has_uncond:
        return [(nothing, model.no_uncond)] * len(prompts)
    if evidence.seeds < needs.seeds:
        reason = f"{evidence.seeds} seeds given; it takes at least {needs.seeds}"
        return [(nothing, reason)] * len(prompts)
    try:
        scores: Tensor = detector.score(evidence.only(needs))
    except MissingEvidence as missing:
        return [(nothing, str(missing))] * len(prompts)
    except MnemoscopeError:
        raise
    except Exception as error:
        # With others beside it the prompt at fault is sought; alone it has no score of this one.
        if len(prompts) > 1:
            raise
        return [(nothing, reason_of(error))]
    told: list[tuple[float, str | None]] = []
    for prompt, score in zip(prompts, scores.double().tolist(), strict=True):
        if np.isfinite(score):
            told.append((score, None))
        elif detector.kind == "pair" and not prompt.images:
            told.append((nothing, NO_IMAGE))
        else:
            told.append((nothing, "the score is not finite"))
    return told
