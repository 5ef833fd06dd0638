"""Boolean mask trees: which entries of which parameters may move.

A mask has the structure and shapes of the params it is for, dtype bool, True = may move. Every selection by count is
exact: the k-th largest value is found by bisection on the bit pattern of float32, which counts and never sorts.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, trees

Tree = Any
NOISE = 1e-12  # of a squared score, relative to its tensor's largest: fp32 gradients carry 1e-7, squared 1e-14


@jax.jit
def _ratio_leaf(forget, preserve, tau, eps, noise):
    floor = noise * jnp.maximum(forget.max(), preserve.max())
    evidence = jnp.maximum(forget, preserve) > floor
    # The product form never divides: (f + eps) / (p + eps) >= tau with p + eps > 0.
    return ((forget + eps) >= tau * (preserve + eps)) & evidence


def ratio(forget: Tree, preserve: Tree, *, tau: float = 1.0, eps: float = 1e-15, noise: float = NOISE) -> Tree:
    """``1[(F_f + eps) / (F_p + eps) >= tau]`` entry by entry (MMUnlearner, arXiv 2502.11051, section 3).

    An entry whose two scores are both at most ``noise`` times the largest score of its tensor carries no evidence and
    is not selected; ``noise=0`` still leaves out entries where both are exactly zero.

    >>> ratio({'w': jnp.array([4., 1., 0.])}, {'w': jnp.array([1., 4., 0.])})['w']
    Array([ True, False, False], dtype=bool)

    Args:
      forget, preserve: trees of non-negative float32 scores of equal structure, see ``saliency.scores``.
    """
    trees.check_like(preserve, forget, "the preserve score tree")
    return jax.tree.map(lambda f, p: _ratio_leaf(f, p, tau, eps, noise), forget, preserve)


def sign(difference: Tree, *, tau: float = 1.0, eps: float = 1e-15, noise: float = NOISE) -> Tree:
    """The ratio rule read off one accumulator ``F_f - tau * F_p`` (``saliency.difference``).

    ``(F_f + eps) / (F_p + eps) >= tau`` is ``F_f - tau * F_p >= (tau - 1) * eps``. A difference within ``noise`` times
    the largest difference of its tensor is no evidence and is not selected.
    """

    @jax.jit
    def leaf(d):
        return (d >= (tau - 1.0) * eps) & (jnp.abs(d) > noise * jnp.abs(d).max())

    return jax.tree.map(leaf, difference)


def _count(leaves, threshold_bits, strict):
    """Entries whose bits are above (or at least) the threshold; a count per leading row, summed in int64 on host."""
    total = 0
    for leaf in leaves:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.int32)
        hit = bits > threshold_bits if strict else bits >= threshold_bits
        rows = hit.reshape(hit.shape[0], -1).sum(axis=1, dtype=jnp.int32) if hit.ndim else hit.astype(jnp.int32)[None]
        total += np.asarray(rows, dtype=np.int64).sum()
    return int(total)


def _take_ties(leaf, bits, keep):
    """All entries above ``bits`` and the first ``keep`` (in index order) that equal it."""
    own = jax.lax.bitcast_convert_type(leaf, jnp.int32)
    rows = own.reshape(own.shape[0] if own.ndim > 1 else 1, -1)
    equal = rows == bits
    # Counted row by row, on the host in int64: a stacked leaf has more entries than int32 counts.
    per_row = np.asarray(equal.sum(axis=1, dtype=jnp.int32), np.int64)
    spare = np.clip(keep - (np.cumsum(per_row) - per_row), 0, per_row).astype(np.int32)
    order = jnp.cumsum(equal.astype(jnp.int32), axis=1)
    return ((rows > bits) | (equal & (order <= spare[:, None]))).reshape(own.shape)


def _largest(leaves: list[jax.Array], k: int) -> list[jax.Array]:
    """Exactly k True over all leaves: the k largest non-negative float32, ties broken by position."""
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    if not 0 <= k <= total:
        raise InputError(f"expected to select between 0 and {total} entries, found k={k}; choose a smaller k")
    if k == 0:
        return [jnp.zeros(leaf.shape, bool) for leaf in leaves]
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]
    low, high = 0, int(np.float32(np.inf).view(np.int32))  # invariant: count(>= low) >= k, count(>= high + 1) < k
    while low < high:  # 31 halvings: the bits of non-negative floats are ordered as the floats are
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _count(leaves, middle, strict=False) >= k else (low, middle - 1)
    spare = k - _count(leaves, low, strict=True)
    chosen = []
    for leaf in leaves:
        chosen.append(_take_ties(leaf, low, spare))
        spare -= min(spare, _count([leaf], low, strict=False) - _count([leaf], low, strict=True))
    return chosen


def top_k(scores: Tree, k: int | dict[str, int], *, scope: str = "global") -> Tree:
    """Exactly the k largest scores, over the whole tree or leaf by leaf.

    >>> top_k({'a': jnp.array([3., 1.]), 'b': jnp.array([2., 5.])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}

    Args:
      scores: tree of non-negative float32.
      k: how many; with ``scope='leaf'`` one number for every leaf or a dict of leaf name to number.
      scope: ``'global'`` or ``'leaf'``.
    """
    leaves, structure = jax.tree.flatten(scores)
    if scope == "global":
        return structure.unflatten(_largest(leaves, k))
    if scope != "leaf":
        raise InputError(f"expected scope 'global' or 'leaf', found {scope!r}; choose one of the two")
    names = list(trees.flatten(scores))
    counts = [k[name] if isinstance(k, dict) else k for name in names]
    return structure.unflatten([_largest([leaf], n)[0] for leaf, n in zip(leaves, counts, strict=True)])


def random(key: jax.Array, mask: Tree) -> Tree:
    """As many True entries in every leaf as ``mask`` has, at positions drawn from ``key`` (seeded, exact)."""
    leaves, structure = jax.tree.flatten(mask)
    keys = jax.random.split(key, len(leaves))
    # 23 random bits as a float in [0, 1) tie now and then; ties go by position, which is harmless.
    drawn = [_largest([jax.random.uniform(k, m.shape)], int(count(m))) for k, m in zip(keys, leaves, strict=True)]
    return structure.unflatten([d[0] for d in drawn])


def salun(magnitude: Tree, fraction: float = 0.5) -> Tree:
    """SalUn (arXiv 2310.12508, eq. 4): the global top ``fraction`` of ``|sum of forget gradients|``.

    ``magnitude`` comes from ``saliency.scores(..., kind='signed')``: signed sums first, absolute value last.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"expected a fraction in (0, 1], found {fraction}; choose one")
    return top_k(magnitude, int(fraction * trees.size(magnitude)))


