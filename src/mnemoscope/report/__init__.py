"""The report: a finished run as one page and as figures for print."""

from mnemoscope.report.page import report

__all__ = ["report"]
