"""Where a run's events go: the journal, which is the record of the run, and Weights & Biases, which mirrors it.

A run needs neither network nor account, and nothing that happens to W&B while it runs can stop or change it.
"""

from stasc.tracking.journal import COMPLETE, Journal, mirrored, read
from stasc.tracking.redaction import learn, redact, scrub
from stasc.tracking.tracker import Off, RunInfo, Tracker
from stasc.tracking.wandb import Wandb

__all__ = ["COMPLETE", "Journal", "Off", "RunInfo", "Tracker", "Wandb", "learn", "mirrored", "read", "redact", "scrub"]