def union(first: Tree, second: Tree) -> Tree:
    return jax.tree.map(jnp.logical_or, first, second)


def intersect(first: Tree, second: Tree) -> Tree:
    return jax.tree.map(jnp.logical_and, first, second)


def invert(mask: Tree) -> Tree:
    return jax.tree.map(jnp.logical_not, mask)


def fill(mask: Tree, params: Tree) -> Tree:
    """A mask for all of ``params``: leaves that ``mask`` does not have (None) are False, that is, frozen."""

    def leaf(m, p):
        return jnp.zeros(p.shape, bool, device=getattr(p, "sharding", None)) if m is None else m

    return jax.tree.map(leaf, mask, params, is_leaf=lambda x: x is None)


def restrict(mask: Tree, pattern: str) -> Tree:
    """The mask with every leaf whose name ``pattern`` does not match switched off."""
    chosen = trees.select(mask, pattern)
    return jax.tree.map(lambda keep, m: m if keep else jnp.zeros_like(m), chosen, mask)


def count(mask: Tree) -> int:
    """True entries over all leaves."""
    total = 0
    for leaf in jax.tree.leaves(mask):
        rows = leaf.reshape(leaf.shape[0], -1).sum(axis=1, dtype=jnp.int32) if leaf.ndim else leaf.astype(jnp.int32)
        total += int(np.asarray(rows, dtype=np.int64).sum())
    return total


