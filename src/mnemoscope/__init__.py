"""mnemoscope shows what a text-to-image diffusion model has memorized, and why.

Public names: `Study` and `run` do a study, `open_run` reads what it left, `report` makes a page of
it, `detect` scores prompts, `load_model` loads a model. They are imported when first used, so
importing the package is cheap.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnemoscope.flows.detect import detect
    from mnemoscope.models import load_model
    from mnemoscope.reporting import report
    from mnemoscope.runs.folder import open_run
    from mnemoscope.flows.study import Study, run

__all__ = ["Study", "detect", "load_model", "open_run", "report", "run"]
__version__ = "0.1.0"

_HOMES = {
    "Study": "study",
    "detect": "detect",
    "load_model": "models",
    "open_run": "runs",
    "report": "report",
    "run": "study",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """A package in which a public name stands for itself and not for the module it comes from."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing `mnemoscope.reporting` would otherwise put the module where the function belongs.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
