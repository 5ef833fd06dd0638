"""Per-parameter saliency by ``jax.grad``: how much each weight matters to a set of examples.

Works on any pytree of arrays and any ``loss(params, batch)`` that returns a scalar or a pair ``(sum, count)``, whose
quotient is the loss. Scores are float32, accumulated on device inside the jitted step into a donated buffer that is
sharded as the params are; nothing per batch goes to the host.

    params = {'w': jnp.ones(3)}
    loss = lambda params, batch: jnp.mean((batch['x'] @ params['w']) ** 2)
    forget = saliency.scores(loss, params, forget_batches)
    retain = saliency.scores(loss, params, retain_batches)
    mask = masks.ratio(forget, retain)
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, trees

Tree = Any
UNITS = ("example", "batch")
KINDS = {"squared": jnp.square, "absolute": jnp.abs, "signed": lambda g: g}


def _weights(batch: Tree, rows: int) -> jax.Array:
    """1.0 for every row that counts: all of them, or those with any loss weight (padding rows have none)."""
    if isinstance(batch, dict) and "weights" in batch:
        return (batch["weights"].reshape(rows, -1) > 0).any(axis=1).astype(jnp.float32)
    return jnp.ones((rows,), jnp.float32)


def _rows(batch: Tree) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def units(batch: Tree, unit: str = "example") -> float:
    """How many units of evidence a batch holds: 1, or its rows that carry a loss."""
    return 1.0 if unit == "batch" else float(_weights(batch, _rows(batch)).sum())


def accumulator(
    loss: Callable[[Tree, Tree], Any], *, unit: str = "example", kind: str = "squared", chunk: int = 8
) -> Callable[..., tuple[Tree, jax.Array]]:
    """The jitted step ``(total, seen), part, rest, batch, scale -> (total, seen)`` with the first argument donated.

    It adds ``scale * sum over units of g**2`` (or ``|g|``, or ``g``), where ``g`` is the gradient of the loss of one
    row (``unit='example'``: the diagonal of the empirical Fisher) or of the batch (``unit='batch'``: the public
    PyTorch code). Rows are differentiated ``chunk`` at a time, so at most ``chunk`` gradients exist at once.
    """
    if unit not in UNITS or kind not in KINDS:
        raise InputError(f"expected unit in {UNITS} and kind in {tuple(KINDS)}, found {unit!r} and {kind!r}")

    def mean(part, rest, batch):
        value = loss(trees.merge(part, rest), batch)
        if isinstance(value, tuple):
            return value[0] / jnp.maximum(value[1], 1.0)
        return value

    def gradient(part, rest, batch):
        grads = jax.grad(mean)(part, rest, batch)
        return jax.tree.map(lambda g: KINDS[kind](g.astype(jnp.float32)), grads)

    def per_example(total, part, rest, batch, scale):
        rows = _rows(batch)
        width = max(d for d in range(1, min(chunk, rows) + 1) if rows % d == 0)
        chunks = jax.tree.map(lambda x: x.reshape(rows // width, width, 1, *x.shape[1:]), batch)
        weights = _weights(batch, rows).reshape(rows // width, width)

        def body(total, piece):
            piece, weight = piece
            grads = jax.vmap(gradient, in_axes=(None, None, 0))(part, rest, piece)

            def add(t, g):  # a sum, not a product of matrices: it fuses with the squares, which then are never stored
                return t + jnp.sum((scale * weight).reshape(-1, *(1,) * t.ndim) * g, axis=0)

            return jax.tree.map(add, total, grads), None

        total, _ = jax.lax.scan(body, total, (chunks, weights))
        return total, weights.sum()

    def step(state, part, rest, batch, scale):
        total, seen = state
        if unit == "example":
            total, n = per_example(total, part, rest, batch, scale)
            return total, seen + n
        added = gradient(part, rest, batch)
        return jax.tree.map(lambda t, a: t + scale * a, total, added), seen + 1.0

    return jax.jit(step, donate_argnums=0)


def zeros(part: Tree) -> tuple[Tree, jax.Array]:
    """An accumulator at nothing: float32 zeros sharded as ``part``, and no unit seen."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), part), jnp.float32(0.0)


def scores(
    loss: Callable[[Tree, Tree], Any],
    params: Tree,
    batches: Iterable[Tree],
    *,
    leaves: str = ".*",
    unit: str = "example",
    kind: str = "squared",
    chunk: int = 8,
) -> Tree:
    """``F = mean over units of g**2`` at ``params`` (MMUnlearner, arXiv 2502.11051; diagonal empirical Fisher).

    Args:
      loss: ``loss(params, batch)`` -> scalar or ``(sum, count)``.
      params: tree of arrays.
      batches: trees whose arrays have rows on axis 0; equal shapes compile once.
      leaves: pattern of the leaf names to score; no gradient of the others is ever formed.
      unit: ``'example'`` or ``'batch'``.
      kind: ``'squared'``, ``'absolute'``, or ``'signed'`` (mean gradient, then absolute value: SalUn).
      chunk: rows differentiated at once when the unit is the example.
    Returns:
      tree like ``params``, float32, ``None`` where ``leaves`` does not match.
    Raises:
      InputError: no batch, or no row with a loss, or a pattern that matches nothing.
    """
    part, rest = trees.split(params, leaves)
    step, state = accumulator(loss, unit=unit, kind=kind, chunk=chunk), zeros(part)
    for batch in batches:
        state = step(state, part, rest, batch, 1.0)
    total, seen = state
    if float(seen) == 0.0:
        raise InputError("expected at least one example to score, found none; check the split the batches come from")
    finish = jax.jit(lambda t, n: jax.tree.map(lambda x: jnp.abs(x / n) if kind == "signed" else x / n, t))
    return finish(total, seen)


def difference(
    loss: Callable[[Tree, Tree], Any],
    params: Tree,
    forget: Iterable[Tree],
    preserve: Iterable[Tree],
    *,
    tau: float = 1.0,
    leaves: str = ".*",
    unit: str = "example",
    kind: str = "squared",
    chunk: int = 8,
) -> Tree:
    """``F_forget - tau * F_preserve`` in one accumulator: half the memory of two score trees.

    ``masks.sign`` turns it into the mask of ``masks.ratio``. Both are walked twice, once to count units: lists, or
    anything that can be iterated again.
    """
    part, rest = trees.split(params, leaves)
    step, state = accumulator(loss, unit=unit, kind=kind, chunk=chunk), zeros(part)
    for batches, weight, what in ((forget, 1.0, "forget"), (preserve, -tau, "preserve")):
        n = sum(units(batch, unit) for batch in batches)
        if n == 0:
            raise InputError(f"expected at least one {what} example to score, found none; check that split")
        for batch in batches:
            state = step(state, part, rest, batch, weight / n)
    return state[0]
