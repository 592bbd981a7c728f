"""Reads the folders of a sweep's runs."""

from stasc.report.data.reading import read

__all__ = ["read"]
