"""A similarity says how close a generated image is to a training image; larger is closer.

Contents: `get_similarity` finds one by its name; `base` says what one is; every other module holds
a family of them in its `SIMILARITIES`, and is found by being there.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from mnemoscope.errors import InputError, did_you_mean
from mnemoscope.similarity.base import Index, Reference, Similarity

__all__ = ["Index", "Reference", "Similarity", "get_similarity", "names"]

Factory = Callable[[Path | None], Similarity]


@cache
def _factories() -> dict[str, Factory]:
    found: dict[str, Factory] = {}
    for module in iter_modules(__path__):
        table = getattr(import_module(f"{__name__}.{module.name}"), "SIMILARITIES", {})
        if twice := found.keys() & table.keys():
            raise ImportError(f"similarity {sorted(twice)[0]!r} is defined twice")
        found |= table
    return found


def names() -> tuple[str, ...]:
    """Return the name of every similarity, preset included.

    >>> "tiled_l2" in names()
    True
    """
    return tuple(sorted(_factories()))


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
    factories = _factories()
    if name not in factories:
        raise InputError(did_you_mean(name, factories, "similarity"))
    return factories[name](None if weights is None else Path(weights))
