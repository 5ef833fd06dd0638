"""The record of a stage on disk, and where its result comes from."""

import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

import mmu_jax
from mmu_jax import InputError, sharding
from mmu_jax.files import read_object, sealed, write_json
from mmu_jax.report.tables import COST

HASHES = {"*": str}  # by name of a file, or of a stage
RECORD = {"status": str, "fingerprint": str, "reads": dict, "result?": (dict, type(None)), "cost?": COST}
RECORD |= {"inputs?": HASHES, "made?": HASHES}


def place(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Of a stage: ``saliency/mmunlearner`` -> ``stages/saliency/mmunlearner.json``."""
    return workdir / "stages" / f"{name}.json"


def read(workdir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """What is known of a stage, None if it was never begun.

    Raises:
      InputError: the file is damaged or altered, or says nothing of what the stage made.
    """
    path, what = place(workdir, name), "the record of a stage (delete it, and the stage is made again)"
    if not path.exists():
        return None
    record = read_object(path, what, RECORD)
    if record["status"] == "done":
        record = read_object(path, what, {"inputs": HASHES, "made": HASHES})
    if record != sealed(record):
        raise InputError(f"expected {what} as it was written, found {path} altered or damaged; delete it")
    return record


def keep(workdir: pathlib.Path, name: str, record: dict[str, Any]) -> None:
    """Puts down what is known of a stage, with a hash of it."""
    write_json(place(workdir, name), sealed(json.loads(json.dumps(record))))


def write(path: pathlib.Path, value: Any) -> None:
    """``files.write_json`` by one process, where there are several."""
    if sharding.main():
        write_json(path, value)


def provenance() -> dict[str, Any]:
    """Versions, devices and git revision, written beside every result."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "tensorflow-datasets", "numpy", "safetensors")
    return {
        "mmu_jax": mmu_jax.__version__,
        "git": _revision(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "devices": sorted({f"{d.platform}:{d.device_kind}" for d in jax.devices()}),
        "device_count": jax.device_count(),
    }


def _revision() -> str:
    """The git revision of the code; a machine without git, or code outside a checkout, has none."""
    root, git = pathlib.Path(__file__).resolve().parents[2], shutil.which("git")
    if git is None:
        return "git is not installed"
    said = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "not a git checkout"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed by a package manager"
