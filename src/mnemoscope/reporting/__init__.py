"""The report: a finished run as a page, and two runs held against each other on another."""

from mnemoscope.reporting.compare import compare
from mnemoscope.reporting.page import report

__all__ = ["compare", "report"]
