"""Removes secrets from the files that Hydra writes."""

from __future__ import annotations

from pathlib import Path

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc.cli.plain import plain


def hide_secrets(cfg: DictConfig, job: HydraConf) -> None:
    """Collects the secrets among a job's settings and replaces them in the job's configuration files.

    Hydra writes interpolations such as `${oc.env:TOKEN}` unresolved, but overrides as they were typed.
    """
    from stasc.tracking.redaction import redact, register_secrets

    try:
        register_secrets(plain(cfg, resolve=True))
    except OmegaConfBaseException:  # a broken interpolation, which building the parts reports
        register_secrets(plain(cfg, resolve=False))
    files = [*Path(job.runtime.output_dir, job.output_subdir or ".hydra").glob("*.yaml")]
    sweep = Path(job.runtime.cwd, job.sweep.dir, "multirun.yaml")
    for file in [*files, sweep] if job.mode == RunMode.MULTIRUN else files:
        content = {"": OmegaConf.to_container(OmegaConf.load(file))}
        if (clean := redact(content)) != content:
            scratch = file.with_name(f".{file.name}")
            scratch.write_text(OmegaConf.to_yaml(clean[""]), encoding="utf-8")
            scratch.replace(file)
