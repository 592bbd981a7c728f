"""The store of artifacts: what stages compute, under keys of everything that decides it."""
