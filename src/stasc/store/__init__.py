"""Durable artifacts: the output of every stage, under the key of everything that decides it."""
