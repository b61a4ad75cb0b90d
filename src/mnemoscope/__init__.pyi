"""The public names, for type checkers: at run time they are imported when first used."""

from mnemoscope.detect import detect as detect
from mnemoscope.models import load_model as load_model
from mnemoscope.report import report as report
from mnemoscope.runs import open_run as open_run
from mnemoscope.study import Study as Study
from mnemoscope.study import run as run

__all__ = ["Study", "detect", "load_model", "open_run", "report", "run"]
__version__: str
