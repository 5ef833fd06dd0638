"""What a loss must return for its gradients to be scored or measured: one number, told apart from what is beside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, losses, rowwise, trees
from mmu_jax.trees import Batch, Params, Tree

Loss = Callable[[Params, Batch], Any]  # a scalar, or a pair of scalars (sum, count)
Scored = Loss | rowwise.Losses  # of the second every row's own, for one backward pass


def mean_of(loss: Loss) -> Callable[[Tree, Tree, Batch], jax.Array]:
    """``(part, rest, batch) -> `` the loss as one number: a pair ``(sum, count)`` is divided.

    >>> float(mean_of(lambda params, batch: (params['w'].sum(), 4.0))({'w': jnp.ones(2)}, {'w': None}, {}))
    0.5
    """

    def mean(part, rest, batch):
        value = loss(trees.merge(part, rest), batch)
        return losses.mean(*value) if isinstance(value, tuple) else value

    return mean


def check(loss: Scored, part: Params, rest: Params, batch: Batch) -> None:
    """Refuses a loss that returns neither a scalar nor ``(sum, count)`` with a count that comes from the batch alone.

    Raises:
      InputError: what it returns is said.
    """
    if isinstance(loss, rowwise.Losses):
        _check_rows(loss, part, rest, batch)
        return
    value, sources = trees.dataflow(lambda part: loss(trees.merge(part, rest), batch), part)
    advice = "return the loss alone or (sum, count), and drop aux: lambda params, batch: loss(params, batch)[0]"
    values = value if isinstance(value, tuple) else (value,)
    if (
        len(values) > 2
        or value == ()
        or isinstance(value, tuple)
        and len(value) != 2
        or not all(_is_number(v) for v in values)
    ):
        found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", value)
        raise InputError(f"expected a loss of one real number, or of two, found {found}; {advice}")
    if not jnp.issubdtype(values[0].dtype, jnp.floating):
        raise InputError(f"expected a loss in floating point, found {values[0].dtype}; {advice}")
    if len(values) == 2 and any(sources([False, True])):
        raise InputError(
            f"expected (sum, count) with a count of the batch alone, found one made of the params; {advice}"
        )


def _check_rows(loss: rowwise.Losses, part: Params, rest: Params, batch: Batch) -> None:
    found, rows = (
        jax.eval_shape(lambda part: loss.of(trees.merge(part, rest), batch), part),
        len(jax.tree.leaves(batch)[0]),
    )
    if getattr(found, "shape", None) != (rows,) or not jnp.issubdtype(found.dtype, jnp.floating):
        shown = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", found)
        raise InputError(
            f"expected of rowwise.Losses one real number for each of {rows} rows, found {shown}; return what every row loses"
        )


def _is_number(value: Any) -> bool:
    real = isinstance(value, jax.ShapeDtypeStruct) and value.shape == () and value.dtype != jnp.bool_
    return real and (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))
