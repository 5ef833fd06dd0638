"""Stages with records on disk: what is done is skipped, what was made with another config is refused.

A stage's *fingerprint* is a hash of the part of the config it reads and of the fingerprints of its inputs; its record is
``<workdir>/stages/<stage>.json``. Files are written whole or not at all, so a run that is killed anywhere resumes where it was.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from mmu_jax import InputError, memory
from mmu_jax.files import write_json
from mmu_jax.study import records


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
      name: also the place of its record, ``saliency/mmunlearner`` -> ``stages/saliency/mmunlearner.json``.
      reads: the part of the config its result depends on.
      inputs: names of the stages whose results it reads.
      make: does the work; returns what the record should keep.
      leaves: small files that it writes; where one is gone, the stage is made again.
    """

    name: str
    reads: dict[str, Any]
    inputs: tuple[str, ...]
    make: Callable[[], dict[str, Any] | None]
    leaves: tuple[pathlib.Path, ...] = ()


class Stages:
    """The stages of one config in one workdir, in the order in which they are made."""

    def __init__(self, workdir: pathlib.Path, stages: list[Stage]):
        self.workdir, self.table = workdir, {stage.name: stage for stage in stages}

    def fingerprint(self, name: str) -> str:
        stage = self.table[name]
        value = [stage.name, stage.reads, [self.fingerprint(i) for i in stage.inputs]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    def record(self, name: str) -> dict | None:
        """What is known of a stage, None if it was never begun."""
        return records.read(self.workdir, name)

    def done(self, name: str) -> bool:
        record = self.record(name)
        made = record is not None and record["status"] == "done" and record["fingerprint"] == self.fingerprint(name)
        return made and all(path.exists() for path in self.table[name].leaves)

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
            keys = {k for k in was.keys() | now.keys() if was.get(k) != now.get(k)}
            keys = sorted(k for k in keys if f"{k}.content" not in keys)  # a folder is told of once
            shown = "; ".join(_difference(k, was.get(k), now.get(k)) for k in keys[:4]) or "its inputs"
            raise InputError(
                f"expected the config and the folders that made stage {name} in {self.workdir}, found others (made with "
                f"{shown}); give another --workdir, or the old ones"
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

    def run(self, only: list[str]) -> None:
        """Makes what is :meth:`wanted`."""
        wanted = self.wanted(only)
        if wanted:
            with alone(self.workdir), keeping_compiled(self.workdir / "compiled"):
                for name in wanted:
                    self._make(name)

    def _make(self, name: str) -> None:
        stage, record = self.table[name], self.record(name)
        if self.done(name):
            return
        missing = [i for i in stage.inputs if not self.done(i)]
        if missing:
            raise InputError(f"expected stage {missing[0]} before {name}, found it not done; add it to --stages")
        print(name, flush=True)
        if record and record["fingerprint"] != self.fingerprint(name):
            shutil.rmtree(self.workdir / "checkpoints" / name, ignore_errors=True)  # begun with another config
        head = {"fingerprint": self.fingerprint(name), "reads": stage.reads, **records.provenance()}
        write_json(records.place(self.workdir, name), head | {"status": "started"})
        began = time.monotonic()
        result = stage.make()
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = {"seconds": round(time.monotonic() - began, 1), "peak_host_bytes_so_far": host}
        if (device := memory.peak()) is not None:
            cost["peak_device_bytes_so_far"] = device
        write_json(records.place(self.workdir, name), head | {"status": "done", "result": result, "cost": cost})
        shutil.rmtree(self.workdir / "checkpoints" / name, ignore_errors=True)


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """While this process works in a workdir, no other does; a lock ends with its process.

    Raises:
      InputError: another is at work.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"expected a workdir that no other run works in, found one at work in {workdir}; wait for it, or give "
                "another --workdir"
            ) from error
        yield


@contextlib.contextmanager
def keeping_compiled(folder: pathlib.Path) -> Iterator[None]:
    """Programs that several methods or a second run share compile once, unless the user keeps them elsewhere."""
    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    theirs = {"dir": None, "least": jax.config.jax_persistent_cache_min_compile_time_secs}
    try:
        _compiled(dir=str(folder.absolute()), least=0.5)
        yield
    finally:
        _compiled(**theirs)


def _compiled(dir: str | None, least: float) -> None:
    """Where programs that took so many seconds to compile are kept from now on."""
    jax.config.update("jax_compilation_cache_dir", dir)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    compilation_cache.reset_cache()  # it is opened once, where it first was


def _difference(key: str, was: Any, now: Any) -> str:
    folder, of_folder, _ = key.partition(".content")
    if of_folder:
        said = "no folder as" if was is None else "other files in the folder of" if now else "a folder that is gone as"
        return f"{said} {folder}"
    return f"{key} = {was!r}, now {now!r}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
