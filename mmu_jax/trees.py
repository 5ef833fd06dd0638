"""Named leaves: the vocabulary every other module uses.

A *tree* is any pytree of arrays: a plain dict, Flax Linen params, a Flax NNX state. A leaf's *name* is its path
joined by slashes, ``'language_model/layers/mlp/up_proj/weight'``. A leaf that is absent is ``None``, which JAX
treats as an empty subtree, so a part of a tree keeps the structure of the whole.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mmu_jax import InputError

Tree = Any


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by name, in tree order; ``is_leaf`` as in ``jax.tree.map``.

    >>> flatten({'a': {'b': 1}, 'c': 2})
    {'a/b': 1, 'c': 2}
    """
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def map_named(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """``jax.tree.map`` whose function receives the leaf's name first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(_name(path), *leaves), tree, *rest)


def select(tree: Tree, pattern: str) -> Tree:
    """A tree of Python bools: True where ``pattern`` matches the whole leaf name (``re.fullmatch``).

    >>> select({'a': {'weight': 1, 'bias': 2}}, r'.*weight')
    {'a': {'bias': False, 'weight': True}}

    Raises:
      InputError: no leaf matches; the message lists the names there are.
    """
    chosen = map_named(lambda name, _: re.fullmatch(pattern, name) is not None, tree)
    if not any(jax.tree.leaves(chosen)):
        names = list(flatten(tree))
        raise InputError(
            f"expected a pattern that matches at least one leaf, found {pattern!r} which matches none of "
            f"{len(names)} leaves ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''}); correct the pattern"
        )
    return chosen


def split(tree: Tree, pattern: str) -> tuple[Tree, Tree]:
    """``(matching, rest)``: both have the structure of ``tree`` with ``None`` for the leaves of the other.

    Differentiate with respect to ``matching`` alone and no gradient of ``rest`` ever exists.
    """
    chosen = select(tree, pattern)
    matching = jax.tree.map(lambda keep, leaf: leaf if keep else None, chosen, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, chosen, tree)
    return matching, rest


def merge(first: Tree, second: Tree) -> Tree:
    """Inverse of :func:`split`: the leaf of ``first``, and of ``second`` where ``first`` has None."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)


def part(tree: Tree, like: Tree) -> Tree:
    """The leaves of ``tree`` that are not None in ``like`` (two trees of one structure up to None)."""
    return jax.tree.map(lambda keep, leaf: None if keep is None else leaf, like, tree, is_leaf=lambda x: x is None)


def size(tree: Tree) -> int:
    """Number of entries over all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes over all leaves (arrays or ``jax.ShapeDtypeStruct``)."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


CONTAINERS = ("layers", "blocks")


def stacked(name: str) -> bool:
    """Whether axis 0 of the leaf counts layers: it lies in a container of layers."""
    return any(component in CONTAINERS for component in name.split("/"))


def group(name: str) -> str:
    """The leaf group a name belongs to: its first component, and the container below it.

    >>> group('language_model/layers/mlp/up_proj/weight')
    'language_model/layers'
    >>> group('multi_modal_projector/linear_1/weight')
    'multi_modal_projector'
    """
    parts = name.split("/")
    for depth, component in enumerate(parts):
        if component in CONTAINERS:
            return "/".join(parts[: depth + 1])
    return "/".join(parts[:-2]) or parts[0]


def check_like(tree: Tree, like: Tree, what: str, dtype: Any = None) -> None:
    """Raises InputError, in one message, for every leaf of ``tree`` whose name or shape is not that of ``like``.

    ``what`` names the tree in the message; ``dtype``, if given, is required of every leaf.
    """
    found, expected = flatten(tree), flatten(like)
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{name} is not a leaf of the model" for name in found if name not in expected]
    for name in found.keys() & expected.keys():
        if tuple(found[name].shape) != tuple(expected[name].shape):
            faults.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
        elif dtype is not None and found[name].dtype != dtype:
            faults.append(f"{name} has dtype {found[name].dtype}, expected {np.dtype(dtype)}")
    if faults:
        shown = "; ".join(sorted(faults)[:8]) + ("; ..." if len(faults) > 8 else "")
        raise InputError(
            f"{what} does not fit this model, {len(faults)} leaves differ: {shown}; make it for this model"
        )
