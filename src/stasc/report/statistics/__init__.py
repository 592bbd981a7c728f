"""Estimates, intervals and tests on plain arrays: `intervals`, `crossing` (questions x seeds) and `resampling`."""
