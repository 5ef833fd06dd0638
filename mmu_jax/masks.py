"""Boolean mask trees: which entries of which parameters may move.

A mask has the structure and shapes of the params it is for, dtype bool, True = may move. Every selection by count is
exact (``selection``).
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, selection, sharding, trees
from mmu_jax.packing import load as load
from mmu_jax.packing import save as save
from mmu_jax.trees import Mask, Params, Scores, Tree

NOISE = 1e-12  # of a squared score, relative to its tensor's largest: fp32 gradients carry 1e-7, squared 1e-14


def _largest(x: jax.Array, layers: bool) -> jax.Array:
    """The largest entry of a tensor, or of each of the layers that it stacks; of the whole of it inside ``jax.shard_map``."""
    largest = x.max(axis=tuple(range(1, x.ndim)) if layers and x.ndim else None, keepdims=True, initial=0.0)
    kind = jax.typeof(largest)
    axes = tuple(getattr(kind, "vma", ())) or tuple(kind.sharding.mesh.manual_axes)
    if not axes:
        return largest
    if layers:  # which layers a shard has is not known here
        raise InputError(
            "expected whole arrays of stacked layers, found a part of one inside jax.shard_map; call masks.ratio and masks.sign "
            "outside it, where arrays are sharded all the same"
        )
    return jax.lax.pmax(largest, axes)


@functools.partial(jax.jit, static_argnames="layers")
def _ratio_leaf(forget, preserve, tau, eps, noise, layers):
    floor = noise * _largest(jnp.maximum(forget, preserve), layers)
    evidence = jnp.maximum(forget, preserve) > floor
    # The product form never divides: (f + eps) / (p + eps) >= tau with p + eps > 0.
    return ((forget + eps) >= tau * (preserve + eps)) & evidence


def ratio(forget: Scores, preserve: Scores, *, tau: float = 1.0, eps: float = 1e-15, noise: float = NOISE) -> Mask:
    """``1[(F_f + eps) / (F_p + eps) >= tau]`` entry by entry (MMUnlearner, arXiv 2502.11051, section 3).

    An entry whose two scores are both at most ``noise`` times the largest score of its tensor (of its layer, where a leaf
    stacks layers: ``trees.stacked``) carries no evidence and is not selected; ``noise=0`` still leaves out entries where both
    are exactly zero.

    >>> ratio({'w': jnp.array([4., 1., 0.])}, {'w': jnp.array([1., 4., 0.])})['w']
    Array([ True, False, False], dtype=bool)

    Args:
      forget, preserve: trees of finite non-negative float32 scores of equal names and shapes, see ``saliency.scores``.
    Raises:
      InputError: names or shapes differ; a score is not finite, negative, or not floating point; or a number is none.
    """
    _check_numbers(tau=tau, eps=eps, noise=noise)
    trees.check_like(preserve, forget, "the preserve score tree")
    trees.check_scores(forget, "the forget scores")
    trees.check_scores(preserve, "the preserve scores")
    preserve = trees.like(preserve, forget)
    return trees.map_named(lambda n, f, p: _ratio_leaf(f, p, tau, eps, noise, trees.stacked(n)), forget, preserve)


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"expected a finite number for {name}, found {value!r}; correct it")


def sign(difference: Scores, *, tau: float = 1.0, eps: float = 1e-15, noise: float = NOISE) -> Mask:
    """The ratio rule read off one accumulator ``F_f - tau * F_p`` (``saliency.difference``).

    ``(F_f + eps) / (F_p + eps) >= tau`` is ``F_f - tau * F_p >= (tau - 1) * eps``. A difference within ``noise`` times
    the largest difference of its tensor, or of its layer, is no evidence and is not selected.

    >>> sign({'w': jnp.array([3., -3., 0.])})['w']
    Array([ True, False, False], dtype=bool)

    Raises:
      InputError: a difference is not finite, or not floating point; or a number is none.
    """
    _check_numbers(tau=tau, eps=eps, noise=noise)
    trees.check_scores(difference, "the difference of scores", signed=True)
    return trees.map_named(lambda n, d: _sign_leaf(d, tau, eps, noise, trees.stacked(n)), difference)


@functools.partial(jax.jit, static_argnames="layers")
def _sign_leaf(d, tau, eps, noise, layers):
    return (d >= (tau - 1.0) * eps) & (jnp.abs(d) > noise * _largest(jnp.abs(d), layers))


def _whole(k: Any, total: int, where: str) -> int:
    """``k`` as a number of entries between 0 and ``total``."""
    try:
        number = None if jnp.result_type(k) == jnp.bool_ else operator.index(k)
    except TypeError:
        number = None
    if number is None:
        raise InputError(
            f"expected k as a number of entries (an int) {where}, found {k!r}; for a fraction of them use masks.salun"
        )
    if not 0 <= number <= total:
        raise InputError(f"expected to select between 0 and {total} entries {where}, found k={number}; choose such a k")
    return number


def _numbers(k: Any, scores: Scores, rows: Callable[[str, Any], int]) -> dict[str, np.ndarray]:
    """Leaf name -> one number of entries for each of its ``rows``, from one number or a tree or dict of them."""
    leaves = trees.flatten(scores)
    named = trees.flatten(k)
    if list(named) == [""]:
        named = dict.fromkeys(leaves, k)
    if named.keys() != leaves.keys():
        odd = sorted(named.keys() ^ leaves.keys())
        raise InputError(
            f"expected a number for every leaf, found {', '.join(odd[:4])} on one side only; name the leaves"
        )
    numbers = {}
    for name, leaf in leaves.items():
        given, n = np.asarray(named[name]), rows(name, leaf)
        if given.shape not in ((), (n,)):
            raise InputError(f"expected {n} numbers at {name!r}, found shape {given.shape}; give one for each layer")
        total = trees.size(leaf) // max(n, 1)
        each = [_whole(x, total, f"of {name!r}") for x in np.broadcast_to(given, (n,))]
        numbers[name] = np.array(each, np.int64)
    return numbers


def _layers(name: str, leaf: Any) -> int:
    """How many layers a leaf holds: the rows of axis 0 where it is stacked."""
    return leaf.shape[0] if trees.stacked(name) and leaf.ndim else 1


def top_k(scores: Scores, k: int | dict[str, int] | Tree, *, scope: str = "global") -> Mask:
    """Exactly the k largest scores, over the whole tree, leaf by leaf, or layer by layer.

    >>> top_k({'a': jnp.array([3., 1.]), 'b': jnp.array([2., 5.])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}

    Args:
      scores: tree of finite non-negative floating point, compared in float32.
      k: how many, an int; with ``scope='leaf'`` one number for every leaf, or a tree like ``scores`` or a dict by leaf
        name of them; with ``scope='layer'`` the same, where a leaf that stacks layers (``trees.stacked``) has one number
        for all of them or an array ``[layers]``, as :func:`layer_counts` gives.
      scope: ``'global'``, ``'leaf'`` or ``'layer'``.
    Raises:
      InputError: k is no such number, or scores are not finite, negative, or not floating point; called inside
        ``jax.jit`` or ``jax.shard_map``, where there are no values to count.
    """
    if scope not in ("global", "leaf", "layer"):
        raise InputError(f"expected scope 'global', 'leaf' or 'layer', found {scope!r}; choose one of the three")
    trees.check_values(scores, "top_k")
    trees.check_scores(scores, "the scores")
    leaves, structure = jax.tree.flatten(scores)
    if scope == "global":
        return structure.unflatten(selection.largest(leaves, _whole(k, trees.size(scores), "of the whole tree")))
    numbers = _numbers(k, scores, _layers if scope == "layer" else lambda name, leaf: 1)
    return trees.map_named(lambda name, leaf: _largest_of(leaf, numbers[name]), scores)


def _largest_of(leaf: jax.Array, counts: np.ndarray) -> jax.Array:
    """The largest of a leaf, or of each of its rows, if there are several numbers."""
    several = len(counts) > 1
    return selection.largest_of_rows(leaf, counts) if several else selection.largest([leaf], int(counts.sum()))[0]


def layer_counts(mask: Mask) -> dict[str, np.ndarray]:
    """Leaf name -> True entries of each layer, int64 ``[layers]`` where the leaf stacks them, ``[1]`` where it does not.

    >>> {name: n.tolist() for name, n in layer_counts({'layers': {'w': jnp.array([[True, True], [False, True]])}}).items()}
    {'layers/w': [2, 1]}
    """
    trees.check_mask(mask, "layer_counts")
    counts = {name: selection.rows(leaf) for name, leaf in trees.flatten(mask).items()}
    return {name: rows if trees.stacked(name) else rows.sum(keepdims=True) for name, rows in counts.items()}


def random(key: jax.Array, mask: Mask) -> Mask:
    """As many True entries in every layer of every leaf as ``mask`` has, at positions drawn from ``key`` (seeded, exact).

    >>> count(random(jax.random.key(0), {'w': jnp.array([True, False, True, False])}))
    2
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape != (2,):
        raise InputError(f"expected a key, jax.random.key(seed), to draw positions from, found {key!r}; make one")
    counts = layer_counts(mask)
    keys = dict(zip(counts, jax.random.split(key, len(counts)), strict=True))
    # 23 random bits as a float in [0, 1) tie now and then; ties go by position, which is harmless.
    return trees.map_named(lambda name, leaf: _largest_of(_uniform(keys[name], leaf), counts[name]), mask)


def _uniform(key: jax.Array, like: jax.Array) -> jax.Array:
    """Float32 in [0, 1) of the shape of ``like``, made where it lies."""
    where = like.sharding if isinstance(like, jax.Array) else None
    return _uniform_program(like.shape, where)(key)


@functools.lru_cache(64)  # leaves of one shape share it
def _uniform_program(shape: tuple[int, ...], where: jax.sharding.Sharding | None) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda key: jax.random.uniform(key, shape), out_shardings=where)


