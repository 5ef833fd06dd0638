"""Per-parameter saliency by ``jax.grad``: how much each weight matters to a set of examples.

Works on any pytree of arrays and any ``loss(params, batch)`` that returns a scalar, or a pair of scalars ``(sum, count)``
whose quotient is the loss. **A pair is never (loss, aux)**: its second number says how much the sum is over, and may come
from the batch alone. A second value that is no scalar, or that is computed from the params (a metric), is refused; wrap a
loss with aux as ``lambda params, batch: loss(params, batch)[0]``. Scores are float32, accumulated on device inside the
jitted step into a donated buffer that is sharded as the params are; nothing per batch goes to the host.

    params = {'w': jnp.ones(3)}
    loss = lambda params, batch: jnp.mean((batch['x'] @ params['w']) ** 2)
    forget = saliency.scores(loss, params, forget_batches)
    retain = saliency.scores(loss, params, retain_batches)
    mask = masks.ratio(forget, retain)
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from mmu_jax import InputError, rowwise, scored, trees
from mmu_jax.trees import Batch, Params, Scores, Tree

UNITS = ("example", "batch")
KINDS = {"squared": jnp.square, "absolute": jnp.abs, "signed": lambda g: g}


def counted(batch: Batch) -> jax.Array:
    """1.0 for every row that counts, ``[B]``: all of them, or those with any loss weight in a dict's ``weights`` (padding has none).

    >>> counted({'weights': jnp.array([[0., 1.], [0., 0.]])}).tolist()
    [1.0, 0.0]
    """
    if isinstance(batch, dict) and "weights" in batch:
        weights = batch["weights"]
        return (weights > 0).any(axis=tuple(range(1, weights.ndim))).astype(jnp.float32)
    return jnp.ones((_rows(batch),), jnp.float32)


def _rows(batch: Batch) -> int:
    """The rows of a batch; InputError where its arrays do not agree on one number of at least 1."""
    trees.check_arrays(batch, "a batch")
    rows = {name: leaf.shape[:1] for name, leaf in trees.flatten(batch).items()}
    if len(set(rows.values())) != 1 or not next(iter(rows.values())) or not next(iter(rows.values()))[0]:
        shown = ", ".join(f"{name or 'the array'}: {shape[0] if shape else 'a scalar'}" for name, shape in rows.items())
        raise InputError(
            f"expected batches whose arrays have as many rows on axis 0, at least one, found {shown or 'no array'}; give rows "
            "to every array, or use unit='batch'"
        )
    return next(iter(rows.values()))[0]


def units(batches: Iterable[Batch], unit: str = "example") -> float:
    """How many units of evidence there are: batches, or rows that carry a loss.

    What counts its own, by a method ``units(unit)``, is not walked. One number comes to the host, at the end.

    >>> units([{'x': jnp.ones((4, 2))}, {'x': jnp.ones((2, 2))}]), units([{'x': jnp.ones((4, 2))}], 'batch')
    (6.0, 1.0)
    """
    if hasattr(batches, "units"):
        return float(batches.units(unit))
    return float(sum(1.0 if unit == "batch" else counted(batch).sum() for batch in batches))


def check_batches(batches: Any, what: str = "batches", again: bool = False) -> None:
    """Raises InputError unless ``batches`` are several to walk, ``again`` if need be, and not one batch."""
    if isinstance(batches, dict | str) or not isinstance(batches, Iterable) or hasattr(batches, "shape"):
        raise InputError(
            f"expected {what} as a list of batches, found one {type(batches).__name__}; put it into a list"
        )
    if again and isinstance(batches, Iterator):
        raise InputError(
            f"expected {what} that can be walked twice, found a {type(batches).__name__}, which is spent after one walk; "
            "make a list of it"
        )


def accumulator(
    loss: scored.Scored, *, unit: str = "example", kind: str = "squared", chunk: int = 8
) -> Callable[..., tuple[Tree, jax.Array]]:
    """The jitted step ``(total, seen), part, rest, batch, scale -> (total, seen)`` with the first argument donated.

    It adds ``scale * sum over units of g**2`` (or ``|g|``, or ``g``), where ``g`` is the gradient of the loss of one
    row (``unit='example'``: the diagonal of the empirical Fisher) or of the batch (``unit='batch'``: the public
    PyTorch code). ``scale`` is a number, or a tree of numbers like ``part``. Rows are differentiated ``chunk`` at a time: of
    any loss one by one, so that ``chunk`` gradients exist at once; of ``rowwise.Losses`` by one backward pass, so that one does.

    >>> step = accumulator(lambda p, batch: jnp.mean(batch['x'] @ p['w']))
    >>> part = {'w': jnp.ones(2)}
    >>> total, seen = step(zeros(part), part, {'w': None}, {'x': jnp.array([[1., 2.], [3., 0.]])}, 1.0)
    >>> total['w'].tolist(), float(seen)
    ([10.0, 4.0], 2.0)
    """
    if unit not in UNITS or kind not in KINDS:
        raise InputError(f"expected unit in {UNITS} and kind in {tuple(KINDS)}, found {unit!r} and {kind!r}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"expected chunk as a whole number of rows, at least 1, found {chunk!r}; correct it")

    by_row = isinstance(loss, rowwise.Losses)
    if by_row and unit == "batch":
        raise InputError(
            "expected a loss of the whole batch for unit='batch', found rowwise.Losses, one for every row; give loss(params, batch)"
        )
    summed, inner = _together(loss, kind) if by_row else _one_by_one(scored.mean_of(loss), kind)

    def step(state, part, rest, batch, scale):
        total, seen = state
        scored.check(loss, part, rest, batch)
        if unit == "example":
            rows = _rows(batch)
            width = max(d for d in range(1, min(chunk, rows) + 1) if rows % d == 0)
            weights = counted(batch)
            pieces = _chunks(batch, part, width, inner), _chunks(weights, part, width)

            def body(total, piece):
                return _add(total, summed(part, rest, *piece), scale), None

            return jax.lax.scan(body, total, pieces)[0], seen + weights.sum()
        grads = jax.grad(scored.mean_of(loss))(part, rest, batch)
        return _add(total, jax.tree.map(lambda g: KINDS[kind](g.astype(jnp.float32)), grads), scale), seen + 1.0

    return jax.jit(step, donate_argnums=0)


def _one_by_one(mean: Callable[..., jax.Array], kind: str) -> tuple[Callable[..., Tree], tuple[int, ...]]:
    """``part, rest, rows, weights -> `` the sum over rows that weigh something, each a batch of one; and the axes that make it one."""

    def gradient(part, rest, row):
        grads = jax.grad(mean)(part, rest, row)
        return jax.tree.map(lambda g: KINDS[kind](g.astype(jnp.float32)), grads)

    def summed(part, rest, rows, weights):
        def leaf(g):  # a sum, not a product of matrices: it fuses with the squares, which then are never stored
            return jnp.sum(jnp.where(weights.reshape(-1, *(1,) * (g.ndim - 1)) > 0, g, 0.0), axis=0)

        return jax.tree.map(leaf, jax.vmap(gradient, in_axes=(None, None, 0))(part, rest, rows))

    return summed, (1,)


def _together(losses: rowwise.Losses, kind: str) -> tuple[Callable[..., Tree], tuple[int, ...]]:
    """The same in one backward pass of them all."""

    def summed(part, rest, rows, weights):
        like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), part)
        return rowwise.sums(losses, trees.merge(part, rest), like, rows, kind, weights)

    return summed, ()


def _add(total: Tree, added: Tree, scale: Any) -> Tree:
    """``total + scale * added``; ``scale`` is a number, or a tree of them like ``total``."""
    if jax.tree.structure(scale) != jax.tree.structure(total):
        scale = jax.tree.map(lambda _: scale, total)
    return jax.tree.map(lambda t, a, s: t + s * a, total, added, scale)


def _chunks(rows: Tree, part: Tree, width: int, inner: tuple[int, ...] = ()) -> Tree:
    """Arrays ``[B, ...]`` as ``[B / width, width, *inner, ...]``.

    On a mesh of explicit axes the rows of a chunk lie where those of the batch did, if they can be dealt out evenly and
    the params do not lie along the same axes; otherwise every device has all of them.
    """
    taken = {
        axis for leaf in jax.tree.leaves(part) for entry in jax.typeof(leaf).sharding.spec for axis in _axes(entry)
    }

    def leaf(x):
        where, shape = jax.typeof(x).sharding, (len(x) // width, width, *inner, *x.shape[1:])
        axes = _axes(where.spec[0]) if where.spec else ()
        if not axes:
            return x.reshape(shape)
        fits = width % math.prod(where.mesh.shape[axis] for axis in axes) == 0 and not taken & set(axes)
        spec = PartitionSpec(None, where.spec[0] if fits else None, *(None for _ in inner), *where.spec[1:])
        return jnp.reshape(x, shape, out_sharding=NamedSharding(where.mesh, spec))

    return jax.tree.map(leaf, rows)


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes that one dimension of an array lies along."""
    return entry if isinstance(entry, tuple) else (entry,) if isinstance(entry, str) else ()


