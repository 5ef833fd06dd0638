"""Stages with records on disk: what is done is skipped, what was made with another config is refused.

A stage's *fingerprint* is a hash of the part of the config it reads and of the fingerprints of its inputs; its record is
``<workdir>/stages/<stage>.json``, with the hashes of the files it made and of what its inputs had made. Files are written whole or not at all, so a run that is killed anywhere resumes where it was.
"""

import contextlib
import dataclasses
import errno
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

from mmu_jax import InputError, memory, sharding
from mmu_jax.study import records
from mmu_jax.study.outputs import Outputs, known_by, tidy
from mmu_jax.study.stopping import Stopping

REPORT = "report"  # is told again where it is not as it was: nothing is made of it

LATE = 120  # seconds after which a file that another process wrote is taken for one that is not there


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of a run.

    Attributes:
      name: also the place of its record, ``saliency/mmunlearner`` -> ``stages/saliency/mmunlearner.json``.
      reads: the part of the config its result depends on.
      inputs: names of the stages whose results it reads.
      make: does the work; returns what the record should keep.
      leaves: small files that it writes; where one is gone, the stage is made again.
      models: what it writes that takes long: one that was moved away is missed only where it is read.
    """

    name: str
    reads: dict[str, Any]
    inputs: tuple[str, ...]
    make: Callable[[], dict[str, Any] | None]
    leaves: tuple[pathlib.Path, ...] = ()
    models: tuple[pathlib.Path, ...] = ()


class Stages:
    """The stages of one config in one workdir, in the order in which they are made."""

    def __init__(self, workdir: pathlib.Path, stages: list[Stage], stopping: Stopping | None = None):
        self.workdir, self.table = workdir, {stage.name: stage for stage in stages}
        self._outputs, self._stopping = Outputs(workdir), stopping or Stopping()

    def fingerprint(self, name: str) -> str:
        stage = self.table[name]
        value = [stage.name, stage.reads, [self.fingerprint(i) for i in stage.inputs]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    def record(self, name: str) -> dict | None:
        """What is known of a stage, None if it was never begun."""
        return records.read(self.workdir, name)

    def done(self, name: str) -> bool:
        return self._ended(name) and not self._why_again(name)

    def _ended(self, name: str) -> bool:
        """Whether a stage was made with this config, whatever became of it since."""
        record = self.record(name)
        return record is not None and record["status"] == "done" and record["fingerprint"] == self.fingerprint(name)

    def _why_again(self, name: str) -> str:
        """Why a stage that ended is made again; empty where it is not."""
        stage, record = self.table[name], self.record(name)
        if gone := [path for path in stage.leaves if not path.exists()]:
            return f"{gone[0]} is gone"
        if name == REPORT and (odd := next(self._changed(name), None)):
            return f"{odd} is not as it was made"
        others = [i for i in stage.inputs if self._ended(i) and self._known_by(i) != record["inputs"].get(i)]
        return f"{others[0]} was made again and is another" if others else ""

    def _known_by(self, name: str) -> str:
        """A hash of what a stage that ended made."""
        return known_by(self.record(name)["made"])

    def _changed(self, name: str, whole: bool = False) -> Iterator[pathlib.Path]:
        """The files of a stage that ended that are no longer as it made them."""
        stage = self.table[name]
        return self._outputs.changed(self.record(name)["made"], (*stage.models, *stage.leaves), whole=whole)

    def check(self) -> None:
        """Refuses a workdir whose stages were made with another config, or whose files are others since, before anything is written.

        Files above ``outputs.LARGE`` are read where a stage reads them (:meth:`check_files`).
        """
        if self.workdir.exists() and not self.workdir.is_dir():
            raise InputError(f"expected a directory in --workdir, found a file at {self.workdir}; name another place")
        for name, stage in self.table.items():
            record = self.record(name)
            if record is None or record["status"] != "done" or name == REPORT:
                continue  # what was only begun is begun anew
            if record["fingerprint"] == self.fingerprint(name):
                self.check_files(name, whole=False)
                continue
            was, now = _flat(record["reads"]), _flat(json.loads(json.dumps(stage.reads)))
            keys = {k for k in was.keys() | now.keys() if was.get(k) != now.get(k)}
            keys = sorted(k for k in keys if f"{k}.content" not in keys)  # a folder is told of once
            shown = "; ".join(_difference(k, was.get(k), now.get(k)) for k in keys[:4]) or "its inputs"
            raise InputError(
                f"expected the config and the folders that made stage {name} in {self.workdir}, found others (made with "
                f"{shown}); give another --workdir, or the old ones"
            )

    def check_files(self, name: str, whole: bool = True) -> None:
        """Refuses files of a stage that ended that are no longer as it made them: nothing is made of them, nor written over them.

        Raises:
          InputError: one is; it is named.
        """
        if (file := next(self._changed(name, whole), None)) is None:
            return
        found = "altered or damaged" if file.exists() else "gone"
        delete = file if file in self.table[name].leaves else records.place(self.workdir, name)
        raise InputError(
            f"expected {file} as stage {name} made it, found it {found}; put it back, or delete {delete}, and the stage is made again"
        )

    def wanted(self, only: list[str]) -> list[str]:
        """The stages that are not done: all, or those named in full or by the part before the slash. Of several processes one looks.

        Raises:
          InputError: a name that is no stage; or the workdir is no place for these.
        """
        return sharding.first(lambda: [name for name in self._chosen(only) if not self.done(name)])

    def _chosen(self, only: list[str]) -> list[str]:
        """The stages that are named, once it is known that the workdir is a place for all."""
        unknown = [n for n in only if n not in self.table and n not in {s.split("/")[0] for s in self.table}]
        if unknown:
            raise InputError(
                f"expected stages among {', '.join(self.table)}, found {', '.join(map(repr, unknown))}; correct --stages"
            )
        self.check()
        return [name for name in self.table if not only or name in only or name.split("/")[0] in only]

    def run(self, only: list[str], first: Callable[[], Any] = lambda: None) -> None:
        """Makes what is :meth:`wanted`, and what is not done once that was made; ``first`` is called when the workdir is this run's.

        Raises:
          Stopped: SIGTERM came; what was made stays, and what was not is made by the same call.
        """
        if not self.wanted(only):
            return
        compiled = keeping_compiled(self.workdir / "compiled")
        with alone(self.workdir), compiled, self._stopping.listening():
            first()
            sharding.first(self._tidy)
            for name in sharding.first(lambda: self._chosen(only)):
                self._make(name)

    def _tidy(self) -> None:
        """Removes what killed runs left: files half written, and checkpoints of stages that are done."""
        paths = [path for stage in self.table.values() for path in (*stage.leaves, *stage.models)]
        tidy(self.workdir, [*paths, *(records.place(self.workdir, name) for name in self.table)])
        for name in filter(self._ended, self.table):
            self._drop_checkpoints(name)

    def _drop_checkpoints(self, name: str) -> None:
        shutil.rmtree(self.workdir / "checkpoints" / name, ignore_errors=True)

    def _make(self, name: str) -> None:
        self._stopping.doing = name
        head = sharding.first(lambda: self._begin(name))
        if head is None:
            return
        began = time.monotonic()
        result = self.table[name].make()
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = {"seconds": round(time.monotonic() - began, 1), "peak_host_bytes_so_far": host}
        if (device := memory.peak()) is not None:
            cost["peak_device_bytes_so_far"] = device
        sharding.first(lambda: self._end(name, head | {"result": result, "cost": cost}))
        self._wait_for(name)

    def _begin(self, name: str) -> dict[str, Any] | None:
        """The head of the record of a stage that is to be made, None where it is done."""
        stage, record = self.table[name], self.record(name)
        if self.done(name):
            return None
        missing = [i for i in stage.inputs if not self.done(i)]
        if missing:
            raise InputError(f"expected stage {missing[0]} before {name}, found it not done; add it to --stages")
        print(name, flush=True)
        if self._ended(name):
            print(f"  again: {self._why_again(name)}", flush=True)
        first = next(iter(self.table))  # the data, which all read
        for read in dict.fromkeys((*stage.inputs, *[first] * self._ended(first))):
            self.check_files(read)
        head = {"fingerprint": self.fingerprint(name), "inputs": {i: self._known_by(i) for i in stage.inputs}}
        if record and head != {
            key: record.get(key) for key in head
        }:  # begun with another config, or from another model
            self._drop_checkpoints(name)
        head |= {"reads": stage.reads, **records.provenance()}
        records.keep(self.workdir, name, head | {"status": "started"})
        return head

    def _end(self, name: str, record: dict[str, Any]) -> None:
        stage = self.table[name]
        made = {"status": "done", "made": self._outputs.hashed((*stage.leaves, *stage.models))}
        records.keep(self.workdir, name, record | made)
        self._drop_checkpoints(name)

    def _wait_for(self, name: str) -> None:
        """Until this process sees what the main one wrote of a stage: a shared file system may be late."""
        until = time.monotonic() + LATE
        while not sharding.main() and not self.done(name):
            if time.monotonic() > until:
                raise InputError(
                    f"expected a workdir that all {jax.process_count()} processes share, found nothing of stage {name} in {self.workdir}, "
                    "which the main process made; give a --workdir on a shared file system"
                )
            time.sleep(0.1)


NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """While this run works in a workdir, no other does; a lock ends with the process, of several the main one, that holds it.

    Raises:
      InputError: another is at work.
    """

    def lock():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"expected a workdir that no other run works in, found one at work in {workdir}; wait for it, or give "
                "another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"  the file system of {workdir} has no locks ({error.strerror}): see to it that no other run works in it",
                flush=True,
            )

    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".lock").touch()
    except OSError as error:
        raise InputError(
            f"expected room and permission to write {workdir}, found {error}; free or change it"
        ) from error
    with open(workdir / ".lock", "w") as file:
        sharding.first(lock)
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
