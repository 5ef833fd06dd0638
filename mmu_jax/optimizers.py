"""Adam, clip, decay and schedule as one optax transformation, which takes a mask itself.

    tx = optimizers.adam(1e-4, clip=1.0)
    updates, state = tx.update(grads, state, params)
    tx = transforms.masked(tx, mask)

What :func:`mmu_jax.transforms.masked` makes of any optimizer selects moments twice, before its update and after, and XLA on CPU then
holds copies of them. Here a moment is selected once, where it is made, and the step is made of what was selected, so that params and
moments are written in place.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError
from mmu_jax.trees import Mask, Params, Tree, Updates


class Maskable(optax.GradientTransformationExtraArgs):
    """An optax transformation whose ``update`` takes ``mask=`` and does with it what ``transforms.masked`` would."""


class AdamState(NamedTuple):
    """Steps taken, int32, and the two moments, like the params."""

    count: jax.Array
    mu: Tree
    nu: Tree


def adam(
    rate: optax.Schedule | float,
    *,
    clip: float = math.inf,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    arithmetic: str = "optax",
) -> Maskable:
    """Adam with decoupled weight decay (none unless asked for) of a gradient whose global norm is at most ``clip``.

    ``arithmetic`` says where eps is added, with ``m`` and ``v`` the moments after step ``t``: ``'optax'``, ``u = m / (1 - b1^t) /
    (sqrt(v / (1 - b2^t)) + eps)`` (Kingma & Ba, arXiv 1412.6980); ``'official'``, *before* the bias correction, ``u = sqrt(1 - b2^t) /
    (1 - b1^t) * m / (sqrt(v) + eps)``, as ``transformers.AdamW`` (4.x), with which the public MMUnlearner code runs.

    >>> tx = adam(0.1)
    >>> updates, _ = tx.update({'w': jnp.array([2.0])}, tx.init({'w': jnp.zeros(1)}))
    >>> round(float(updates['w'][0]), 3)
    -0.1

    Args:
      rate: learning rate, or a schedule from the number of steps before to it.
      clip: infinity for none; with a mask, of the norm inside it.
    Returns:
      a transformation whose ``update`` takes ``mask=``, a tree of bools like the updates, and ``taken=``, a bool: where it is False,
      whatever the updates are, nothing changes. It needs params only where it decays.
    Raises:
      InputError: an unknown arithmetic, or a decay of a moment that is none.
    """
    _check(b1, b2, arithmetic)

    def init(params: Params) -> AdamState:
        return AdamState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(
        updates: Updates, state: AdamState, params: Params | None = None, *, mask=None, taken=True, **extra: Any
    ):
        del extra
        scale = _clipping(updates if mask is None else jax.tree.map(_keep, mask, updates), clip)
        inside = _inside(updates, mask, taken)
        length = rate(state.count) if callable(rate) else rate
        count = state.count + jnp.asarray(taken, jnp.int32)
        mu, nu = _averaged(state, updates, scale, inside, b1, b2)
        direction = _direction(count, b1, b2, eps, arithmetic)

        def step(k, m, v, p=None):
            u = direction(m, v) if p is None else direction(m, v) + weight_decay * p
            # Minus zero: added to a param of minus zero, plus zero would change its sign.
            return _keep(k, (-length * u).astype(u.dtype), -0.0)

        decayed = (params,) if weight_decay else ()
        return jax.tree.map(step, inside, mu, nu, *decayed), AdamState(count, mu, nu)

    return Maskable(init, update)


def _check(b1: float, b2: float, arithmetic: str) -> None:
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise InputError(f"expected b1 and b2 from 0 to below 1, found {b1!r} and {b2!r}; correct them")
    if arithmetic not in ("optax", "official"):
        raise InputError(f"expected arithmetic 'optax' or 'official', found {arithmetic!r}; choose one of the two")


def clipped(inner: optax.GradientTransformation, norm: float) -> optax.GradientTransformationExtraArgs:
    """``inner`` of gradients whose global norm is at most ``norm``, with the state of ``inner``.

    >>> tx = clipped(optax.sgd(1.0), 1.0)
    >>> updates, _ = tx.update({'w': jnp.array([30.0, 40.0])}, tx.init({'w': jnp.zeros(2)}))
    >>> [round(float(x), 2) for x in updates['w']]
    [-0.6, -0.8]
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Updates, state: Tree, params: Params | None = None, **extra: Any) -> tuple[Updates, Tree]:
        scale = _clipping(updates, norm)
        return inner.update(jax.tree.map(lambda g: _scaled(g, scale), updates), state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _inside(updates: Updates, mask: Mask | None, taken: jax.Array | bool) -> Tree:
    """Leaf by leaf what changes: bools like it, one for all of it, or True."""
    if mask is None:
        return jax.tree.map(lambda _: taken, updates)
    return mask if taken is True else jax.tree.map(lambda k: k & taken, mask)


def _averaged(
    state: AdamState, updates: Updates, scale: jax.Array | None, inside: Tree, b1: float, b2: float
) -> tuple[Tree, Tree]:
    """The moments after another gradient times ``scale``, as they were where that is not ``inside``."""

    def first(k, g, m):
        return _keep(k, b1 * m + (1 - b1) * _scaled(g, scale), m)

    def second(k, g, v):
        return _keep(k, b2 * v + (1 - b2) * jnp.square(_scaled(g, scale)), v)

    return jax.tree.map(first, inside, updates, state.mu), jax.tree.map(second, inside, updates, state.nu)


def _keep(inside: jax.Array | bool, value: jax.Array, other: jax.Array | float = 0.0) -> jax.Array:
    """``value`` where it is inside, or as it is where there is no mask."""
    return value if inside is True else jnp.where(inside, value, jnp.asarray(other, value.dtype))


def _clipping(updates: Updates, clip: float) -> jax.Array | None:
    """By what a gradient is multiplied so that its norm is at most ``clip``; None where nothing is clipped."""
    if clip == math.inf:
        return None
    norm = optax.global_norm(updates)
    return jnp.where(norm < clip, 1.0, clip / norm)


def _scaled(g: jax.Array, scale: jax.Array | None) -> jax.Array:
    return g if scale is None else g * scale.astype(g.dtype)


def _direction(count: jax.Array, b1: float, b2: float, eps: float, arithmetic: str) -> Any:
    """``m, v -> u`` after ``count`` steps."""
    t = count.astype(jnp.float32)
    # 1 - b^t by expm1: in float32 the difference alone carries an error of 6e-5 at t = 1, as it does in optax.
    first, second = (-jnp.expm1(t * (math.log(b) if b else -math.inf)) for b in (b1, b2))
    if arithmetic == "optax":
        return lambda m, v: m / first.astype(m.dtype) / (jnp.sqrt(v / second.astype(v.dtype)) + eps)
    scale = jnp.sqrt(second) / first
    return lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + eps)


