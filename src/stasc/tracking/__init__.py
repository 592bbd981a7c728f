"""Records runs: the console, the journal, which is the record of a run, and Weights & Biases, which mirrors it."""

from stasc.tracking.journal import COMPLETE, Journal, read
from stasc.tracking.redaction import redact, scrub
from stasc.tracking.tracker import Off, RunInfo, Tracker
from stasc.tracking.wandb import Wandb

__all__ = ["COMPLETE", "Journal", "Off", "RunInfo", "Tracker", "Wandb", "read", "redact", "scrub"]
