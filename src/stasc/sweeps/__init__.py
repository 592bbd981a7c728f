"""Sweeps of many runs: what their jobs need and how long they take."""
