"""What the neurons of a model do on a set of examples: moments and Grams of what its linear weights read, layer by layer, in one pass.

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
from mmu_jax.factor import along_inputs
from mmu_jax.models import Model
from mmu_jax.rowwise import contract
from mmu_jax.trees import Batch, Params, Tree

Moments = Tree  # float32 [..., 5, in] where a weight was tapped, None elsewhere: sums of MOMENTS over places
Grams = Tree  # float32 [..., in, in] there: sums of products of two inputs over places
MOMENTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "absolute": jnp.abs,
    "positive": lambda x: x > 0,
    "plain": lambda x: x,
    "square": jnp.square,
    "places": jnp.ones_like,
}
OVER = ("tokens", "answers")


def _places(x: jax.Array, counts: jax.Array) -> jax.Array:
    """``counts [B, S]``, ``[B, k S]`` where k patches were merged, or ``[B, 1]``, as ``[R, S, 1]`` for ``x [R, S, in]``."""
    if counts.shape[1] > x.shape[1]:
        counts = counts.reshape(len(counts), x.shape[1], -1).max(axis=-1)
    return jnp.broadcast_to(jnp.repeat(counts, len(x) // len(counts), axis=0), x.shape[:2])[..., None]


def moments(x: jax.Array, counts: jax.Array) -> jax.Array:
    """``[5, in]``: what :data:`MOMENTS` makes of every number of ``x [R, S, in]``, summed over the places that count, float32.

    >>> moments(jnp.array([[[2.0, -1.0], [9.0, 9.0]]]), jnp.array([[1.0, 0.0]])).tolist()
    [[2.0, 1.0], [1.0, 0.0], [2.0, -1.0], [4.0, 1.0], [1.0, 1.0]]

    Args:
      counts: 1 for places that count, 0 for others, ``[B, S]``, ``[B, k S]`` where k patches were merged into one, or ``[B, 1]`` for
        rows as a whole; R is B, or for several images of a row a multiple of it.
    """
    x, counts = x.astype(jnp.float32), _places(x, counts)
    return jnp.stack([(counts * of(x)).sum(axis=(0, 1)) for of in MOMENTS.values()])


def gram(x: jax.Array, counts: jax.Array) -> jax.Array:
    """``[in, in]``: ``sum x x^T`` of ``x [R, S, in]`` over the places that count, as :func:`moments` has them, float32.

    >>> gram(jnp.array([[[2.0, -1.0], [9.0, 9.0]]]), jnp.array([[1.0, 0.0]])).tolist()
    [[4.0, -2.0], [-2.0, 1.0]]
    """
    x = x.astype(jnp.float32)
    return jnp.einsum("rsi,rsj->ij", _places(x, counts) * x, x, precision=jax.lax.Precision.HIGHEST)


# What is seen: how, and the shape of it for so many inputs.
KINDS: dict[str, tuple[Callable[[jax.Array, jax.Array], jax.Array], Callable[[int], tuple[int, int]]]] = {
    "moments": (moments, lambda inputs: (len(MOMENTS), inputs)),
    "grams": (gram, lambda inputs: (inputs, inputs)),
}


class Tapped(flax.struct.PyTreeNode):
    """A weight ``[..., out, in]`` whose inputs are looked at; stands where the weight stood, and is scanned as it was.

    Attributes:
      total: ``[..., 5, in]`` or ``[..., in, in]``; never read. Its cotangent is what was seen.
      counts: of :func:`moments`, with the leading axes of the weight.
      kind: one of :data:`KINDS`.
    """

    weight: jax.Array
    total: jax.Array
    counts: jax.Array
    kind: str = flax.struct.field(pytree_node=False)

    def contract(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """``x [R, S, in] -> [R, S, out]``, as without looking."""
        if x.ndim != 3 or len(x) % len(self.counts) or self.counts.shape[1] != 1 and self.counts.shape[1] % x.shape[1]:
            raise InputError(
                f"expected [rows, places, inputs] of {list(self.counts.shape)} rows and places in a tapped weight, found "
                f"{list(x.shape)}; tap weights that see every place of every row"
            )
        return _tap(dtype, self.kind, self.weight, self.total, self.counts, x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tap(dtype, kind, weight, total, counts, x):
    del kind, total, counts
    return contract(weight, x, dtype)


def _forward(dtype, kind, weight, total, counts, x):
    return _tap(dtype, kind, weight, total, counts, x), (counts, x)


def _backward(dtype, kind, kept, cotangent):
    del dtype, cotangent
    counts, x = kept
    return None, KINDS[kind][0](x, counts), None, None


_tap.defvjp(_forward, _backward)


def _counts(name: str, batch: Batch, vision: dict[str, bool], over: str) -> jax.Array:
    """Which places of a batch count for a leaf, ``[B, S]`` or ``[B, 1]``: patches that are there on the vision side, tokens elsewhere."""
    rows = saliency.counted(batch)[:, None]
    if vision[name]:
        return rows * (batch["segment"] >= 0) if "segment" in batch else rows
    return rows * ((batch["weights"] > 0) if over == "answers" else batch["valid"])


@lru_cache(4)
def _program(
    model: Model, leaves: str, over: str, kind: str, where: tuple[Any, ...]
) -> Callable[[Params, Batch], Moments | Grams]:
    vision = trees.flatten(trees.select(model.abstract(), model.family.sides["vision"]))

    def measured(params, batch):
        part, _ = trees.split(params, leaves)

        def zero(p):
            return jnp.zeros((*p.shape[:-2], *KINDS[kind][1](p.shape[-1])), jnp.float32)

        def spoken(totals):
            def leaf(name, weight, total):
                if total is None:
                    return weight
                counts = _counts(name, batch, vision, over).astype(jnp.float32)
                return Tapped(weight, total, jnp.broadcast_to(counts, (*weight.shape[:-2], *counts.shape)), kind)

            tapped = trees.map_named(leaf, params, totals)
            first = jnp.zeros((len(batch["tokens"]), 1), jnp.int32)  # no more logits than have to be
            return model.forward(tapped, batch | {"at": first}).astype(jnp.float32).sum()

        return jax.grad(spoken)(jax.tree.map(zero, part))

    return jax.jit(measured, out_shardings=jax.tree.unflatten(*where))


def each(
    model: Model, params: Params, batches: Iterable[Batch], *, leaves: str, over: str = "tokens", kind: str = "moments"
) -> Iterator[Moments | Grams]:
    """The moments or Grams of what the weights that ``leaves`` matches read, batch by batch.

    Args:
      batches: as ``mmu_jax.data`` has them, padded on the right; rows without loss weights do not count.
      leaves: pattern of linear weights ``[..., out, in]`` whose inputs are ``[rows, tokens or patches, in]``, the head not among them.
      over: which tokens count on the language side, of :data:`OVER`: all, those of the question and the photo too, or of answers alone.
      kind: of :data:`KINDS`; a Gram lies as ``curvature.grams`` has it.
    Raises:
      InputError: nothing matches, or ``over`` is none.
    """
    if over not in OVER:
        raise InputError(f"expected moments over {' or '.join(OVER)}, found {over!r}; correct it")
    part, _ = trees.split(params, leaves)
    places = jax.tree.map(lambda p: along_inputs(p, -1) if kind == "grams" else None, part)
    where, structure = jax.tree.flatten(places)
    program = _program(model, leaves, over, kind, (structure, tuple(where)))
    return (program(params, batch) for batch in batches)


@partial(jax.jit, donate_argnums=0)
def _sum(first, second):
    return jax.tree.map(jnp.add, first, second)


def total(seen: Iterable[Moments]) -> Moments:
    """The moments or Grams of several batches together, which are consumed; nothing per batch goes to the host.

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
