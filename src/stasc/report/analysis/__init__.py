"""What a sweep's runs show: accuracies of variants and baselines, effects of choices, and notes on what is missing."""

from stasc.report.analysis.analysis import analyse

__all__ = ["analyse"]
