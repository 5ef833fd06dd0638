"""The gradient of every row of a batch for the price of one backward pass.

Rows do not meet in a forward pass. So one backward pass of the sum of their losses carries, into every linear weight, each
row's own cotangent of its output; with ``D_b [T, out]`` of row b and its input ``A_b [T, in]``, the gradient of that row is
``G_b = D_b^T A_b``. A weight in a :class:`Measured` hands back ``sum_b G_b^2``, ``sum_b |G_b|``, the Gram ``sum_b
G_b^T G_b``, or norms of ``G_b`` of every row, instead of ``sum_b G_b``; no gradient of a row outlives its layer.

    loss = rowwise.Losses(lambda params, batch: losses_of_rows(...))     # [B], through rowwise.contract(weight, x, dtype)
    forget = saliency.scores(loss, params, batches)                      # the exact diagonal of the Fisher, example by example

The networks of ``mmu_jax.models`` contract so; ``objectives.of_rows`` makes such a loss of every row of the table.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmu_jax import InputError, trees
from mmu_jax.trees import Batch, Params, Tree


@dataclasses.dataclass(frozen=True)
class Losses:
    """``of(params, batch) -> [B]``: what each row loses on its own, a mean over what counts of it; 0 for one that only fills the batch.

    The rows are those of axis 0 of the batch, and no number of one depends on another. Every weight whose gradients are wanted
    takes part once, in a :func:`contract` whose ``x`` has the rows, or for several images of a row a multiple of them, on axis 0.
    """

    of: Callable[[Params, Batch], jax.Array]


def contract(weight: Any, x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """``x [..., in] -> [..., out]`` by a weight ``[out, in]``, or ``[out, ...]`` whose other axes are the input.

    What stands in the place of a weight and has a method ``contract(x, dtype)``, as :class:`Measured` and ``lora.Adapted``,
    contracts itself.

    >>> contract(jnp.array([[1., 2.]]), jnp.array([3., 4.]), jnp.float32).tolist()
    [11.0]
    """
    if hasattr(weight, "contract"):
        return weight.contract(x, dtype)
    return linear(weight.reshape(len(weight), -1), x, dtype)


def linear(weight: jax.Array, x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """``x [..., in] -> [..., out]`` by ``weight [out, in]`` cast to ``dtype``, which is that of ``x``.

    On a CPU products of bfloat16 are taken into float32 and rounded after it, which XLA has a quick kernel for where the processor
    can (AMX); the gradient of a float32 weight is not rounded at all. There it has no forward mode (``jax.jvp``).

    >>> linear(jnp.array([[1., 2.]]), jnp.array([3., 4.]), jnp.float32).tolist()
    [11.0]
    """
    plain, quick = partial(_plain, dtype), dtype == jnp.bfloat16 == x.dtype
    return jax.lax.platform_dependent(weight, x, cpu=_rounded, default=plain) if quick else plain(weight, x)


def _plain(dtype, weight, x):
    return jnp.einsum("...i,oi->...o", x, weight.astype(dtype))


def _rounded(weight, x):
    # As a matrix: of operands with more axes XLA's CPU has not every product.
    return _of_matrix(weight, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], len(weight))


@jax.custom_vjp
def _of_matrix(weight, x):
    return _product("ni,oi->no", x, weight.astype(x.dtype)).astype(x.dtype)


def _of_matrix_forward(weight, x):
    return _of_matrix(weight, x), (weight, x)


def _of_matrix_backward(kept, cotangent):
    weight, x = kept
    inwards = _product("no,oi->ni", cotangent, weight.astype(x.dtype)).astype(x.dtype)
    return _outer(cotangent, x).astype(weight.dtype), inwards


@jax.custom_batching.custom_vmap
def _outer(cotangent, x):
    if cotangent.shape[1] <= x.shape[1]:
        return _product("no,ni->oi", cotangent, x)
    # The short side first, and kept so: XLA's CPU is slow at a product of many rows and few columns.
    return jax.lax.optimization_barrier(_product("ni,no->io", x, cotangent)).T


@_outer.def_vmap
def _outer_of_many(many, batched, cotangent, x):
    # XLA's CPU has no such product of which one side is shared.
    every = [array if there else jnp.broadcast_to(array, (many, *array.shape))
             for array, there in zip((cotangent, x), batched, strict=True)]  # fmt: skip
    return _product("bno,bni->boi", *every), True


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)
_of_matrix.defvjp(_of_matrix_forward, _of_matrix_backward)


class Measured(flax.struct.PyTreeNode):
    """A weight ``[..., out, in]`` whose rows are measured; stands where the weight stood, and is scanned as it was.

    Attributes:
      weight: as it is; nothing is differentiated with respect to it.
      total: of the shape and dtype of what is wanted; never read. Its cotangent is what was measured.
      rows: how many rows a batch has.
      kind: one of :data:`KINDS`.
    """

    weight: jax.Array
    total: jax.Array
    rows: int = flax.struct.field(pytree_node=False)
    kind: str = flax.struct.field(pytree_node=False)

    def contract(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """``x [..., in] -> [..., out]``, as without measuring."""
        if x.ndim < 2 or len(x) % self.rows:
            raise InputError(
                f"expected the {self.rows} rows of the batch on axis 0 of what a measured weight contracts, found the shape "
                f"{list(x.shape)}; keep rows first, or give a loss(params, batch) instead of rowwise.Losses"
            )
        return _contract(self.rows, self.kind, dtype, self.weight, self.total, x)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _contract(rows, kind, dtype, weight, total, x):
    del rows, kind, total
    return contract(weight, x, dtype)


def _forward(rows, kind, dtype, weight, total, x):
    return _contract(rows, kind, dtype, weight, total, x), (weight, total, x)


def _backward(rows, kind, dtype, kept, cotangent):
    weight, total, x = kept
    outwards = linear(weight.reshape(len(weight), -1).T, cotangent, dtype)
    by_row = [array.reshape(rows, -1, array.shape[-1]) for array in (cotangent, x)]
    measured = KINDS[kind](*by_row).reshape(total.shape).astype(total.dtype)
    return None, measured, outwards


_contract.defvjp(_forward, _backward)


def _gradient(d: jax.Array, a: jax.Array) -> jax.Array:
    return _product("to,ti->oi", d, a)


def _gram(d: jax.Array, a: jax.Array) -> jax.Array:
    """``G^T G [I,I]``: by ``A^T (D D^T) A`` where a row is shorter than the output."""
    if len(d) >= d.shape[1]:
        gradient = _gradient(d, a)
        return _product("oi,oj->ij", gradient, gradient)
    a = a.astype(jnp.float32)
    return _product("ti,tj->ij", a, _product("ts,sj->tj", _product("to,so->ts", d, d), a))


def _row_by_row(of: Callable[[jax.Array, jax.Array], jax.Array], d: jax.Array, a: jax.Array) -> jax.Array:
    """``sum_b of(d[b], a[b])``, holding one row's at a time."""

    def add(total, row):
        return total + of(*row), None

    return jax.lax.scan(add, jnp.zeros_like(of(d[0], a[0])), (d, a))[0]


