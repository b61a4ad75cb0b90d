"""A detector scores prompts by how memorized they are, from declared evidence; one file a method.

Contents: `all_detectors` and `get_detector` find them by scanning this package; `base` says what
a detector is and what evidence there is.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from mnemoscope.detectors.base import Detector, Evidence, Needs
from mnemoscope.errors import InputError, did_you_mean

__all__ = ["Detector", "Evidence", "Needs", "all_detectors", "get_detector"]


@cache
def all_detectors() -> tuple[Detector, ...]:
    """Return every detector of this package, by name.

    Raises:
        ImportError: If two have the same name.

    >>> "gap_norm" in [detector.name for detector in all_detectors()]
    True
    """
    found: dict[str, Detector] = {}
    for module in iter_modules(__path__):
        table = getattr(import_module(f"{__name__}.{module.name}"), "DETECTORS", ())
        for detector in table:
            if detector.name in found:
                raise ImportError(f"detector {detector.name!r} is defined twice")
            found[detector.name] = detector
    return tuple(found[name] for name in sorted(found))


def get_detector(name: str) -> Detector:
    """Return a detector by its name.

    Raises:
        InputError: If there is none of that name.
    """
    known = {detector.name: detector for detector in all_detectors()}
    if name not in known:
        raise InputError(did_you_mean(name, known, "detector"))
    return known[name]
