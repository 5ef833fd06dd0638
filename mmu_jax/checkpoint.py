"""Training state in and out of orbax: whole or not there, kept by step with hashes, restored onto any mesh."""

import logging
import pathlib
import shutil
import time
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from mmu_jax import InputError, sharding, trees
from mmu_jax.files import hashes, read_object, refused, write_json
from mmu_jax.trees import Tree

log = logging.getLogger(__name__)


class Schedule:
    """When a run keeps its state: after every so many iterations, and once so many minutes have gone by.

    >>> schedule = Schedule(every=5)
    >>> [done for done in range(1, 12) if schedule.due(done)]
    [5, 10]

    Args:
      every: iterations.
      minutes: since the state was last kept, by the clock of the host; 0 for iterations alone.
    """

    def __init__(self, every: int, minutes: float = 0.0):
        self._every, self._seconds, self._kept = every, 60 * minutes, time.monotonic()

    def due(self, done: int) -> bool:
        """Whether the state is to be kept after ``done`` iterations; if so, the minutes begin anew."""
        late = self._seconds > 0 and time.monotonic() - self._kept >= self._seconds
        found = late or done % self._every == 0
        if found:
            self._kept = time.monotonic()
        return found


class DamagedError(InputError):
    """A checkpoint whose files are not as they were written: ``found`` says which."""

    def __init__(self, place: pathlib.Path, found: str):
        super().__init__(
            f"expected the checkpoint {place} as it was written, found {found}; delete {place.parent}, and the stage begins anew"
        )
        self.found = found


class Checkpoints:
    """The checkpoints of one run under ``path``; the last ``keep`` are kept (a new one is whole before an old one goes).

    A state is stored as its leaves by name, so a process with another mesh or device count restores it. Beside a checkpoint
    stands ``<step>.json``, the SHA-256 of all its files. One that has none was being written when its run was killed, and is
    removed.

    Args:
      tell: is given a line about every checkpoint that is passed over.
    """

    def __init__(self, path: str | pathlib.Path, keep: int = 2, tell: Callable[[str], None] = log.warning):
        self.path, self._tell = pathlib.Path(path), tell
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(pathlib.Path(path).absolute(), options=options)
        steps = sorted(self._manager.all_steps())
        without = sharding.first(lambda: [s for s in steps if not self._hashes(s).exists()])
        if without and (without != steps[-1:]):
            raise InputError(
                f"expected the hashes of every checkpoint beside it ({self._hashes(without[0]).name}), found none for "
                f"{len(without)} of {len(steps)} in {self.path}; they are no checkpoints of this version: move them away"
            )
        for step in without:
            self._tell(f"the checkpoint of step {step} in {self.path} was not yet whole, and is removed")
            self._manager.delete(step)

    def _hashes(self, step: int) -> pathlib.Path:
        return self.path / f"{step}.json"

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Keeps a state.

        Raises:
          InputError: there is no room for it, or no right to write; what was kept before is whole.
        """
        needed, free = trees.nbytes(state), sharding.agreed(shutil.disk_usage(self.path).free)
        if free < needed:  # before anything is written: orbax ends with an error for every array
            raise self._no_room(f"{free:,} bytes free for {needed:,}")
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_named(state)))
        except (ValueError, OSError) as error:
            if not refused(error):
                raise
            raise self._no_room(" ".join(str(error).split())[:200]) from error
        sharding.first(lambda: self._hash(step))

    def _hash(self, step: int) -> None:
        write_json(self._hashes(step), hashes(self.path / str(step)))
        own = {path for path in self.path.glob("*.json") if path.stem.isdigit()}
        for path in own - {self._hashes(kept) for kept in self._manager.all_steps()}:
            path.unlink()

    def _no_room(self, found: str) -> InputError:
        return InputError(
            f"expected room and permission for a checkpoint in {self.path}, found {found}; free some, and the same command "
            "resumes from the last one"
        )

    def resume(self, like: Tree) -> Tree:
        """The state of the newest checkpoint that is as it was written; newer ones, which are damaged, are removed with a line.

        Raises:
          InputError: none is, or it is the state of another model or method.
        """
        damaged: dict[int, DamagedError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except DamagedError as error:
                damaged[step] = error
                continue
            for newer, error in damaged.items():
                self._tell(
                    f"the checkpoint of step {newer} in {self.path} is not as it was written ({error.found}), and is removed; resuming "
                    f"from the one before it, of step {step}"
                )
                self._manager.delete(newer)
                self._hashes(newer).unlink(missing_ok=True)
            return state
        if not damaged:
            raise InputError(f"expected a checkpoint in {self.path}, found none; look at latest before")
        raise next(iter(damaged.values()))

    def restore(self, step: int, like: Tree) -> Tree:
        """The state of ``step`` with the structure, dtypes and shardings of ``like`` (arrays, or their shapes).

        Raises:
          InputError: it is the state of another model or method; ``DamagedError`` where its files are not as they were written.
        """
        if damage := sharding.first(lambda: self._damage(step)):
            raise DamagedError(self.path / str(step), damage)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        stored = self._read(step, abstract)
        names = [name.replace("/", ".") for name in trees.flatten(like)]
        return jax.tree.structure(like).unflatten([stored[name] for name in names])

    def _damage(self, step: int) -> str:
        """What of a checkpoint is not as it was written; empty where all of it is."""
        try:
            then = read_object(self._hashes(step), "the hashes of a checkpoint", {"*": str})
            now = hashes(self.path / str(step))
        except InputError as error:
            return f"that it cannot be known ({error})"
        odd = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        return f"{len(odd)} of {len(then)} files damaged, {odd[0]} among them" if odd else ""

    def _read(self, step: int, abstract: Tree) -> Tree:
        def refusal(error):
            return InputError(
                f"expected a complete checkpoint of this stage in {self.path / str(step)}, found one that cannot be read "
                f"({' '.join(str(error).split())[:120]}); delete {self.path}, and the stage begins anew"
            )

        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, OSError) as error:  # metadata, manifest, tree or shapes; JSON's errors are ValueErrors
            raise refusal(error) from error
        except Exception as error:
            if type(error) is not Exception:  # orbax has no class of its own for an array that cannot be read
                raise
            raise refusal(error) from error

    def close(self) -> None:
        self._manager.close()


def _named(state: Tree) -> dict[str, jax.Array]:
    return {name.replace("/", "."): leaf for name, leaf in trees.flatten(state).items()}
