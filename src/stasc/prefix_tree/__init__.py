"""Prefix trees of token sequences: sampling and fine-tuning compute each common prefix once."""
