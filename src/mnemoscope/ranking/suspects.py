r"""A suspect is a caption that stands out before the model is asked: it repeats, or lies alone.

Formulas, over the items of a set, with d the distance of two prints (`severity.nearest`), and p the
light of a print's blocks less its mean, of norm 1::

    captions    items with exactly this caption
    wordings    items whose caption has the same words, whatever their case and marks
    pictures    items that show exactly its picture
    alike       items whose picture is all but the same: d <= ALIKE
    recoloured  items whose picture is, but for its colours or mirrored: ||p - p'|| <= RECOLOURED
    edited      items whose picture is, but cropped or retouched, where an embedding was asked
                (`severity.described`)
    repeats     the largest of these; of a caption with several pictures, that of any
    alone       d to the K-th nearest of SAMPLE pictures at random, those alike left out

Repeats are what models memorize (Carlini et al. 2023); what has few neighbours is memorized sooner
than what has many (Feldman 2020). No network is called. A projection shrinks distances, so all
images within reach of one are within it along the longest axes of the set as well: a tree of these
finds the few that are compared in full; where it finds many, neighbours are compared together.

Contents: `Suspects` and `suspects`; `alike`, `recoloured`, `alone`, `words_of`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8, UInt64
from scipy.spatial import KDTree

from mnemoscope.severity.nearest import ALIKE, BYTES, NOTHING, SIDE, Whole

RECOLOURED = 0.2
"""Distance of what two prints show below which two pictures differ by their colours alone: it
falls below for a correlation of 0.98."""
FLAT = 0.02
"""Standard deviation of a print's light, from 0 to 1, below which it shows nothing."""
LIGHT = 0.299, 0.587, 0.114
"""Share of red, green and blue in what is seen as light (Rec. 601)."""
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
CROWD = 256
"""Most neighbours along the axes that are compared one picture at a time."""
ROUNDING = 1e-3
"""By which a projection in float32 may be off, as a share of the reach."""

TWINNED = frozenset({"alike", "recoloured", "edited"})
"""Reasons that name another picture, the twin."""

Prints = UInt8[np.ndarray, "image 192"]
Places = Int[np.ndarray, " image"]
Neighbours = tuple[Places, Places]
View = Callable[[Prints], Float[np.ndarray, "image axis"]]
"""What of prints is compared."""


