"""A W&B report on a project's runs: the command `python -m stasc.dashboard`, which no other package imports."""