class Pace(NamedTuple):
    """How long the steps of a run are, in numbers that a compiled program may be given.

    Attributes:
      peak: the highest learning rate.
      rise: steps until it is reached, from zero.
      steps: in all, after the last of which a schedule that falls is at zero.
    """

    peak: float | jax.Array = 1.0
    rise: int | jax.Array = 0
    steps: int | jax.Array = 0


def learning_rate(pace: Pace, schedule: str = "constant") -> optax.Schedule:
    """``'constant'``, or ``'linear'`` or ``'cosine'`` decay to zero, after the rising steps.

    >>> rate = learning_rate(Pace(1.0, rise=2, steps=10), 'linear')
    >>> [round(float(rate(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
      InputError: an unknown schedule.
    """
    shapes = {
        "constant": jnp.ones_like,
        "linear": lambda x: 1.0 - x,
        "cosine": lambda x: (1.0 + jnp.cos(jnp.pi * x)) / 2,
    }
    if schedule not in shapes:
        raise InputError(f"expected schedule 'constant', 'linear' or 'cosine', found {schedule!r}; choose one of them")

    def rate(count):
        fallen = jnp.clip((count - pace.rise) / jnp.maximum(pace.steps - pace.rise, 1), 0.0, 1.0)
        risen = count / jnp.maximum(pace.rise, 1)
        return pace.peak * jnp.where(count < pace.rise, risen, shapes[schedule](fallen))

    return rate
