"""Sampling: the Engine interface, its random noise, and the engines."""

from stasc.engines.engine import Completion, Decoding, Engine, Request

__all__ = ["Completion", "Decoding", "Engine", "Request"]
