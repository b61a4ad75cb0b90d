r"""A suspect is a caption that stands out before the model is asked: it repeats, or lies alone.

Formulas, over the items of a set, with d the distance of two prints (`severity.nearest`)::

    captions   items with exactly this caption
    wordings   items whose caption has the same words, whatever their case and marks
    pictures   items that show exactly its picture
    alike      items whose picture is all but the same: d <= ALIKE
    repeats    the largest of these; of a caption with several pictures, that of any
    alone      d to the K-th nearest of SAMPLE pictures at random, those alike left out

Repeats are what models memorize (Carlini et al. 2023); what has few neighbours is memorized sooner
than what has many (Feldman 2020). No network is called. A projection shrinks distances, so all
images within ALIKE of one are within it along the longest axes of the set as well: a tree of these
finds the few that are compared in full.

Contents: `Suspects` and `suspects`; `alike`, `alone`, `words_of`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8, UInt64
from scipy.spatial import KDTree
from torch import Tensor

from mnemoscope.severity.nearest import ALIKE, BYTES, NOTHING, Whole

REASONS = ("captions", "wordings", "pictures", "alike", "alone")
"""What a caption may be a suspect for."""
BLOCK = 1024
"""Pictures whose neighbours are looked for together."""
SAMPLE = 4096
"""Pictures at random that say how near neighbours are."""
K = 5
"""Which of the nearest of them."""
ALONE = 0.01
"""Share of the captions that lie most alone, and so are suspects."""
FITTED = 16384
"""Most prints that the longest axes are found from."""
AXES = 8
"""Of them, how many; a tree of more is no faster."""
PAIRS = 2**20
"""Pairs of pictures that are held at a time."""
ROUNDING = 1e-4
"""By which a projection in float32 may be off, in units of a print's whole distance."""

Prints = UInt8[np.ndarray, "image 192"]