def salun(magnitude: Scores, fraction: float = 0.5) -> Mask:
    """SalUn (arXiv 2310.12508, eq. 4): the global top ``fraction`` of ``|sum of forget gradients|``.

    ``magnitude`` comes from ``saliency.scores(..., kind='signed')``: signed sums first, absolute value last.

    >>> salun({'w': jnp.array([4., 1., 3., 2.])}, 0.5)['w']
    Array([ True, False,  True, False], dtype=bool)
    """
    _check_numbers(fraction=fraction)
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"expected a fraction in (0, 1], found {fraction}; choose one")
    trees.check_arrays(magnitude, "the scores")
    return top_k(magnitude, int(fraction * trees.size(magnitude)))


def _both(first: Mask, second: Mask, rule: Callable) -> Mask:
    trees.check_like(second, first, "the second mask", dtype=jnp.bool_)
    trees.check_like(first, second, "the first mask", dtype=jnp.bool_)
    return jax.tree.map(rule, first, trees.like(second, first))


def union(first: Mask, second: Mask) -> Mask:
    """Entries in either of two masks of equal names and shapes.

    >>> union({'w': jnp.array([True, False])}, {'w': jnp.array([False, False])})['w']
    Array([ True, False], dtype=bool)
    """
    return _both(first, second, jnp.logical_or)


