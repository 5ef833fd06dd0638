"""Unlearning losses: pure functions of arrays that return ``(sum, count)``; the step divides once.

Axis letters: B rows, T tokens, V vocabulary. ``logits [B, T, V]`` at position t predict token t + 1;
``weights [B, T]`` is the loss weight of *predicting* token t. Everything is computed in float32.
"""

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """``sum / count``, the loss that a pair stands for; the sum itself, 0, where nothing counts.

    >>> float(mean(jnp.array(6.0), jnp.array(3.0))), float(mean(jnp.array(0.0), jnp.array(0.0)))
    (2.0, 0.0)
    """
    return total / jnp.where(count > 0, count, 1)


def token_logps(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """``log p(token t | tokens before t)``, ``[B, T - 1]`` for t = 1 .. T - 1; no one-hot, no full log-softmax.

    >>> token_logps(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]])).round(3).tolist()
    [[-0.6930000185966492, -0.6930000185966492]]
    """
    logits = logits[:, :-1].astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def sequence_logps(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """``log p(answer | prompt)`` per row, ``[B]``: the weighted sum of token log-probabilities.

    >>> sequence_logps(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 0., 1.]])).round(3).tolist()
    [-0.6930000185966492]
    """
    return (token_logps(logits, tokens) * weights[:, 1:]).sum(axis=-1)


def cross_entropy(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> Pair:
    """``-sum_t w_t log p(token t)`` and ``sum_t w_t``: descent on a stream.

    >>> total, count = cross_entropy(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> round(float(total), 3), float(count)
    (1.386, 2.0)
    """
    return -sequence_logps(logits, tokens, weights).sum(), weights[:, 1:].sum()


def all_tokens(valid: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights ``[B, T]`` of a loss on everything that is not padding: prompt, image tokens, answer, end of turn.

    The labels of the public MMUnlearner code without ``--ans_only``. Rows without any weight only fill the batch.

    >>> all_tokens(jnp.array([[True, True, False]]), jnp.array([[0., 1., 0.]])).tolist()
    [[1.0, 1.0, 0.0]]
    """
    return valid * (weights > 0).any(axis=1, keepdims=True).astype(jnp.float32)


def ascent(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> Pair:
    """Gradient ascent (Thudi et al., arXiv 2109.13398): the negative of :func:`cross_entropy`.

    >>> total, count = ascent(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> round(float(total), 3), float(count)
    (-1.386, 2.0)
    """
    return negated(cross_entropy(logits, tokens, weights))


def negated(pair: Pair) -> Pair:
    """``(-sum, count)``: what rises instead of falling.

    >>> negated((2.0, 1.0))
    (-2.0, 1.0)
    """
    total, count = pair
    return -total, count


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


def npo(logps: jax.Array, ref_logps: jax.Array, rows: jax.Array, *, beta: float = 0.1) -> Pair:
    """Negative preference optimisation (Zhang et al., arXiv 2404.05868, eq. 3).

    ``-(2 / beta) * mean_n log sigmoid(-beta * (log p(y_n | x_n) - log p_ref(y_n | x_n)))`` with log-probabilities
    summed over the answer; ``rows [B]`` is 1 for rows that count.

    >>> total, count = npo(jnp.array([-2.0]), jnp.array([-2.0]), jnp.array([1.0]), beta=0.1)
    >>> round(float(total), 3), float(count)
    (13.863, 1.0)
    """
    per_row = -(2.0 / beta) * jax.nn.log_sigmoid(-beta * (logps - ref_logps))
    return (per_row * rows).sum(), rows.sum()
