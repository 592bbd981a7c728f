"""The command `stasc`, also `python -m stasc.run`: composes the settings with Hydra and runs one job or a sweep."""

from __future__ import annotations

import os
import sys
import warnings

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from stasc import __version__
from stasc.cli import job
from stasc.cli.arguments import parse
from stasc.cli.compose import config_loader
from stasc.cli.messages import explain
from stasc.machine import durable, paths, signals
from stasc.machine.paths import CONF
from stasc.machine.stdio import outlive_readers


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float:
    return job.run_job(cfg, HydraConfig.get())


def main() -> None:
    """Runs the command line."""
    outlive_readers()
    try:
        paths.begin()
        command = parse(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    if command.has("--version"):
        print(f"stasc {__version__}")  # Hydra prints its own below
    sys.argv[1:] = command.arguments
    sys.path.append(str(paths.start()))  # so that the installed command finds a user's modules, as `python -m` does
    # peft reads a transformers property by its old name, which no user can change
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors, which it would print with a traceback
    signals.install()
    try:
        _job()
    except signals.Stopped as stop:
        print(f"stopped by {stop}: the same command again reuses what is done", file=sys.stderr)
        sys.exit(stop.status)
    except Exception as error:  # from Hydra: a job reports its own errors
        if in_full:
            raise
        with config_loader() as loader:
            reason = explain(error, command, loader)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(os.EX_IOERR if durable.is_full(error) else 1)
    if job.ended:
        from stasc.tracking.console import Console

        Console().sweep(job.ended)
        if any(one.error for one in job.ended):
            sys.exit(1)


if __name__ == "__main__":
    main()