def _part(params: Params, leaves: str) -> tuple[Tree, Tree]:
    part, rest = trees.split(params, leaves)
    trees.check_real(part, "the params to score", "leave it out with the pattern `leaves`")
    return part, rest


def zeros(part: Tree) -> tuple[Tree, jax.Array]:
    """An accumulator at nothing: float32 zeros sharded as ``part``, and no unit seen, where every device has it.

    >>> zeros({'w': jnp.ones(2, jnp.bfloat16)})
    ({'w': Array([0., 0.], dtype=float32)}, Array(0., dtype=float32))
    """
    seen, where = jnp.float32(0.0), [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(part)]
    if where and isinstance(where[0], NamedSharding) and not isinstance(where[0].mesh, AbstractMesh):
        seen = jax.device_put(seen, NamedSharding(where[0].mesh, PartitionSpec()))
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), part), seen


def scores(
    loss: scored.Scored,
    params: Params,
    batches: Iterable[Batch],
    *,
    leaves: str = ".*",
    unit: str = "example",
    kind: str = "squared",
    chunk: int = 8,
) -> Scores:
    """``F = mean over units of g**2`` at ``params`` (MMUnlearner, arXiv 2502.11051; diagonal empirical Fisher).

    >>> loss = lambda p, batch: jnp.mean(batch['x'] @ p['w'])
    >>> scores(loss, {'w': jnp.ones(2)}, [{'x': jnp.array([[1., 2.], [3., 0.]])}])['w'].tolist()
    [5.0, 2.0]

    Args:
      loss: ``loss(params, batch)`` -> scalar or ``(sum, count)``, never ``(loss, aux)``; or ``rowwise.Losses``, of which all rows
        are scored in one backward pass.
      params: tree of arrays; those that ``leaves`` matches are real floating point.
      batches: trees whose arrays have rows on axis 0; equal shapes compile once. Of a dict with an array ``weights``
        (loss weights, rows on axis 0), rows whose weights are all 0 are no examples.
      leaves: pattern of the leaf names to score; no gradient of the others is ever formed.
      unit: ``'example'`` or ``'batch'``.
      kind: ``'squared'``, ``'absolute'``, or ``'signed'`` (mean gradient, then absolute value: SalUn).
      chunk: rows differentiated at once when the unit is the example.
    Returns:
      tree like ``params``, float32, ``None`` where ``leaves`` does not match.
    Raises:
      InputError: no batch, or no row with a loss; a pattern that matches nothing, or a leaf that has no gradient; a loss
        that returns something else; or a score that is not finite, with the name of its leaf.
    """
    check_batches(batches)
    part, rest = _part(params, leaves)
    step, state = accumulator(loss, unit=unit, kind=kind, chunk=chunk), zeros(part)
    for batch in batches:
        if unit == "example":
            _rows(batch)
        state = step(state, part, rest, batch, 1.0)
    total, seen = state
    if isinstance(seen, jax.core.Tracer):
        raise InputError(
            "expected arrays with values to score, found tracers; call it outside jax.jit and jax.shard_map"
        )
    if float(seen) == 0.0:
        raise InputError("expected at least one example to score, found none; check the split the batches come from")
    trees.check_scores(total, "the scores of these batches", signed=True)
    where = jax.tree.map(
        lambda p: p.sharding if isinstance(getattr(p, "sharding", None), NamedSharding) else None, part
    )

    def finish(total, seen):
        return jax.tree.map(lambda x: jnp.abs(x / seen) if kind == "signed" else x / seen, total)

    return jax.jit(finish, out_shardings=where)(total, seen)


