"""Whether an optimizer can be restricted: it keeps its statistics entry by entry, or not at all.

What it keeps from one step to the next must have the shape of the params or not depend on gradients and params. That is
read off the data flow of its ``update``, not off names. ``transforms.masked`` asks it at ``init``.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, trees
from mmu_jax.trees import Params, Tree


def by_path(tree: Tree) -> dict[tuple, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def copies_of(state: Tree, params: Params) -> dict[tuple, tuple]:
    """Path of a leaf of an optimizer state -> path of the param it belongs to and has the shape of.

    A subtree of the state is a copy of the params, or of part of them (``optax.masked``, ``optax.partition``), if every
    leaf below it is at the path of a param.
    """
    own, leaves = by_path(params), by_path(state)
    foreign = {path[:cut] for path in leaves for cut in range(len(path) + 1) if path[cut:] not in own}
    found = {}
    for path, leaf in leaves.items():
        cut = next((cut for cut in range(len(path) + 1) if path[:cut] not in foreign), None)
        if cut is not None and jnp.shape(leaf) == jnp.shape(own[path[cut:]]):
            found[path] = path[cut:]
    return found


def check(inner: optax.GradientTransformationExtraArgs, state: Tree, params: Params) -> None:
    """Refuses an optimizer that keeps statistics of several entries in one number, by what its numbers come from."""
    (updates, after), sources = _dataflow(inner, state, params)
    shapes = [{path: jnp.shape(leaf) for path, leaf in by_path(tree).items()} for tree in (updates, params)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expected an optimizer whose updates have the shapes of the params, found {_kinds(state)} which makes "
            "something else of gradients; use one that works with a mask, listed in transforms.masked"
        )
    copies, width, leaves = copies_of(state, params), len(jax.tree.leaves(params)), by_path(state)
    outputs = [None] * width + list(by_path(after))  # paths in the state; an update has none
    inputs = [None] * width + list(leaves) + [None] * width
    of_entries = [path is None or path in copies for path in inputs]

    def mixes(path):  # a number that comes from entries and that a later step feels: what only looks on is no harm
        comes_from = sources([output == path for output in outputs])
        goes_on = sources([output is None or (output in leaves and output != path) for output in outputs])
        return goes_on[inputs.index(path)] and any(used and of for used, of in zip(comes_from, of_entries, strict=True))

    for path, leaf in leaves.items():
        if path not in copies and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and mixes(path):
            place = " > ".join(f"{kind}.{field}" for kind, field in _owners(state, path))
            raise InputError(
                f"expected an optimizer that keeps its statistics entry by entry, found {place or 'a state'} of shape "
                f"{jnp.shape(leaf)}, which mixes entries that a mask keeps apart; use one that works with a mask, listed "
                "in transforms.masked"
            )


def _dataflow(inner, state, params):
    """:func:`trees.dataflow` of ``inner.update`` over the leaves of (updates, state, params)."""
    faults = []
    for extra in ({}, {"value": 1.0}):

        def update(updates, state, params, extra=extra):
            return inner.update(updates, state, params, **extra)

        try:
            return trees.dataflow(update, params, state, params)
        except (
            ValueError,
            AttributeError,
        ) as error:  # optax's own: of these shapes, of params that are no LookaheadParams
            faults.append((" ".join(str(error).split()), error))
        except TypeError as error:  # Python's: "transformation() missing 1 required keyword-only argument: 'value_fn'"
            if not re.search("required keyword-only argument|unexpected keyword argument 'value'", str(error)):
                raise
            faults.append((str(error).replace(".<locals>.update_fn", ""), error))
    fault, error = faults[0] if "unexpected keyword" in faults[1][0] else faults[1]
    raise InputError(
        "expected an optimizer that steps from gradients and params (a value besides, at most), found "
        f"{_kinds(state)} which does not: {fault}; use one that works with a mask, listed in transforms.masked"
    ) from error


def _kinds(state: Tree) -> str:
    names = dict.fromkeys(kind for path in by_path(state) for kind, _ in _owners(state, path))
    return ", ".join(names) or "one without a state"


def _owners(state: Tree, path: tuple) -> list[tuple[str, str]]:
    """The named states on the way to a leaf, outermost first, each with its field that leads there."""
    owners, node = [], state
    for key in path:
        if hasattr(node, "_fields"):
            owners.append((type(node).__name__, key.name))
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            break
    return owners