def words_of(text: str) -> int:
    """Return a name for the words of a caption, whatever their case and marks, of 64 bits."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return int.from_bytes(hashlib.sha256(words.encode("utf-8", "replace")).digest()[:8], "big")


def alike(prints: Prints) -> tuple[Int[np.ndarray, " image"], Int[np.ndarray, " image"]]:
    """Find the images that are all but the same.

    Returns:
        How many others are all but the same as each, and the nearest of them; -1 where none is.
    """
    counts, nearest = np.zeros(len(prints), dtype=np.int64), np.full(len(prints), -1)
    if len(prints) < 2:
        return counts, nearest
    reach = ALIKE * BYTES**0.5
    along = _along(prints)
    tree = KDTree(along)
    # What the projection rounds must not hide one that lies at the very edge.
    near = reach + ROUNDING
    pairs = np.cumsum(tree.query_ball_point(along, near, return_length=True))
    starts = np.searchsorted(pairs, np.arange(0, pairs[-1], PAIRS))
    for rows in np.split(np.arange(len(prints)), starts[1:]):
        if not len(rows):
            continue
        some: Any = tree.query_ball_point(along[rows], near)
        for at, others in zip(rows.tolist(), some, strict=True):
            theirs = np.asarray(others, dtype=np.intp)
            theirs = theirs[theirs != at]
            if not len(theirs):
                continue
            apart = prints[theirs].astype(np.float32) - prints[at]
            square = np.square(apart / 255).sum(axis=1)
            counts[at] = (square <= reach**2).sum()
            nearest[at] = theirs[square.argmin()] if counts[at] else -1
    return counts, nearest


def alone(prints: Prints, seed: int) -> Float[np.ndarray, " image"]:
    """Return how far each image lies from others, RGB from 0 to 1; NaN where there are too few."""
    far = np.full(len(prints), np.nan)
    rng = np.random.default_rng(seed)
    some = rng.choice(len(prints), size=min(SAMPLE, len(prints)), replace=False)
    theirs, reach = _values(prints[some]), ALIKE * BYTES**0.5
    for start in range(0, len(prints), BLOCK):
        square = _squares(_values(prints[start : start + BLOCK]), theirs)
        square = torch.where(square > reach**2, square, torch.inf)
        if square.shape[1] >= K:
            value = square.topk(K, dim=1, largest=False).values[:, -1]
            value = torch.where(torch.isfinite(value), value, torch.nan)
            far[start : start + BLOCK] = (value / BYTES).sqrt().numpy()
    return far


def _values(prints: Prints) -> Float[Tensor, "image 192"]:
    return torch.from_numpy(prints).float() / 255 - 0.5


def _squares(
    mine: Float[Tensor, "image 192"], theirs: Float[Tensor, "other 192"]
) -> Float[Tensor, "image other"]:
    both = mine.square().sum(1, keepdim=True) + theirs.square().sum(1)
    return (both - 2 * mine @ theirs.mT).clamp(min=0)


def _along(prints: Prints) -> Float[np.ndarray, "image axis"]:
    """Return where prints lie along the longest axes of the set."""
    step = -(-len(prints) // FITTED)
    some = _values(prints[::step]).double()
    axes = torch.linalg.eigh(torch.cov(some.mT)).eigenvectors[:, -AXES:].float()
    parts = [
        _values(prints[start : start + FITTED]) @ axes for start in range(0, len(prints), FITTED)
    ]
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class Suspects:
    """What is known of each caption before the model is asked.

    Attributes:
        repeats: How often it, or a picture of it, is in the set.
        twin: The first item that shows the nearest picture that is all but the same; -1 where there
            is none.
        alone: How far its picture lies from others; NaN where that cannot be told.
        reasons: Whether it is a suspect, by reason.
    """

    repeats: Int[np.ndarray, " caption"]
    twin: Int[np.ndarray, " caption"]
    alone: Float[np.ndarray, " caption"]
    reasons: Mapping[str, Bool[np.ndarray, " caption"]]

    @property
    def some(self) -> Int[np.ndarray, " suspect"]:
        """Return the suspects: the most repeated first, then those that lie most alone."""
        any_of = np.any([*self.reasons.values()], axis=0)
        order = np.lexsort((np.where(np.isnan(self.alone), 0, -self.alone), -self.repeats))
        return order[any_of[order]]

    @property
    def lone(self) -> Int[np.ndarray, " suspect"]:
        """Return those that lie alone, the most alone first."""
        found = self.reasons["alone"].nonzero()[0]
        return found[np.argsort(-self.alone[found], kind="stable")]


def suspects(
    whole: Whole,
    keys: UInt64[np.ndarray, " item"],
    words: UInt64[np.ndarray, " item"],
    captions: UInt64[np.ndarray, " caption"],
    seed: int,
) -> Suspects:
    """Find the suspects of a data set.

    Args:
        whole: The prints of its pictures.
        keys: Key of each item's caption.
        words: Name of each item's words (`words_of`).
        captions: Keys of the distinct captions.
        seed: Seed of the sample that says how near neighbours are.
    """
    others, nearest = alike(whole.prints)
    far = alone(whole.prints, seed)
    pictured = whole.names != NOTHING
    # Which distinct picture an item shows; that of one without is never looked at.
    distinct = whole.names[whole.places]
    ranked = np.argsort(distinct, kind="stable")
    at = ranked[np.searchsorted(distinct[ranked], whole.names) % max(len(ranked), 1)]
    exact = _times(whole.names)
    close = np.where(pictured, exact + others[at], 1)
    counts = {
        "captions": _times(keys),
        "wordings": _times(words),
        "pictures": np.where(pictured, exact, 1),
        "alike": close,
    }
    order, rank = np.argsort(keys, kind="stable"), np.argsort(captions)
    starts = np.searchsorted(keys[order], captions)
    most: dict[str, Int[np.ndarray, " caption"]] = {}
    for name, values in counts.items():
        most[name] = np.empty(len(captions), dtype=np.int64)
        # What has no caption comes before the first.
        most[name][rank] = np.maximum.reduceat(values[order], starts[rank])
    firsts = order[starts]
    twin = np.where(pictured[firsts], nearest[at[firsts]], -1)
    lone = np.where(pictured[firsts], far[at[firsts]], np.nan)
    known = int(np.isfinite(lone).sum())
    chosen = np.zeros(len(captions), dtype=bool)
    furthest = np.argsort(np.where(np.isnan(lone), np.inf, -lone), kind="stable")
    chosen[furthest[: round(ALONE * known)]] = True
    reasons = {name: v > 1 for name, v in most.items()}
    # What is equal is alike as well, and has the same words; the narrower reason is told.
    reasons["wordings"] = most["wordings"] > most["captions"]
    reasons["alike"] = most["alike"] > most["pictures"]
    return Suspects(
        np.max([*most.values()], axis=0),
        np.where(twin >= 0, whole.places[twin], -1),
        lone,
        reasons | {"alone": chosen},
    )


def _times(names: UInt64[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """Return how often the name of each item comes among all."""
    _, at, counts = np.unique(names, return_inverse=True, return_counts=True)
    return counts[at]
