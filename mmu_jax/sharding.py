"""Meshes and the one table of regex -> PartitionSpec: the only module that names devices.

A model's ``RULES`` is a list of ``(pattern, PartitionSpec)`` applied to leaf names, first match wins. Optimizer state,
scores, masks and checkpoints end in the same names, so the same table shards them all. Two axes: ``data`` (batch rows,
and FSDP of the params) and ``model`` (tensor parallel).

Several processes run the same program, each with devices of its own. What they need beside arrays stands here: :func:`host` for what
is to be read of an array, :func:`main` for who writes files, :func:`first` for what one does while the others wait, :func:`agreed`.
"""

import collections
import concurrent.futures
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mmu_jax import InputError, trees
from mmu_jax.trees import Tree

Rules = list[tuple[str, PartitionSpec]]
ALIGNED = 64  # bytes, of which the beginning of an array on CPU is a multiple
log = logging.getLogger(__name__)


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A ``(data, model)`` mesh over the first ``data * model`` devices; ``data=-1`` takes all there are.

    Of several processes each has a part in it: it is of all devices, or, for one device, of one of each process, all of which do
    the same (a third axis, ``copy``, that nothing is sharded along).

    >>> dict(make_mesh(1, 1).shape)
    {'data': 1, 'model': 1}

    Raises:
      InputError: more devices asked for than there are; or neither one nor all of those of several processes.
    """
    available = jax.device_count()
    if data == -1 and model >= 1:
        data = max(available // model, 1)
    if data < 1 or model < 1 or data * model > available:
        raise InputError(
            f"expected a mesh of at most {available} devices, found data={data} x model={model}; "
            "set both to what the machine has"
        )
    axes, shape, devices = ("data", "model"), (data, model), jax.devices()[: data * model]
    if not alone() and len(devices) == 1:
        axes, shape, devices = (*axes, "copy"), (1, 1, jax.process_count()), _one_of_each_process()
    elif not alone() and len(devices) < available:
        raise InputError(
            f"expected a mesh of one device or of all {available} of {jax.process_count()} processes, found data={data} x "
            f"model={model}; take all (data=-1)"
        )
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def _one_of_each_process() -> list[jax.Device]:
    return list({device.process_index: device for device in reversed(jax.devices())}.values())[::-1]


@functools.lru_cache(4096)  # asked for every array of every batch
def _fit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The spec with every axis dropped that does not divide its dimension."""
    axes = []
    for dim, axis in zip(shape, (*spec, *(None,) * (len(shape) - len(spec))), strict=True):
        parts = int(np.prod([mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())]))
        axes.append(axis if parts > 1 and dim % parts == 0 else None)
    return PartitionSpec(*axes)


