"""Meshes and the one table of regex -> PartitionSpec: the only module that names devices.

A model's ``RULES`` is a list of ``(pattern, PartitionSpec)`` applied to leaf names, first match wins. Optimizer state,
scores, masks and checkpoints end in the same names, so the same table shards them all. Two axes: ``data`` (batch rows,
and FSDP of the params) and ``model`` (tensor parallel).
"""

import logging
import re
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmu_jax import InputError, trees
from mmu_jax.trees import Tree

Rules = list[tuple[str, PartitionSpec]]
log = logging.getLogger(__name__)


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A ``(data, model)`` mesh over the first ``data * model`` devices; ``data=-1`` takes all there are.

    >>> dict(make_mesh(1, 1).shape)
    {'data': 1, 'model': 1}

    Raises:
      InputError: more devices asked for than there are.
    """
    available = jax.device_count()
    if data == -1 and model >= 1:
        data = max(available // model, 1)
    if data < 1 or model < 1 or data * model > available:
        raise InputError(
            f"expected a mesh of at most {available} devices, found data={data} x model={model}; "
            "set both to what the machine has"
        )
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


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


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Host batch -> device, rows over ``data`` (replicated where the rows do not divide)."""
    return {
        name: jax.device_put(x, NamedSharding(mesh, _fit(PartitionSpec("data"), np.shape(x), mesh)))
        for name, x in batch.items()
    }


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


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation inside jit to ``PartitionSpec(*axes)``; identity where no mesh is set or nothing divides."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _fit(PartitionSpec(*axes), x.shape, mesh))
