"""Reads how an option is called from its signature: options may be any functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping


def signature_of(function: Callable[..., object]) -> inspect.Signature | None:
    """Returns a callable's signature; None where Python knows none, as for some functions written in C."""
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def accepts(signature: inspect.Signature, names: tuple[str, ...], settings: Mapping[str, object] | None = None) -> bool:
    """Checks whether a call with these positional arguments, and these keyword arguments, is possible."""
    try:
        signature.bind(*names, **(settings or {}))
    except TypeError:
        return False
    return True


def parameters(function: Callable[..., object]) -> list[str]:
    """Returns the names of a callable's parameters; none where Python does not know them."""
    signature = signature_of(function)
    return [*signature.parameters] if signature else []
