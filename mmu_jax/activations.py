"""What the neurons of a model do on a set of examples: moments of what its linear weights read, layer by layer, in one pass.

A network contracts every weight by ``rowwise.contract``; a :class:`Tapped` weight contracts as it did, and on the way back hands out
sums of its own input instead of a gradient. No loss is taken, and nothing flows further back.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmu_jax import InputError, saliency, trees
from mmu_jax.models import Model
from mmu_jax.rowwise import contract
from mmu_jax.trees import Batch, Params, Tree

Moments = Tree  # float32 [..., 5, in] where a weight was tapped, None elsewhere: sums of MOMENTS over places
MOMENTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "absolute": jnp.abs,
    "positive": lambda x: x > 0,
    "plain": lambda x: x,
    "square": jnp.square,
    "places": jnp.ones_like,
}
OVER = ("tokens", "answers")


def moments(x: jax.Array, counts: jax.Array) -> jax.Array:
    """``[5, in]``: what :data:`MOMENTS` makes of every number of ``x [R, S, in]``, summed over the places that count, float32.

    >>> moments(jnp.array([[[2.0, -1.0], [9.0, 9.0]]]), jnp.array([[1.0, 0.0]])).tolist()
    [[2.0, 1.0], [1.0, 0.0], [2.0, -1.0], [4.0, 1.0], [1.0, 1.0]]

    Args:
      counts: 1 for places that count, 0 for others, ``[B, S]`` or ``[B, 1]`` for rows as a whole; R is B, or for several images of a
        row a multiple of it.
    """
    x = x.astype(jnp.float32)
    counts = jnp.broadcast_to(jnp.repeat(counts, len(x) // len(counts), axis=0), x.shape[:2])[..., None]
    return jnp.stack([(counts * of(x)).sum(axis=(0, 1)) for of in MOMENTS.values()])


class Tapped(flax.struct.PyTreeNode):
    """A weight ``[..., out, in]`` whose inputs are looked at; stands where the weight stood, and is scanned as it was.

    Attributes:
      total: ``[..., 5, in]``; never read. Its cotangent is what was seen.
      counts: of :func:`moments`, with the leading axes of the weight.
    """

    weight: jax.Array
    total: jax.Array
    counts: jax.Array

    def contract(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """``x [R, S, in] -> [R, S, out]``, as without looking."""
        if x.ndim != 3 or len(x) % len(self.counts) or self.counts.shape[1] not in (1, x.shape[1]):
            raise InputError(
                f"expected [rows, places, inputs] of {list(self.counts.shape)} rows and places in a tapped weight, found "
                f"{list(x.shape)}; tap weights that see every place of every row"
            )
        return _tap(dtype, self.weight, self.total, self.counts, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(dtype, weight, total, counts, x):
    del total, counts
    return contract(weight, x, dtype)


def _forward(dtype, weight, total, counts, x):
    return _tap(dtype, weight, total, counts, x), (counts, x)


def _backward(dtype, kept, cotangent):
    del dtype, cotangent
    counts, x = kept
    return None, moments(x, counts), None, None


_tap.defvjp(_forward, _backward)


def _counts(name: str, batch: Batch, vision: dict[str, bool], over: str) -> jax.Array:
    """Which places of a batch count for a leaf, ``[B, S]`` or ``[B, 1]``: patches that are there on the vision side, tokens elsewhere."""
    rows = saliency.counted(batch)[:, None]
    if vision[name]:
        return rows * (batch["segment"] >= 0) if "segment" in batch else rows
    return rows * ((batch["weights"] > 0) if over == "answers" else batch["valid"])


@lru_cache(4)
def _program(model: Model, leaves: str, over: str) -> Callable[[Params, Batch], Moments]:
    vision = trees.flatten(trees.select(model.abstract(), model.family.sides["vision"]))

    def measured(params, batch):
        part, _ = trees.split(params, leaves)

        def zero(p):
            return jnp.zeros((*p.shape[:-2], len(MOMENTS), p.shape[-1]), jnp.float32)

        def spoken(totals):
            def leaf(name, weight, total):
                if total is None:
                    return weight
                counts = _counts(name, batch, vision, over).astype(jnp.float32)
                return Tapped(weight, total, jnp.broadcast_to(counts, (*weight.shape[:-2], *counts.shape)))

            tapped = trees.map_named(leaf, params, totals)
            first = jnp.zeros((len(batch["tokens"]), 1), jnp.int32)  # no more logits than have to be
            return model.forward(tapped, batch | {"at": first}).astype(jnp.float32).sum()

        return jax.grad(spoken)(jax.tree.map(zero, part))

    return jax.jit(measured)


def each(
    model: Model, params: Params, batches: Iterable[Batch], *, leaves: str, over: str = "tokens"
) -> Iterator[Moments]:
    """The moments of what the weights that ``leaves`` matches read, batch by batch.

    Args:
      batches: as ``mmu_jax.data`` has them, padded on the right; rows without loss weights do not count.
      leaves: pattern of linear weights ``[..., out, in]`` whose inputs are ``[rows, tokens or patches, in]``.
      over: which tokens count on the language side, of :data:`OVER`: all, those of the question and the photo too, or of answers alone.
    Raises:
      InputError: nothing matches, or ``over`` is none.
    """
    if over not in OVER:
        raise InputError(f"expected moments over {' or '.join(OVER)}, found {over!r}; correct it")
    program = _program(model, leaves, over)
    return (program(params, batch) for batch in batches)


@jax.jit
def _sum(first, second):
    return jax.tree.map(jnp.add, first, second)


def total(seen: Iterable[Moments]) -> Moments:
    """The moments of several batches together; nothing per batch goes to the host.

    >>> total([{'w': jnp.ones((5, 1))}, {'w': jnp.ones((5, 1))}])['w'][0].tolist()
    [2.0]

    Raises:
      InputError: there is no batch.
    """
    found: Any = None
    for one in seen:
        found = one if found is None else _sum(found, one)
    if found is None:
        raise InputError("expected at least one batch to look at, found none; check the split the batches come from")
    return found


def means(of: Moments) -> dict[str, Tree]:
    """Moment -> trees of the mean over places, ``[..., in]``; 0 where no place counted (the vision tower, of text).

    >>> means({'w': jnp.array([[6.0], [2.0], [4.0], [12.0], [2.0]])})['square']['w'].tolist()
    [6.0]
    """
    last = len(MOMENTS) - 1

    def mean(index):
        return jax.tree.map(lambda x: x[..., index, :] / jnp.maximum(x[..., last, :], 1.0), of)

    return {name: mean(index) for index, name in enumerate(MOMENTS)}
