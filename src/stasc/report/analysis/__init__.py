"""Analyses a sweep: accuracies of variants and baselines, effects of choices, notes on missing runs."""