def shardings(tree: Tree, rules: Rules, mesh: Mesh) -> Tree:
    """A NamedSharding for every leaf of ``tree`` (arrays or shapes): the first rule found in its name, or replicated."""

    def leaf(name, x):
        for pattern, spec in rules:
            if re.search(pattern, name) and len(spec) <= len(x.shape):
                return NamedSharding(mesh, _fit(spec, x.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return trees.map_named(leaf, tree)


def whole_along_data(rules: Rules) -> Rules:
    """The rules by which what lay in parts along ``data`` lies there in full; ``model`` splits what it did.

    >>> whole_along_data([('w', PartitionSpec('model', 'data'))]) == [('w', PartitionSpec('model', None))]
    True
    """
    return [(pattern, PartitionSpec(*(None if axis == "data" else axis for axis in spec))) for pattern, spec in rules]


def unmatched(tree: Tree, rules: Rules) -> list[str]:
    """Names of the leaves that no rule matches.

    >>> unmatched({'w': np.zeros(2), 'b': np.zeros(2)}, [('w', PartitionSpec())])
    ['b']
    """
    return [name for name in trees.flatten(tree) if not any(re.search(pattern, name) for pattern, _ in rules)]


def replicated(tree: Tree) -> float:
    """Fraction of the bytes of a tree of placed arrays that every device holds in full."""
    whole = sum(x.nbytes for x in jax.tree.leaves(tree) if x.sharding.is_fully_replicated)
    return whole / max(trees.nbytes(tree), 1)


# Where the leaves of a tree are, as something that can be looked up.
Places = tuple[jax.tree_util.PyTreeDef, tuple[jax.sharding.Sharding, ...]]


def places(tree: Tree) -> Places:
    """Where the arrays of a tree (or their shapes) are placed; ``jax.tree.unflatten(*places)`` is the tree of them."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(x.sharding for x in leaves)


@functools.cache
def _makers() -> concurrent.futures.Executor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return concurrent.futures.ThreadPoolExecutor(cores, "rows")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_makers.cache_clear)  # a fork has none of the threads


class Rows:
    """A host array ``[B, ...]`` float32 whose rows are made when they are read, by threads: decoding and numpy let others run."""

    def __init__(self, shape: tuple[int, ...], fill: Callable[[np.ndarray, int], None]):
        self.shape, self._fill = shape, fill

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        wanted = range(self.shape[0])[index[0]]
        made = np.zeros((len(wanted), *self.shape[1:]), np.float32)
        for _ in _makers().map(self._fill, made, wanted):
            pass
        return made[(slice(None), *index[1:])]


def rows(shape: tuple[int, ...], fill: Callable[[np.ndarray, int], None]) -> np.ndarray | Rows:
    """``[B, ...]`` float32 of ``fill(row of zeros, its number)``; of several processes each makes those that it puts on its devices.

    >>> rows((2, 1), lambda target, row: target.fill(row)).tolist()
    [[0.0], [1.0]]
    """
    made = Rows(shape, fill)
    return made[slice(None),] if alone() else made


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host batch -> device, rows over ``data`` (replicated where the rows do not divide); of several processes each gives its own."""
    where = {name: NamedSharding(mesh, _fit(PartitionSpec("data"), np.shape(x), mesh)) for name, x in batch.items()}
    if alone():
        return jax.device_put(batch, where)  # all at once: one after the other takes twice as long
    return {name: place(x, where[name]) for name, x in batch.items()}


def ahead(launched: Iterable[tuple]) -> Iterator[tuple]:
    """Each item once the next is on its way: the host reads what was found while the devices work at what follows.

    >>> [n for n, in ahead(((1,), (2,)))]
    [1, 2]
    """
    last = []
    for item in launched:
        yield from last
        last = [item]
    yield from last


def place(x: np.ndarray | Rows, where: jax.sharding.Sharding | None) -> jax.Array:
    """A host array, the same on every process, where it is to lie: each process gives what its own devices hold."""
    if where is None or where.is_fully_addressable:
        return jax.device_put(x, where)
    read: dict[str, np.ndarray] = {}

    def part(index):  # replicas ask again for the same
        if str(index) not in read:
            read[str(index)] = x[index]
        return read[str(index)]

    return jax.make_array_from_callback(np.shape(x), where, part)


def room(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Host memory for an array, not filled, that a device of the host takes over as it is: XLA wants its own to begin there.

    >>> room((2, 3), np.float32).ctypes.data % ALIGNED
    0
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation inside jit to ``PartitionSpec(*axes)``; identity where no mesh is set or nothing divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _fit(PartitionSpec(*axes), x.shape, mesh))


def device(mesh: Mesh | AbstractMesh | None = None) -> Any:
    """What computes: its ``platform`` (``"cpu"``, ``"gpu"``, ``"tpu"``) and its ``device_kind``, as ``"TPU v5 lite"``.

    Of ``mesh``, None for the one that is set; where it has no devices, or none is set, the first that JAX has.

    >>> device(make_mesh(1, 1)).platform
    'cpu'
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    found = (mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh).abstract_device
    return jax.devices()[0] if found is None else found


# ---- several processes

WEEK = 7 * 24 * 3600  # seconds: the longest that one waits for another
_told: collections.Counter[str] = collections.Counter()  # how often each word was, by which the next is known


def host(x: Any) -> np.ndarray:
    """The whole of an array on the host of every process, whatever devices hold it; all of them must ask.

    >>> host(jax.numpy.ones(2)).tolist()
    [1.0, 1.0]
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def main() -> bool:
    """Whether this is the process, of several, that writes files and tells how far it is."""
    return jax.process_index() == 0


def barrier(name: str, seconds: int = WEEK) -> None:
    """Waits until every process is here.

    Raises:
      JaxRuntimeError: one is not here within so many seconds.
    """
    if not alone():
        _coordinator().wait_at_barrier(_word(name), timeout_in_ms=1000 * seconds)


def agreed(value: Any) -> Any:
    """What the main process has, on every process, as JSON: for what clocks, signals and disks decide; all must ask.

    It goes by the coordinator and not by a collective: no device waits for it.

    >>> agreed([True, 3])
    [True, 3]
    """
    if alone():
        return value
    word = _word("agreed")
    if main():
        _coordinator().key_value_set(word, json.dumps(value))
        return value
    return json.loads(_coordinator().blocking_key_value_get(word, 1000 * WEEK))


def first(make: Callable[[], Any]) -> Any:
    """What the main process makes while the others wait; they are told of it as by :func:`agreed`. ``make`` may ask nothing of them.

    >>> first(lambda: "made")
    'made'

    Raises:
      InputError: to the others, that it was not made. The main process gets what ``make`` raises.
    """
    if alone():
        return make()
    made = None
    try:
        made = [make()] if main() else None
    finally:
        told = agreed(made)
    if told is None:
        raise InputError("expected the main process to go on, found that it did not; read what it said")
    return told[0]


def _word(name: str) -> str:
    _told[name] += 1
    return f"mmu_jax {name} {_told[name]}"


def _coordinator() -> Any:
    from jax._src.distributed import global_state  # what is said between processes has no public name in JAX

    return global_state.client
