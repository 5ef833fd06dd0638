"""optax transformations that honour a mask, entry by entry.

    tx = transforms.masked(optax.adamw(1e-5, weight_decay=0.1), mask)   # fixed
    tx = transforms.masked(optax.adamw(1e-5))                           # given per call:
    updates, state = tx.update(grads, state, params, mask=mask)

Masking gradients alone leaks: weight decay and the moments of other steps move what the mask keeps out. Here an entry
outside the mask contributes to nothing (its gradient is zero for clipping and for every statistic), its moments stay
as they were and its update is exactly zero.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, trees

Tree = Any


def masked(
    inner: optax.GradientTransformation, mask: Tree | None = None, *, gradients_only: bool = False
) -> optax.GradientTransformationExtraArgs:
    """``inner`` restricted to the entries where the mask is True.

    Args:
      inner: any optax transformation, chains included.
      mask: tree of bool arrays like the params, or None to pass ``mask=`` to every update; a mask given to the update
        takes the place of the fixed one.
      gradients_only: mask what goes in and nothing else, as the public MMUnlearner code does; moments and decay then
        move what the mask keeps out.
    Returns:
      a transformation whose state is that of ``inner``.
    Raises:
      InputError: at update, no mask was given; or its names or shapes are not those of the updates.
    """
    inner = optax.with_extra_args_support(inner)
    fixed = mask

    def update(updates, state, params=None, *, mask=None, **extra):
        mask = fixed if mask is None else mask
        if mask is None:
            raise InputError("expected a mask, found none; pass it to masked(inner, mask) or to update(..., mask=mask)")
        trees.check_like(mask, updates, "the mask", dtype=jnp.bool_)
        zeroed = jax.tree.map(_keep, mask, updates)
        new_updates, new_state = inner.update(zeroed, state, params, **extra)
        if gradients_only:
            return new_updates, new_state
        return jax.tree.map(_keep, mask, new_updates), _keep_state(inner, mask, new_state, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _keep(mask, value, other=0):
    return jnp.where(mask, value, jnp.asarray(other, value.dtype))


def _keep_state(inner, mask, new, old):
    """``new`` where the mask is True and ``old`` elsewhere, for the parts of an optimizer state shaped like params."""
    before = []
    optax.tree.map_params(inner, lambda leaf: before.append(leaf) or leaf, old)
    remaining = iter(before)

    def leaf(value, m):
        return _keep(m, value, next(remaining))

    return optax.tree.map_params(inner, leaf, new, mask)


class ScaleByOfficialAdamState(NamedTuple):
    count: jax.Array
    mu: Tree
    nu: Tree


def scale_by_official_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """Adam as the public MMUnlearner code runs it: eps is added to ``sqrt(v)`` *before* the bias correction.

    ``u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, the arithmetic of ``transformers.AdamW`` (4.x).
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByOfficialAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        t = count.astype(jnp.float32)
        # 1 - b^t by expm1: in float32 the difference alone would carry an error of 6e-5 at t = 1.
        scale = jnp.sqrt(-jnp.expm1(t * math.log(b2))) / -jnp.expm1(t * math.log(b1))
        return jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu), ScaleByOfficialAdamState(
            count, mu, nu
        )

    return optax.GradientTransformation(init, update)


def learning_rate(peak: float, steps: int, *, schedule: str = "constant", warmup: float = 0.0) -> optax.Schedule:
    """``'constant'``, ``'linear'`` or ``'cosine'`` decay to zero over ``steps`` after ``warmup * steps`` rising steps."""
    rise = int(warmup * steps)
    if schedule == "constant":
        after = optax.constant_schedule(peak)
    elif schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, max(steps - rise, 1))
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - rise, 1))
    else:
        raise InputError(f"expected schedule 'constant', 'linear' or 'cosine', found {schedule!r}; choose one of them")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(rise, 1)), after], [rise]) if rise else after


def adam(
    rate: optax.Schedule | float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    arithmetic: str = "optax",
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (none unless asked for), ``arithmetic`` ``'optax'`` or ``'official'``."""
    if arithmetic not in ("optax", "official"):
        raise InputError(f"expected arithmetic 'optax' or 'official', found {arithmetic!r}; choose one of the two")
    core = optax.scale_by_adam(b1, b2, eps) if arithmetic == "optax" else scale_by_official_adam(b1, b2, eps)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(core, *decay, optax.scale_by_learning_rate(rate))