def coverage(mask: Tree, group=trees.group) -> dict[str, dict[str, float]]:
    """Per leaf group: ``{'selected': entries, 'total': entries, 'density': selected / total}``."""
    table: dict[str, dict[str, float]] = {}
    for name, leaf in trees.flatten(mask).items():
        row = table.setdefault(group(name), {"selected": 0, "total": 0})
        row["selected"] += count(leaf)
        row["total"] += int(np.prod(leaf.shape))
    for row in table.values():
        row["density"] = row["selected"] / row["total"]
    return table


def by_layer(mask: Tree) -> dict[str, list[float]]:
    """Leaf name -> density, one value per layer for stacked leaves; leaves with nothing selected are left out."""
    table = {}
    for name, leaf in trees.flatten(mask).items():
        if count(leaf):
            axes = tuple(range(1, leaf.ndim)) if trees.stacked(name) else None
            table[name] = np.atleast_1d(np.asarray(jnp.mean(leaf.astype(jnp.float32), axis=axes))).tolist()
    return table


def check(mask: Tree, params: Tree) -> None:
    """Refuses a mask that cannot act: other names or shapes than ``params``, nothing selected, or everything."""
    trees.check_like(mask, params, "the mask", dtype=jnp.bool_)
    selected, total = count(mask), trees.size(mask)
    if selected == 0:
        raise InputError("expected a mask that selects something, found none of its entries set; lower tau")
    if selected == total:
        raise InputError(f"expected a mask that restricts something, found all {total} entries set; run without a mask")


def save(path: str | pathlib.Path, mask: Tree) -> None:
    """Writes ``mask`` bit-packed: one safetensors file, ``ceil(n / 8)`` bytes of bits and a header of names and shapes."""
    from safetensors.numpy import save_file

    leaves = trees.flatten(mask)
    shapes = {name: list(leaf.shape) for name, leaf in leaves.items()}
    total = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
    packed, start = np.zeros(-(-total // 8), np.uint8), 0
    for leaf in leaves.values():  # leaf by leaf, so that the host never holds a byte for every bit of the whole
        flat = np.asarray(leaf).reshape(-1)
        shift = start % 8
        bits = np.packbits(np.concatenate([np.zeros(shift, bool), flat]))
        packed[start // 8 : start // 8 + len(bits)] |= bits
        start += len(flat)
    # One key of metadata: safetensors writes several in no fixed order, and the same mask should be the same bytes.
    save_file({"bits": packed}, str(path), metadata={"mmu_jax.mask": json.dumps(shapes)})


def load(path: str | pathlib.Path, params: Tree) -> Tree:
    """Reads a mask written by :func:`save` for ``params``, with their structure and sharding.

    Raises:
      InputError: the file is not a mask, or its names or shapes are not those of ``params``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            meta, bits = file.metadata() or {}, file.get_tensor("bits") if "bits" in file.keys() else None
    except SafetensorError as error:
        raise InputError(
            f"expected a mask file, found {path} which is damaged ({error}); make the mask again"
        ) from error
    if bits is None or "mmu_jax.mask" not in meta:
        raise InputError(f"expected a file written by masks.save, found {path} which is not; give it the mask's path")
    shapes = json.loads(meta["mmu_jax.mask"])
    stored = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.bool_) for name, shape in shapes.items()}
    trees.check_like(stored, trees.flatten(params), f"the mask {path}")
    offsets = dict(zip(shapes, np.cumsum([0] + [int(np.prod(s)) for s in shapes.values()]), strict=False))

    def leaf(name, p):
        start, n = int(offsets[name]), int(np.prod(p.shape))
        part = np.unpackbits(bits[start // 8 : -(-(start + n) // 8)])[start % 8 : start % 8 + n]
        return jax.device_put(part.view(bool).reshape(p.shape), getattr(p, "sharding", None))

    return trees.map_named(leaf, params)
