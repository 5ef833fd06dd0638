"""Named leaves: the vocabulary every other module uses.

A *tree* is any pytree of arrays: a plain dict, Flax Linen params, a Flax NNX state. A leaf's *name* is its path
joined by slashes, ``'language_model/layers/mlp/up_proj/weight'``. The box that Flax puts around an array (an NNX
Variable, a Linen Partitioned) is no part of the name: ``'linear/kernel'``. A leaf that is absent is ``None``, which JAX
treats as an empty subtree, so a part of a tree (``equinox.partition``) keeps the structure of the whole.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from jax.typing import DTypeLike

from mmu_jax import InputError

Tree = Any  # any pytree of arrays
# Trees by what their leaves are, for signatures; the structure is that of the params.
Params = Tree  # floating point, what a model is made of
Updates = Tree  # floating point, what a step adds to the params, and gradients on their way there
Mask = Tree  # bool: True where an entry may move
Scores = Tree  # float32 of at least 0: how much an entry matters
Batch = dict[str, Any]  # arrays with rows on axis 0 (``mmu_jax.data``)


@functools.cache
def _boxes_arrays(kind: type) -> bool:
    """Whether instances of ``kind`` are Flax's boxes; by name, so that trees of others need no Flax."""
    return any(c.__module__.startswith("flax.") and c.__name__ in ("Variable", "AxisMetadata") for c in kind.__mro__)


def _boxed(node: Any) -> bool:
    return _boxes_arrays(type(node))


