"""Stages with records on disk: what is done is skipped, what was made with another config is refused.

A stage's *fingerprint* is a hash of the part of the config it reads and of the fingerprints of its inputs; its record is
``<workdir>/stages/<stage>.json``. Files are written whole or not at all, so a run killed anywhere goes on where it was.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

import mmu_jax
from mmu_jax import InputError
from mmu_jax.files import read_object, write_json


class Progress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, total: int):
        from tqdm import tqdm

        self.name, self.total, self.done, self.spoke = name, total, 0, 0.0
        self.first: tuple[int, float] | None = None  # where and when the first report came: compilation is behind it
        self.bar = tqdm(total=total, desc=name, dynamic_ncols=True) if sys.stderr.isatty() else None

    def to(self, done: int, values: dict[str, float] | None = None) -> None:
        """``done`` of the total is done; ``values`` are shown beside it."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.done)
        elif done == self.total or now - self.spoke > 5:
            self.spoke = now
            print(f"  {self.name}: {done}/{self.total}  {self._pace(done, now)}{text}".rstrip(), flush=True)
        self.first, self.done = self.first or (done, now), done

    def _pace(self, done: int, now: float) -> str:
        if self.first is None or done == self.first[0]:
            return ""
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-6)
        return f"{rate:.1f}/s  {(self.total - done) / rate:.0f} s left  "

    def add(self, n: int = 1) -> None:
        self.to(self.done + n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


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
    root, git = pathlib.Path(__file__).resolve().parent.parent, shutil.which("git")
    if git is None:
        return "git is not installed"
    said = subprocess.run([git, "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "not a git checkout"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed by a package manager"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
      name: also the place of its record, ``saliency/mmunlearner`` -> ``stages/saliency/mmunlearner.json``.
      reads: the part of the config its result depends on.
      inputs: names of the stages whose results it reads.
      make: does the work; returns what the record should keep.
    """

    name: str
    reads: dict[str, Any]
    inputs: tuple[str, ...]
    make: Callable[[], dict[str, Any] | None]


class Stages:
    """The stages of one config in one workdir, in the order in which they are made."""

    def __init__(self, workdir: pathlib.Path, stages: list[Stage]):
        self.workdir, self.table = workdir, {stage.name: stage for stage in stages}

    def fingerprint(self, name: str) -> str:
        stage = self.table[name]
        value = [stage.name, stage.reads, [self.fingerprint(i) for i in stage.inputs]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, name: str) -> pathlib.Path:
        return self.workdir / "stages" / f"{name}.json"

    def record(self, name: str) -> dict | None:
        """What is known of a stage, None if it was never begun.

        Raises:
          InputError: the file is damaged.
        """
        path = self.path(name)
        if not path.exists():
            return None
        record = read_object(path, "the record of a stage (delete it, and the stage is made again)")
        if lost := {"status", "fingerprint", "reads"} - record.keys():
            raise InputError(
                f"expected the record of a stage in {path}, found it without {', '.join(sorted(lost))}; delete it, and the "
                "stage is made again"
            )
        return record

    def done(self, name: str) -> bool:
        record = self.record(name)
        return record is not None and record["status"] == "done" and record["fingerprint"] == self.fingerprint(name)

    def check(self) -> None:
        """Refuses a workdir whose stages were made with another config, before anything is written."""
        if self.workdir.exists() and not self.workdir.is_dir():
            raise InputError(f"expected a directory in --workdir, found a file at {self.workdir}; name another place")
        for name, stage in self.table.items():
            record = self.record(name)
            if record is None or record["status"] != "done" or name == "report":
                continue  # what was only begun is begun anew
            if record["fingerprint"] == self.fingerprint(name):
                continue
            was, now = _flat(record["reads"]), _flat(json.loads(json.dumps(stage.reads)))
            keys = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
            shown = "; ".join(f"{k} = {was.get(k)!r}, now {now.get(k)!r}" for k in keys[:4]) or "its inputs"
            raise InputError(
                f"expected the config that made stage {name} in {self.workdir}, found another (made with {shown}); "
                "give another --workdir, or the old config"
            )

    def wanted(self, only: list[str]) -> list[str]:
        """The stages that are not done: all, or those named in full or by the part before the slash.

        Raises:
          InputError: a name that is no stage; or the workdir is no place for these.
        """
        unknown = [n for n in only if n not in self.table and n not in {s.split("/")[0] for s in self.table}]
        if unknown:
            raise InputError(
                f"expected stages among {', '.join(self.table)}, found {', '.join(map(repr, unknown))}; correct --stages"
            )
        self.check()
        chosen = [name for name in self.table if not only or name in only or name.split("/")[0] in only]
        return [name for name in chosen if not self.done(name)]

    def go(self, only: list[str]) -> None:
        """Makes what is :meth:`wanted`."""
        wanted = self.wanted(only)
        self._keep_compiled()
        for name in wanted:
            self._make(name)

    def _make(self, name: str) -> None:
        stage, record = self.table[name], self.record(name)
        if self.done(name):
            return
        missing = [i for i in stage.inputs if (self.record(i) or {}).get("status") != "done"]
        if missing:
            raise InputError(f"expected stage {missing[0]} before {name}, found it not done; add it to --stages")
        print(name, flush=True)
        if record and record["fingerprint"] != self.fingerprint(name):
            shutil.rmtree(self.workdir / "checkpoints" / name, ignore_errors=True)  # begun with another config
        head = {"fingerprint": self.fingerprint(name), "reads": stage.reads, **provenance()}
        write_json(self.path(name), head | {"status": "started"})
        began = time.monotonic()
        result = stage.make()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = {"seconds": round(time.monotonic() - began, 1), "peak_host_bytes_so_far": peak}
        write_json(self.path(name), head | {"status": "done", "result": result, "cost": cost})
        shutil.rmtree(self.workdir / "checkpoints" / name, ignore_errors=True)

    def _keep_compiled(self) -> None:
        """Programs that several methods or a second run share compile once, unless the user keeps them elsewhere."""
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", str((self.workdir / "compiled").absolute()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
