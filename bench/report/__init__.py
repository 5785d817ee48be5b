"""What rows say, for people: tables, a page, a comparison of two sets, the README's figures. Imports no torch."""

from adadistill.bench.report.command import main

__all__ = ["main"]
