"""Datasets, prompts and rewards: the questions, and how answers are judged."""
