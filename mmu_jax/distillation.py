"""Losses against what another model says, or a target made of what the model says itself; ``(sum, count)`` as in ``losses``.

Axis letters: B rows, T tokens or other places of a row, V vocabulary, D width. Everything is computed in float32, and no target has a gradient.
"""

import jax
import jax.numpy as jnp

from mmu_jax.losses import Pair


def _next(logits: jax.Array) -> jax.Array:
    return logits[:, :-1].astype(jnp.float32)


def _soft_cross_entropy(target: jax.Array, logits: jax.Array, weights: jax.Array) -> Pair:
    """``-sum_t w_t sum_v target_tv log softmax(logits)_tv`` of ``[B, A, V]`` each, and ``sum_t w_t``."""
    per_token = -(jax.lax.stop_gradient(target) * jax.nn.log_softmax(logits)).sum(axis=-1)
    return (per_token * weights).sum(), weights.sum()


def kl(teacher: jax.Array, student: jax.Array, weights: jax.Array) -> Pair:
    """``KL(teacher || student)`` per answer token (KL minimisation, TOFU, arXiv 2401.06121, section 4).

    Both logits are ``[B, T, V]``; positions that predict nothing of the answer do not count.

    >>> same = jnp.zeros((1, 3, 2))
    >>> float(kl(same, same, jnp.array([[0., 1., 1.]]))[0])
    0.0
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher[:, :-1]).astype(jnp.float32))
    log_q = jax.nn.log_softmax(student[:, :-1].astype(jnp.float32))
    per_token = (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return (per_token * weights[:, 1:]).sum(), weights[:, 1:].sum()


def undial(
    teacher: jax.Array, student: jax.Array, tokens: jax.Array, weights: jax.Array, *, beta: float = 10.0
) -> Pair:
    """Self-distillation with adjusted logits (UNDIAL, Dong et al., arXiv 2402.10052).

    The cross-entropy of ``softmax(teacher_t - beta * onehot(token t))``, what the vanilla model says with the logit of the answer
    lowered, per answer token. One library of unlearning takes it at every position, padding too, where no label is.

    >>> total, count = undial(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2)), jnp.array([[0, 1]]), jnp.array([[0., 1.]]))
    >>> round(float(total), 3), float(count)
    (0.693, 1.0)
    """
    target = _next(teacher) - beta * jax.nn.one_hot(tokens[:, 1:], teacher.shape[-1])
    return _soft_cross_entropy(jax.nn.softmax(target), _next(student), weights[:, 1:])


def ce_u(logits: jax.Array, tokens: jax.Array, weights: jax.Array, *, skip: int = 0) -> Pair:
    """Cross-entropy unlearning (CE-U, Yang, arXiv 2503.01224): the model's own distribution without the right token.

    The cross-entropy of ``softmax(z_t)`` with ``z_t`` of the right token at minus infinity, per answer token; ``skip``: the first
    so many of every answer are left out. The equation leaves out none; a footnote of its settings, and its code, the first.

    >>> total, count = ce_u(jnp.zeros((1, 2, 4)), jnp.array([[0, 1]]), jnp.array([[0., 1.]]))
    >>> round(float(total), 3), float(count)
    (1.386, 1.0)
    """
    z, weights = _next(logits), weights[:, 1:]
    right = jax.nn.one_hot(tokens[:, 1:], z.shape[-1], dtype=bool)
    later = jnp.cumsum(weights > 0, axis=1) > skip
    return _soft_cross_entropy(jax.nn.softmax(jnp.where(right, -jnp.inf, z)), z, weights * later)


def distance(values: jax.Array, target: jax.Array, weights: jax.Array) -> Pair:
    """Mean squared distance of ``values [B, T, D]`` to a ``target`` that broadcasts to it, and the number of rows.

    The mean over D, then over the places of a row by ``weights [B, T]``, then over rows: a row with many places weighs as one with
    few. A row without any only fills the batch.

    >>> total, count = distance(jnp.array([[[1., 3.], [9., 9.]]]), jnp.array([1., 1.]), jnp.array([[1., 0.]]))
    >>> float(total), float(count)
    (2.0, 1.0)
    """
    off = values.astype(jnp.float32) - jax.lax.stop_gradient(target).astype(jnp.float32)
    there = weights.sum(axis=-1)
    per_row = (jnp.square(off).mean(axis=-1) * weights).sum(axis=-1) / jnp.maximum(there, 1.0)
    return per_row.sum(), (there > 0).sum(dtype=jnp.float32)


def direction(width: int, seed: int = 0) -> jax.Array:
    """A unit vector ``[D]`` whose entries are drawn from [0, 1) by a seed, as RMU draws its own.

    >>> u = direction(4)
    >>> round(float(jnp.linalg.norm(u)), 4), bool((u >= 0).all())
    (1.0, True)
    """
    drawn = jax.random.uniform(jax.random.key(seed), (width,))
    return drawn / jnp.linalg.norm(drawn)


def rmu(states: jax.Array, weights: jax.Array, *, coefficient: float = 6.5, seed: int = 0) -> Pair:
    """Representation misdirection (RMU, Li et al., arXiv 2403.03218): :func:`distance` of hidden states to a random direction.

    ``mean_n mean_t |h_nt - c u|^2 / D``, with ``u`` of :func:`direction` and ``c`` the coefficient, over the ``weights [B, T]`` of
    ``states [B, T, D]``. The paper takes every token of a text; here, as in libraries that unlearn answers, those of the answer. One of
    them divides [b] by [b, 1] there, which is another number.

    >>> total, count = rmu(jnp.zeros((1, 1, 4)), jnp.ones((1, 1)), coefficient=2.0)
    >>> round(float(total), 4), float(count)  # c^2 / D
    (1.0, 1.0)
    """
    return distance(states, coefficient * direction(states.shape[-1], seed), weights)
