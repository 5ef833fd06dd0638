"""Training state in and out of orbax: whole or not there, kept by step, restored onto any mesh."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from mmu_jax import trees

Tree = Any


class Checkpoints:
    """The checkpoints of one run under ``path``; the last ``keep`` are kept (a new one is whole before an old one goes).

    A state is stored as its leaves by name, so a process with another mesh or device count restores it.
    """

    def __init__(self, path: str | pathlib.Path, keep: int = 1):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(pathlib.Path(path).absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        self._manager.save(step, args=ocp.args.StandardSave(_named(state)))

    def restore(self, step: int, like: Tree) -> Tree:
        """The state of ``step`` with the structure, dtypes and shardings of ``like`` (arrays, or their shapes)."""
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _named(like))
        stored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        names = [name.replace("/", ".") for name in trees.flatten(like)]
        return jax.tree.structure(like).unflatten([stored[name] for name in names])

    def close(self) -> None:
        self._manager.close()


def _named(state: Tree) -> dict[str, jax.Array]:
    return {name.replace("/", "."): leaf for name, leaf in trees.flatten(state).items()}
