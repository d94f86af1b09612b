"""Records and figures to a typeset PDF in which no number was typed by hand."""

from qlora_lib.report.build import build_report

__all__ = ["build_report"]
