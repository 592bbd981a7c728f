"""Sampling: the Engine interface, its random noise, and the engines."""