def words_of(text: str) -> int:
    """Return a name for the words of a caption, whatever their case and marks, of 64 bits."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return int.from_bytes(hashlib.sha256(words.encode("utf-8", "replace")).digest()[:8], "big")


def alike(prints: Prints) -> Neighbours:
    """Find the images that are all but the same.

    Returns:
        How many others are all but the same as each, and the nearest of them; -1 where none is.
    """
    # Whole numbers below 2^24, of which float32 holds every one: the distances are exact.
    return _neighbours(prints, [_centred], 255 * ALIKE * BYTES**0.5)


def recoloured(prints: Prints) -> Neighbours:
    """Find the images that are all but the same when colours are put aside, or mirrored.

    Returns:
        As of `alike`; what is alike counts as well. What shows nothing has no others.
    """
    counts, nearest = np.zeros(len(prints), dtype=np.int64), np.full(len(prints), -1)
    light = np.concatenate(
        [_light(prints[at : at + FITTED]).std(axis=1) for at in range(0, len(prints) + 1, FITTED)]
    )
    some = (light >= 255 * FLAT).nonzero()[0]
    counts[some], found = _neighbours(prints[some], [_shown, _mirrored], RECOLOURED)
    nearest[some] = np.where(found >= 0, some[found], -1)
    return counts, nearest


def _neighbours(prints: Prints, views: Sequence[View], reach: float) -> Neighbours:
    """Find the images within reach of each other: any view of the one, and the first of the other.

    Args:
        prints: The prints.
        views: Of which distances are taken.
        reach: Largest distance.
    """
    counts, nearest = np.zeros(len(prints), dtype=np.int64), np.full(len(prints), -1)
    if len(prints) < 2:
        return counts, nearest
    axes = _axes(views[0](prints[:: -(-len(prints) // FITTED)]))
    looks = [_along(prints, view, axes) for view in views]
    tree: Any = KDTree(looks[0])
    # What the projection rounds must not hide one that lies at the very edge.
    near = reach * (1 + ROUNDING)
    many = np.sum([tree.query_ball_point(look, near, return_length=True) for look in looks], axis=0)

    def compare(rows: Int[np.ndarray, " row"], theirs: Int[np.ndarray, " other"]) -> None:
        seen = [view(prints[rows]) for view in views]
        best = np.full(len(rows), np.inf, dtype=np.float32)
        for start in range(0, len(theirs), BLOCK):
            others = theirs[start : start + BLOCK]
            base = views[0](prints[others])
            square = np.min([_squares(mine, base) for mine in seen], axis=0)
            square[(rows[:, None] == others) | (square > reach**2)] = np.inf
            counts[rows] += np.isfinite(square).sum(axis=1)
            at, least = square.argmin(axis=1), square.min(axis=1)
            nearest[rows] = np.where(least < best, others[at], nearest[rows])
            best = np.minimum(best, least)

    few = ((many > 1) & (many <= CROWD)).nonzero()[0]
    for rows in np.array_split(few, max(1, -(-int(many[few].sum()) // PAIRS))):
        found: Any = [tree.query_ball_point(look[rows], near) for look in looks]
        for at, *theirs in zip(rows, *found, strict=True):
            compare(at[None], np.unique(np.concatenate(theirs)).astype(np.intp))
    # Neighbours of the tree are neighbours of one another, and have theirs in common.
    crowd = tree.indices[many[tree.indices] > CROWD]
    for rows in np.array_split(crowd, -(-len(crowd) // BLOCK) or 1):
        theirs = set[int]()
        for look in looks if len(rows) else ():
            middle = look[rows].mean(axis=0)
            far = np.linalg.norm(look[rows] - middle, axis=1).max()
            theirs.update(tree.query_ball_point(middle, near + far * (1 + ROUNDING)))
        compare(rows, np.array(sorted(theirs), dtype=np.intp))
    return counts, nearest


def alone(prints: Prints, seed: int) -> Float[np.ndarray, " image"]:
    """Return how far each image lies from others, RGB from 0 to 1; NaN where there are too few."""
    far = np.full(len(prints), np.nan)
    rng = np.random.default_rng(seed)
    some = rng.choice(len(prints), size=min(SAMPLE, len(prints)), replace=False)
    theirs, reach = _centred(prints[some]), 255 * ALIKE * BYTES**0.5
    for start in range(0, len(prints), BLOCK):
        square = torch.from_numpy(_squares(_centred(prints[start : start + BLOCK]), theirs))
        square = torch.where(square > reach**2, square, torch.inf)
        if square.shape[1] >= K:
            value = square.topk(K, dim=1, largest=False).values[:, -1]
            value = torch.where(torch.isfinite(value), value, torch.nan)
            far[start : start + BLOCK] = ((value / BYTES).sqrt() / 255).numpy()
    return far


def _centred(prints: Prints) -> Float[np.ndarray, "image 192"]:
    return prints.astype(np.float32) - 128


def _light(prints: Prints) -> Float[np.ndarray, "image 64"]:
    return np.einsum("icb,c->ib", prints.reshape(-1, 3, SIDE**2), np.array(LIGHT, np.float32))


def _shown(prints: Prints) -> Float[np.ndarray, "image 64"]:
    light = _light(prints)
    light -= light.mean(axis=1, keepdims=True)
    return light / np.linalg.norm(light, axis=1, keepdims=True)


def _mirrored(prints: Prints) -> Float[np.ndarray, "image 64"]:
    return _shown(prints.reshape(-1, 3, SIDE, SIDE)[..., ::-1].reshape(prints.shape))


def _squares(
    mine: Float[np.ndarray, "image axis"], theirs: Float[np.ndarray, "other axis"]
) -> Float[np.ndarray, "image other"]:
    both = np.square(mine).sum(1)[:, None] + np.square(theirs).sum(1)
    return (both - 2 * mine @ theirs.T).clip(min=0)


def _axes(some: Float[np.ndarray, "image axis"]) -> Float[np.ndarray, "axis longest"]:
    """Return the longest axes of a set, from some of it."""
    return np.linalg.eigh(np.cov(some.T.astype(np.float64)))[1][:, -AXES:].astype(np.float32)


def _along(
    prints: Prints, view: View, axes: Float[np.ndarray, "axis longest"]
) -> Float[np.ndarray, "image longest"]:
    """Return where prints lie along axes."""
    starts = range(0, len(prints), FITTED)
    return np.concatenate([view(prints[start : start + FITTED]) @ axes for start in starts])


@dataclass(frozen=True)
class Suspects:
    """What is known of each caption before the model is asked.

    Attributes:
        repeats: How often it, or a picture of it, is in the set.
        twin: The first item that shows the nearest picture that is all but the same, or is so but
            for its colours, or an edited copy; -1 where there is none.
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
    def repeated(self) -> Int[np.ndarray, " suspect"]:
        """Return those that repeat, the most often first.

        What repeats by descriptors alone comes after what does as often by prints or words.
        """
        order = np.lexsort((self.reasons["edited"], -self.repeats))
        return order[self.repeats[order] > 1]

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
    device: torch.device | str = "cpu",
) -> Suspects:
    """Find the suspects of a data set.

    Args:
        whole: The prints of its pictures, and their descriptors where an embedding was asked.
        keys: Key of each item's caption.
        words: Name of each item's words (`words_of`).
        captions: Keys of the distinct captions.
        seed: Seed of the sample that says how near neighbours are.
        device: Where descriptors are compared.
    """
    others, nearest = alike(whole.prints)
    tinted, nearly = recoloured(whole.prints)
    nearest = np.where(nearest >= 0, nearest, nearly)
    cut = np.zeros(len(whole), dtype=np.int64)
    if whole.described is not None:
        cut, copied = whole.described.copies(device)
        nearest = np.where(nearest >= 0, nearest, copied)
    far = alone(whole.prints, seed)
    pictured = whole.names != NOTHING
    # Which distinct picture an item shows; that of one without is never looked at.
    distinct = whole.names[whole.places]
    ranked = np.argsort(distinct, kind="stable")
    at = ranked[np.searchsorted(distinct[ranked], whole.names) % max(len(ranked), 1)]
    exact = _times(whole.names)
    counts = {
        "captions": _times(keys),
        "wordings": _times(words),
        "pictures": np.where(pictured, exact, 1),
        "alike": np.where(pictured, exact + others[at], 1),
        "recoloured": np.where(pictured, exact + np.maximum(others, tinted)[at], 1),
        "edited": np.where(pictured, exact + np.max([others, tinted, cut], axis=0)[at], 1),
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
    reasons["recoloured"] = most["recoloured"] > most["alike"]
    reasons["edited"] = most["edited"] > most["recoloured"]
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