def _named(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """(name, leaf) in tree order: path components joined by slashes, without the attribute in which a box keeps its array."""
    boxes = {path for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_boxed) if _boxed(node)}

    def name(path):
        kept = tuple(key for depth, key in enumerate(path) if path[:depth] not in boxes) if boxes else path
        return jax.tree_util.keystr(kept, simple=True, separator="/")

    return [(name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by name, in tree order; ``is_leaf`` as in ``jax.tree.map``.

    >>> flatten({'a': {'b': 1}, 'c': 2})
    {'a/b': 1, 'c': 2}

    Raises:
      InputError: two leaves have one name (the keys ``'a/b'`` and ``'a'`` above ``'b'``, the keys 1 and ``'1'``).
    """
    named, leaves = _named(tree, is_leaf), {}
    for name, leaf in named:
        if name in leaves:
            raise InputError(f"expected a name for every leaf, found two leaves named {name!r}; rename a key")
        leaves[name] = leaf
    return leaves


def map_named(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """``jax.tree.map`` whose function receives the leaf's name first.

    >>> map_named(lambda name, leaf: f'{name}={leaf}', {'a': {'b': 1}})
    {'a': {'b': 'a/b=1'}}
    """
    structure = jax.tree.structure(tree)
    others = zip(*(structure.flatten_up_to(other) for other in rest), strict=True) if rest else None
    return structure.unflatten(fn(name, leaf, *(next(others) if others else ())) for name, leaf in _named(tree))


def select(tree: Tree, pattern: str) -> Tree:
    """A tree of Python bools: True where ``pattern`` matches the whole leaf name (``re.fullmatch``).

    >>> select({'a': {'weight': 1, 'bias': 2}}, r'.*weight')
    {'a': {'bias': False, 'weight': True}}

    Raises:
      InputError: no leaf matches, and the message lists the names there are; or the pattern is none.
    """
    try:
        matches = re.compile(pattern).fullmatch
    except (re.error, TypeError) as error:
        raise InputError(
            f"expected a regular expression of leaf names, found {pattern!r} ({error}); correct it"
        ) from error
    chosen = map_named(lambda name, _: matches(name) is not None, tree)
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

    >>> split({'w': 1, 'b': 2}, 'w')
    ({'b': None, 'w': 1}, {'b': 2, 'w': None})
    """
    chosen = select(tree, pattern)
    matching = jax.tree.map(lambda keep, leaf: leaf if keep else None, chosen, tree)
    rest = jax.tree.map(lambda keep, leaf: None if keep else leaf, chosen, tree)
    return matching, rest


def merge(first: Tree, second: Tree) -> Tree:
    """Inverse of :func:`split`: the leaf of ``first``, and of ``second`` where ``first`` has None.

    >>> merge({'w': 1, 'b': None}, {'w': None, 'b': 2})
    {'b': 2, 'w': 1}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None)


def part(tree: Tree, like: Tree) -> Tree:
    """The leaves of ``tree`` that are not None in ``like`` (two trees of one structure up to None).

    >>> part({'w': 1, 'b': 2}, {'w': 'any', 'b': None})
    {'b': None, 'w': 1}
    """
    return jax.tree.map(lambda keep, leaf: None if keep is None else leaf, like, tree, is_leaf=lambda x: x is None)


def like(tree: Tree, other: Tree) -> Tree:
    """``tree`` in the structure of ``other``, leaf by leaf of one name: a dict for an NNX state and the reverse.

    >>> like({'b': 2, 'a': 1}, {'a': 'x', 'b': 'y'})
    {'a': 1, 'b': 2}
    """
    leaves = flatten(tree)
    return map_named(lambda name, _: leaves[name], other)


def size(tree: Tree) -> int:
    """Number of entries over all leaves.

    >>> size({'w': jnp.zeros((2, 3)), 'b': jnp.zeros(3)})
    9
    """
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """Bytes over all leaves (arrays or ``jax.ShapeDtypeStruct``).

    >>> nbytes({'w': jnp.zeros((2, 3), jnp.bfloat16)})
    12
    """
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def fingerprint(tree: Tree) -> str:
    """By which a tree is known: 16 hexadecimal digits of its names, its shapes and its numbers as bfloat16 has them.

    So a checkpoint is the same model in whatever dtype it is held, on every mesh; nothing but a number a leaf comes to the
    host. It guards against a mistake, not against a forger.

    >>> fingerprint({'w': jnp.ones(2)}) == fingerprint({'w': jnp.ones(2, jnp.bfloat16)}) != fingerprint({'w': jnp.zeros(2)})
    True
    """
    check_real(tree, "the tree to know again", "leave it out")
    leaves = flatten(tree)
    sums = jax.device_get(_checksums(list(leaves.values())))
    told = sorted((name, tuple(x.shape), int(n)) for (name, x), n in zip(leaves.items(), sums, strict=True))
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


@jax.jit
def _checksums(leaves):  # one program: CPU devices that wait for one another in many at once may wait for ever
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf):
    """A sum modulo 2**32 in which every entry and its place take part: in any order, so on any mesh, the same."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    mixed = (bits + 1) * ((2 * place + 1) * jnp.uint32(2654435761) | 1)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


CONTAINERS = ("layers", "blocks")


def stacked(name: str) -> bool:
    """Whether axis 0 of the leaf counts layers: it lies in a container of layers that is not itself a list of them.

    >>> stacked('model/layers/mlp/weight'), stacked('model/layers/0/mlp/weight')
    (True, False)
    """
    parts = name.split("/")
    return any(part in CONTAINERS and not below.isdigit() for part, below in zip(parts, parts[1:] + [""], strict=True))


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


def check_like(tree: Tree, like: Tree, what: str, dtype: DTypeLike | None = None) -> None:
    """Raises InputError, in one message, for every leaf of ``tree`` whose name or shape is not that of ``like``.

    ``what`` names the tree in the message; ``dtype``, if given, is required of every leaf.
    """
    check_arrays(tree, what)
    check_arrays(like, f"what {what} is for")
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


def check_arrays(tree: Tree, what: str) -> None:
    """Raises InputError naming the first leaf of ``tree`` that is no array: a function, a string, a Python number."""
    for name, leaf in flatten(tree).items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise InputError(
                f"{what}: expected arrays, found {type(leaf).__name__} at {name!r}; give the part of the tree that is "
                "arrays, with None elsewhere"
            )


def check_real(tree: Tree, what: str, advice: str) -> None:
    """Raises InputError naming the first leaf that is not of real floating point: integer, bool, complex, PRNG key."""
    check_arrays(tree, what)
    for name, leaf in flatten(tree).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(f"{what}: expected real floating point, found {leaf.dtype} at {name!r}; {advice}")


@functools.partial(jax.jit, static_argnames="signed")
def _sound(leaves, signed):
    return [jnp.isfinite(x).all() & (signed or (x >= 0).all()) for x in leaves]


def check_scores(tree: Tree, what: str, *, signed: bool = False) -> None:
    """Raises InputError naming the leaves that hold a NaN, an infinity or (unless ``signed``) a negative number.

    One pass over each leaf where it lies; nothing but a bool per leaf comes to the host. Inside ``jax.jit`` and
    ``jax.shard_map`` there are no values to judge, and only what is known of the leaves (arrays, real) is.
    """
    check_real(tree, what, "score floating point leaves only")
    leaves = flatten(tree)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves.values()):
        return
    sound = jax.device_get(_sound(list(leaves.values()), signed))
    bad = [name for name, good in zip(leaves, sound, strict=True) if not good]
    if bad:
        expected = "finite scores" if signed else "finite scores that are not negative"
        shown = ", ".join(bad[:4]) + (", ..." if len(bad) > 4 else "")
        raise InputError(
            f"{what}: expected {expected}, found others in {len(bad)} of {len(leaves)} leaves ({shown}); look for the "
            "examples or weights that make the loss overflow"
        )


def check_values(tree: Tree, what: str) -> None:
    """Raises InputError, speaking of ``masks.what``, unless the leaves are arrays with values."""
    check_arrays(tree, what)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise InputError(
            f"expected arrays with values in masks.{what}, found tracers; call it outside jax.jit and jax.shard_map"
        )


def check_mask(mask: Tree, what: str) -> None:
    """The same, of a tree of bool."""
    check_values(mask, what)
    check_bool(mask, what)


def check_bool(mask: Tree, what: str) -> None:
    """The same, of a tree of bool whose values are not looked at."""
    check_arrays(mask, what)
    for name, leaf in flatten(mask).items():
        if leaf.dtype != jnp.bool_:
            raise InputError(f"expected a mask of bool in masks.{what}, found {leaf.dtype} at {name!r}; compare first")


def dataflow(fn: Callable[..., Tree], *args: Tree) -> tuple[Tree, Callable[[Sequence[bool]], list[bool]]]:
    """The shapes of ``fn(*args)``, and a function from marked leaves of it to those leaves of ``args`` they come from.

    ``fn`` is traced once and not run. Where JAX cannot look inside an operation, all it reads counts as used.

    >>> _, reads = dataflow(lambda x, y: (x + 1, y), jnp.ones(2), jnp.ones(2))
    >>> reads([True, False])
    [True, False]
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return shapes, lambda marked: list(partial_eval.dce_jaxpr(closed.jaxpr, list(marked))[1])
