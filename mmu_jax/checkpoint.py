"""Training state in and out of orbax: whole or not there, kept by step, restored onto any mesh."""

import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

from mmu_jax import InputError, trees
from mmu_jax.files import refused
from mmu_jax.trees import Tree


class Checkpoints:
    """The checkpoints of one run under ``path``; the last ``keep`` are kept (a new one is whole before an old one goes).

    A state is stored as its leaves by name, so a process with another mesh or device count restores it.
    """

    def __init__(self, path: str | pathlib.Path, keep: int = 1):
        self.path = pathlib.Path(path)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(pathlib.Path(path).absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Keeps a state.

        Raises:
          InputError: there is no room for it, or no right to write; what was kept before is whole.
        """
        needed, free = trees.nbytes(state), shutil.disk_usage(self.path).free
        if free < needed:  # before anything is written: orbax ends with an error for every array
            raise self._no_room(f"{free:,} bytes free for {needed:,}")
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_named(state)))
        except (ValueError, OSError) as error:
            if not refused(error):
                raise
            raise self._no_room(" ".join(str(error).split())[:200]) from error

    def _no_room(self, found: str) -> InputError:
        return InputError(
            f"expected room and permission for a checkpoint in {self.path}, found {found}; free some, and the same command "
            "resumes from the last one"
        )

    def restore(self, step: int, like: Tree) -> Tree:
        """The state of ``step`` with the structure, dtypes and shardings of ``like`` (arrays, or their shapes).

        Raises:
          InputError: its files are damaged, or it is the state of another model or method.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        stored = self._read(step, abstract)
        names = [name.replace("/", ".") for name in trees.flatten(like)]
        return jax.tree.structure(like).unflatten([stored[name] for name in names])

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