def difference(
    loss: scored.Scored,
    params: Params,
    forget: Iterable[Batch],
    preserve: Iterable[Batch] | Mapping[str, Sequence[Iterable[Batch]]],
    *,
    tau: float = 1.0,
    leaves: str = ".*",
    unit: str = "example",
    kind: str = "squared",
    chunk: int = 8,
) -> Scores:
    """``F_forget - tau * F_preserve`` in one accumulator: half the memory of two score trees.

    ``masks.sign`` turns it into the mask of ``masks.ratio``. Every set is walked twice, once to count units (:func:`units`):
    lists, or anything that can be iterated again.

    >>> loss = lambda p, batch: jnp.mean(batch['x'] @ p['w'])
    >>> forget, preserve = [{'x': jnp.array([[3., 0.]])}], [{'x': jnp.array([[1., 2.]])}]
    >>> difference(loss, {'w': jnp.ones(2)}, forget, preserve)['w'].tolist()
    [8.0, -4.0]

    Args:
      preserve: batches; or, where leaves are weighed against different sets, a dict from patterns of leaf names (the first that
        matches the whole name) to lists of sets, which are pooled. One pass over each set serves all leaves.
    Raises:
      InputError: as :func:`scores`, with the name of the set; a leaf that no pattern matches.
    """
    sides = preserve if _by_pattern(preserve) else {".*": [preserve]}
    sets = {id(batches): batches for of in sides.values() for batches in of}
    for batches, what in ((forget, "forget"), *((batches, "preserve") for batches in sets.values())):
        check_batches(batches, what, again=True)
    part, rest = _part(params, leaves)
    counts = {key: units(batches, unit) for key, batches in sets.items()}
    against = {name: _pooled(sides, name) for name in trees.flatten(part)}
    for n, what in (
        (units(forget, unit), "forget"),
        *((sum(map(counts.get, of)), "preserve") for of in against.values()),
    ):
        if n == 0:
            raise InputError(f"expected at least one {what} example to score, found none; check that split")

    def weight(name, key):
        return -tau / sum(map(counts.get, against[name])) if key in against[name] else 0.0

    step, state = accumulator(loss, unit=unit, kind=kind, chunk=chunk), zeros(part)
    each = 1.0 / units(forget, unit)
    passes = [(forget, jax.tree.map(lambda _: each, part), "forget")]  # a tree as below: one program for all
    passes += [
        (batches, trees.map_named(lambda name, _, key=key: weight(name, key), part), "preserve")
        for key, batches in sets.items()
    ]
    for batches, scale, what in passes:
        for batch in batches:
            state = step(state, part, rest, batch, scale)
        trees.check_scores(state[0], f"the scores of the {what} set", signed=True)
    return state[0]


def _by_pattern(preserve: Any) -> bool:
    return isinstance(preserve, Mapping) and all(isinstance(sets, list | tuple) for sets in preserve.values())


def _pooled(sides: Mapping[str, Sequence[Iterable[Batch]]], name: str) -> list[int]:
    """The sets, by identity, that a leaf is weighed against."""
    for pattern, sets in sides.items():
        if re.fullmatch(pattern, name):
            return list(dict.fromkeys(id(batches) for batches in sets))
    raise InputError(
        f"expected a pattern of preserve for every leaf, found none for {name!r}; add one, or narrow leaves"
    )
