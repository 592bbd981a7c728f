"""The report as one HTML file, with its charts as SVG and PNG."""

from stasc.report.page.html import PAGE, write

__all__ = ["PAGE", "write"]