def intersect(first: Mask, second: Mask) -> Mask:
    """Entries in both of two masks of equal names and shapes.

    >>> intersect({'w': jnp.array([True, False])}, {'w': jnp.array([True, True])})['w']
    Array([ True, False], dtype=bool)
    """
    return _both(first, second, jnp.logical_and)


def invert(mask: Mask) -> Mask:
    """Entries that a mask does not have.

    >>> invert({'w': jnp.array([True, False])})['w']
    Array([False,  True], dtype=bool)
    """
    trees.check_bool(mask, "invert")
    return jax.tree.map(jnp.logical_not, mask)


def fill(mask: Mask, params: Params) -> Mask:
    """A mask for all of ``params``: leaves that ``mask`` does not have (None) are False, that is, frozen.

    Integer, bool and PRNG-key params are frozen with them; None in ``params`` (``equinox.partition``) stays None.

    >>> fill({'w': jnp.array([True, False]), 'b': None}, {'w': jnp.zeros(2), 'b': jnp.zeros(1)})
    {'b': Array([False], dtype=bool), 'w': Array([ True, False], dtype=bool)}

    Raises:
      InputError: ``mask`` has leaves that ``params`` do not have, or of another shape; a leaf is not an array.
    """
    trees.check_arrays(params, "the params")
    given, whole = trees.flatten(mask), trees.flatten(params)
    trees.check_like(mask, {name: whole.get(name) for name in given}, "the mask", dtype=jnp.bool_)

    def leaf(name, p):
        return given[name] if name in given else jnp.zeros(p.shape, bool, device=getattr(p, "sharding", None))

    return trees.map_named(leaf, params)


