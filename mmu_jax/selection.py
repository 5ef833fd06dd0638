"""The k largest of non-negative float32, exactly: by bisection on their bits, which counts and never sorts.

The bits of non-negative floats are ordered as the floats are, so that 31 halvings of an int32 find the k-th largest value;
among those that equal it the first by position are taken. Leaves stay where they lie, on any mesh; only counts per row of
axis 0 come to the host, where they are summed in int64: a stacked leaf has more entries than int32 counts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax.sharding import host

INFINITY = np.int64(np.float32(np.inf).view(np.int32))


def _bits(leaf: jax.Array) -> jax.Array:
    """Of float32, without the sign: minus zero is zero."""
    return jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.int32) & 0x7FFFFFFF


def _column(numbers: jax.Array, leaf: jax.Array) -> jax.Array:
    """One number, or one per row of axis 0, to be compared with the leaf."""
    return jnp.asarray(numbers, jnp.int32).reshape(*numbers.shape, *(1,) * (leaf.ndim - numbers.ndim))


@jax.jit
def _true_per_row(hit):
    return hit.sum(axis=tuple(range(1, hit.ndim)), dtype=jnp.int32) if hit.ndim else hit.astype(jnp.int32)[None]


@jax.jit
def _above_per_row(leaf, threshold):
    return _true_per_row(_bits(leaf) > _column(threshold, leaf))


def rows(mask: jax.Array) -> np.ndarray:
    """True entries of each row of axis 0, int64 on the host.

    >>> rows(jnp.array([[True, True], [False, True]])).tolist()
    [2, 1]
    """
    return host(_true_per_row(mask)).astype(np.int64)


def _above(leaf: jax.Array, threshold: np.ndarray) -> np.ndarray:
    """Entries of each row of axis 0 whose bits are above the threshold (of that row, if there are several)."""
    return host(_above_per_row(leaf, np.asarray(threshold, np.int32))).astype(np.int64)


def _bisect(enough: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The largest thresholds, independent of one another, of which ``enough`` says that still enough are at least it."""
    low, high = np.zeros(shape, np.int64), np.full(shape, INFINITY)
    while np.any(low < high):
        middle = (low + high + 1) // 2
        good = enough(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle - 1)
    return low


def _take(leaf, threshold, spare):
    """Row by row of axis 0, all entries above the threshold and the first ``spare`` (in index order) that equal it."""
    flat = _bits(leaf).reshape(len(spare), leaf.size // max(len(spare), 1))
    equal = flat == threshold[:, None]
    first = jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= spare[:, None]
    return ((flat > threshold[:, None]) | (equal & first)).reshape(leaf.shape)


@jax.jit
def _take_as_it_lies(leaf, threshold, spare):
    where = jax.typeof(leaf).sharding  # on a mesh of explicit axes XLA places what is in between
    explicit = jax.sharding.AxisType.Explicit in where.mesh.axis_types
    take = jax.sharding.auto_axes(_take, out_sharding=where) if explicit else _take
    return take(leaf, threshold, spare)


def _taken(leaf: jax.Array, threshold: np.ndarray, spare: np.ndarray) -> jax.Array:
    mask = _take_as_it_lies(leaf, np.asarray(threshold, np.int32), np.asarray(spare, np.int32))
    return jax.device_put(mask, leaf.sharding) if isinstance(leaf, jax.Array) else mask


def largest(leaves: list[jax.Array], k: int) -> list[jax.Array]:
    """Exactly ``k`` True over all leaves, ``0 <= k <=`` their entries: the largest.

    >>> largest([jnp.array([3., 1.]), jnp.array([2., 5.])], 2)
    [Array([ True, False], dtype=bool), Array([False,  True], dtype=bool)]
    """
    if k == 0:
        return [jnp.zeros_like(leaf, dtype=bool) for leaf in leaves]
    threshold = _bisect(lambda t: np.bool_(sum(_above(leaf, t - 1).sum() for leaf in leaves) >= k), ())
    spare, chosen = k - sum(_above(leaf, threshold).sum() for leaf in leaves), []
    for leaf in leaves:
        equal = _above(leaf, threshold - 1) - _above(leaf, threshold)
        taken = np.clip(spare - (np.cumsum(equal) - equal), 0, equal)
        chosen.append(_taken(leaf, np.full(len(equal), threshold), taken))
        spare -= taken.sum()
    return chosen


def largest_of_rows(leaf: jax.Array, counts: np.ndarray) -> jax.Array:
    """Exactly ``counts[i]`` True in row i of axis 0: the largest of the row.

    >>> largest_of_rows(jnp.array([[3., 1.], [2., 5.]]), np.array([1, 2])).tolist()
    [[True, False], [True, True]]
    """
    # Where nothing is asked for everything is enough: the threshold ends at infinity, above every score.
    threshold = _bisect(lambda t: _above(leaf, t - 1) >= counts, counts.shape)
    return _taken(leaf, threshold, counts - _above(leaf, threshold))
