"""mnemoscope shows what a text-to-image diffusion model has memorized, and why.

Public names: `Study` and `run` do a study, `open_run` reads what it left, `report` makes a page of
it, `detect` scores prompts, `explain` says where and by which words, `attach` watches a live
pipeline, `guard` acts on it and `guider` does so where guiders are taken, `TrainingAudit` audits a
training at its checkpoints, `load_model` loads a model. They are imported when first used, so
importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnemoscope.flows.detect import detect
    from mnemoscope.flows.explain import explain
    from mnemoscope.flows.study import Study, run
    from mnemoscope.flows.training import TrainingAudit
    from mnemoscope.guarding.guider import guider
    from mnemoscope.guarding.live import guard
    from mnemoscope.models import load_model
    from mnemoscope.reporting import report
    from mnemoscope.runs.folder import open_run
    from mnemoscope.sampling.attach import attach

__all__ = [
    "Study",
    "TrainingAudit",
    "attach",
    "detect",
    "explain",
    "guard",
    "guider",
    "load_model",
    "open_run",
    "report",
    "run",
]
__version__ = "0.1.0"

_HOMES = {
    "Study": "flows.study",
    "TrainingAudit": "flows.training",
    "attach": "sampling.attach",
    "detect": "flows.detect",
    "explain": "flows.explain",
    "guard": "guarding.live",
    "guider": "guarding.guider",
    "load_model": "models",
    "open_run": "runs.folder",
    "report": "reporting",
    "run": "flows.study",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
