"""A detector scores prompts by how memorized they are, from declared evidence; one file a method.

Contents: `all_detectors` and `get_detector` find them by scanning this package and what other
distributions add to it; `base` says what a detector is.
"""

from collections.abc import Mapping
from functools import cache

from mnemoscope.detectors.base import Detector, PerPrompt
from mnemoscope.registry import modules, named, pick

__all__ = ["Detector", "PerPrompt", "all_detectors", "get_detector"]


@cache
def _known() -> Mapping[str, Detector]:
    tables = (getattr(module, "DETECTORS", ()) for module in modules(__name__))
    return named(((d.name, d) for table in tables for d in table), "detector")


def all_detectors() -> tuple[Detector, ...]:
    """Return every detector, by name.

    Raises:
        InputError: If two have the same name.

    >>> "gap_norm" in [detector.name for detector in all_detectors()]
    True
    """
    return tuple(_known().values())


def get_detector(name: str) -> Detector:
    """Return a detector by its name.

    Raises:
        InputError: If there is none of that name.
    """
    return pick(name, _known(), "detector")