def _at_once(of: Callable[[jax.Array, jax.Array], jax.Array], d: jax.Array, a: jax.Array) -> jax.Array:
    return jax.vmap(of)(d, a).sum(axis=0)


def _over_rows(of: Callable[[jax.Array, jax.Array], jax.Array], d: jax.Array, a: jax.Array) -> jax.Array:
    # XLA's CPU is eight times slower at many products of matrices in one than at one after the other.
    return jax.lax.platform_dependent(d, a, cpu=partial(_row_by_row, of), default=partial(_at_once, of))


def _norms(d: jax.Array, a: jax.Array) -> jax.Array:
    def of(row):
        sizes = jnp.abs(_gradient(*row))
        return jnp.stack([sizes.sum(), jnp.sqrt(jnp.square(sizes).sum()), sizes.max()])

    one_by_one, at_once = partial(jax.lax.map, of), jax.vmap(of)
    return jax.lax.platform_dependent((d, a), cpu=one_by_one, default=at_once)


NORMS = (1, 2, float("inf"))  # of what p a row's norms are, in their order
# What is made, of cotangents ``[B,T,O]`` and inputs ``[B,T,I]``: a sum over rows, or for norms those of each row, ``[B,3]``.
KINDS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "squared": partial(_over_rows, lambda d, a: jnp.square(_gradient(d, a))),
    "absolute": partial(_over_rows, lambda d, a: jnp.abs(_gradient(d, a))),
    "signed": partial(_product, "bto,bti->oi"),
    "gram": partial(_over_rows, _gram),
    "norms": _norms,
}


