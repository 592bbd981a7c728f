"""The command line: composes the settings with Hydra, checks them, and builds the parts of a run."""
