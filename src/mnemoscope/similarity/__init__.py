"""A similarity says how close a generated image is to a training image; larger is closer.

Contents: `get_similarity` finds one by its name; `base` says what one is. Every other module holds
a family of them in its `SIMILARITIES`, and is found by being there, as is a module that another
distribution names under the entry point group `mnemoscope.similarity`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from mnemoscope.registry import modules, named, pick
from mnemoscope.similarity.base import Describing, Index, Reference, Similarity

__all__ = ["Describing", "Index", "Reference", "Similarity", "get_similarity", "names"]

Factory = Callable[[Path | None], Similarity]


@cache
def _factories() -> Mapping[str, Factory]:
    tables = [getattr(module, "SIMILARITIES", {}) for module in modules(__name__)]
    return named((item for table in tables for item in table.items()), "similarity")


def names() -> tuple[str, ...]:
    """Return the name of every similarity, preset included.

    Raises:
        InputError: If two have the same name, or an extension cannot be imported.

    >>> "tiled_l2" in names()
    True
    """
    return tuple(_factories())


def get_similarity(name: str, *, weights: str | Path | None = None) -> Similarity:
    """Make a similarity by its name.

    Args:
        name: Such as "l2" or "sscd:official_320".
        weights: File of the network, for a similarity that has one.

    Returns:
        The similarity, with its network loaded.

    Raises:
        InputError: If there is none of that name.
        ModelError: If its network cannot be loaded.
    """
    return pick(name, _factories(), "similarity")(None if weights is None else Path(weights))