def sums(losses: Losses, params: Params, like: Tree, batch: Batch, kind: str, counts: jax.Array | None = None) -> Tree:
    """``sum over rows`` of what a kind makes of each row's gradient, in one backward pass; for ``'norms'`` each row's own, of :data:`NORMS`.

    >>> losses = Losses(lambda p, batch: contract(p['w'], batch['x'], jnp.float32)[:, 0])
    >>> params, batch = {'w': jnp.zeros((1, 2))}, {'x': jnp.array([[1., 2.], [3., 0.]])}
    >>> sums(losses, params, params, batch, 'squared')['w'].tolist()
    [[10.0, 4.0]]
    >>> sums(losses, params, {'w': jnp.zeros((2, 2))}, batch, 'gram')['w'].tolist()
    [[10.0, 2.0], [2.0, 4.0]]
    >>> sums(losses, params, {'w': jnp.zeros((2, 3))}, batch, 'norms')['w'].round().tolist()
    [[3.0, 2.0, 2.0], [3.0, 3.0, 3.0]]

    Args:
      params: the whole tree; a weight that is measured is ``[..., out, in]``.
      like: tree like ``params`` of arrays or their shapes, ``[..., out, in]``, for ``'gram'`` ``[..., in, in]`` or for
        ``'norms'`` ``[..., B, 3]``, None where nothing is measured.
      batch: arrays with rows on axis 0.
      kind: one of :data:`KINDS`.
      counts: ``[B]``, above 0 for rows that count; in place of the others a row of zeros is shown, of which the gradient must be
        finite. None: all count.
    Returns:
      tree like ``like``, in its dtypes; each sum is taken in float32.
    Raises:
      InputError: a weight contracts something in which the rows are not on axis 0.
    """
    rows = len(jax.tree.leaves(batch)[0])
    counts = jnp.ones(rows) if counts is None else counts

    def there(x):
        return jnp.where(counts.reshape(-1, *(1,) * (x.ndim - 1)) > 0, x, jnp.zeros_like(x))

    shown = jax.tree.map(there, batch)

    def total(zeros):
        def leaf(weight, zero):
            return weight if zero is None else Measured(jax.lax.stop_gradient(weight), zero, rows, kind)

        return jnp.where(counts > 0, losses.of(jax.tree.map(leaf, params, zeros), shown), 0.0).sum()

    return jax.grad(total)(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))


def fits(params: Params, leaves: str, contracted: str) -> bool:
    """Whether every leaf that ``leaves`` matches is one that a network contracts (``contracted``, a pattern), so that rows are told apart there.

    >>> fits({'w': 0, 'b': 0}, '.*', 'w'), fits({'w': 0, 'b': 0}, 'w', 'w')
    (False, True)
    """
    chosen, known = (trees.flatten(trees.select(params, pattern)) for pattern in (leaves, contracted))
    return all(known[name] for name, yes in chosen.items() if yes)
