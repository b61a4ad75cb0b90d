"""The report: a finished run as a page, and two runs held against each other on another."""

from mnemoscope.report.compare import compare
from mnemoscope.report.page import report

__all__ = ["compare", "report"]
