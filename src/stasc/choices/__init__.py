"""The paper's design choices, a file each: initialisation, filter, pairing, training target, fine-tuning start."""

from stasc.choices import filter, init, pairing, start, target

__all__ = ["filter", "init", "pairing", "start", "target"]