def restrict(mask: Mask, pattern: str) -> Mask:
    """The mask with every leaf whose name ``pattern`` does not match switched off.

    >>> restrict({'w': jnp.array([True]), 'b': jnp.array([True])}, 'w')
    {'b': Array([False], dtype=bool), 'w': Array([ True], dtype=bool)}
    """
    trees.check_bool(mask, "restrict")
    chosen = trees.select(mask, pattern)
    return jax.tree.map(lambda keep, m: m if keep else jnp.zeros_like(m), chosen, mask)


def count(mask: Mask) -> int:
    """True entries over all leaves.

    >>> count({'w': jnp.array([True, False, True])})
    2
    """
    trees.check_mask(mask, "count")
    return sum(int(selection.rows(leaf).sum()) for leaf in jax.tree.leaves(mask))


def coverage(mask: Mask, group=trees.group) -> dict[str, dict[str, float]]:
    """Per leaf group: ``{'selected': entries, 'total': entries, 'density': selected / total}``.

    >>> coverage({'tower': {'fc1': {'weight': jnp.array([True, False, False, False])}}})
    {'tower': {'selected': 1, 'total': 4, 'density': 0.25}}
    """
    table: dict[str, dict[str, float]] = {}
    for name, leaf in trees.flatten(mask).items():
        row = table.setdefault(group(name), {"selected": 0, "total": 0})
        row["selected"] += count(leaf)
        row["total"] += int(np.prod(leaf.shape))
    for row in table.values():
        row["density"] = row["selected"] / max(row["total"], 1)
    return table


def by_layer(mask: Mask) -> dict[str, list[float]]:
    """Leaf name -> density, one value per layer for stacked leaves; leaves with nothing selected are left out.

    >>> by_layer({'layers': {'w': jnp.array([[True, True], [False, True]])}})
    {'layers/w': [1.0, 0.5]}
    """
    table = {}
    for name, leaf in trees.flatten(mask).items():
        if count(leaf):
            axes = tuple(range(1, leaf.ndim)) if trees.stacked(name) else None
            table[name] = np.atleast_1d(sharding.host(jnp.mean(leaf.astype(jnp.float32), axis=axes))).tolist()
    return table


def check(mask: Mask, params: Params) -> None:
    """Refuses a mask that cannot act: other names or shapes than ``params``, nothing selected, or everything.

    >>> check({'w': jnp.array([True, False])}, {'w': jnp.zeros(2)})
    """
    trees.check_like(mask, params, "the mask", dtype=jnp.bool_)
    selected, total = count(mask), trees.size(mask)
    if selected == 0:
        raise InputError("expected a mask that selects something, found none of its entries set; lower tau")
    if selected == total:
        raise InputError(f"expected a mask that restricts something, found all {total} entries set; run without a mask")
