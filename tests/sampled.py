"""Samples with an engine from a network that a test has made."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from stasc.engines.engine import Completion, Decoding, Engine, Request, complete
from stasc.models.model import M_0

E = TypeVar("E", bound=Engine)


def loaded(engine: E, network: Any) -> E:
    """The engine, with a network loaded."""
    live: Any = SimpleNamespace(load=lambda model: network)
    engine.load(M_0, live)
    return engine


def sampled(
    engine: Engine, network: Any, requests: Sequence[Request], decoding: Decoding, *advance: Any
) -> list[list[Completion]]:
    """The completions of each request."""
    return complete(loaded(engine, network), requests, decoding, *advance)
