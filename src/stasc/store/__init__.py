"""The store of artifacts: what stages compute, under keys of everything that decides it."""

from stasc.store.artifacts import Artifact, Store

__all__ = ["Artifact", "Store"]
