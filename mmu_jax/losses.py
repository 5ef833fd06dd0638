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


def next_logps(logits: jax.Array, said: jax.Array) -> jax.Array:
    """The log-probability ``[B, A]`` that ``logits [B, A, V]`` give the tokens ``said [B, A]``; no one-hot, no full log-softmax.

    >>> next_logps(jnp.zeros((1, 1, 2)), jnp.array([[1]])).round(3).tolist()
    [[-0.6930000185966492]]
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, said[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logps(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """``log p(token t | tokens before t)``, ``[B, T - 1]`` for t = 1 .. T - 1.

    >>> token_logps(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]])).round(3).tolist()
    [[-0.6930000185966492, -0.6930000185966492]]
    """
    return next_logps(logits[:, :-1], tokens[:, 1:])


def sequence_logps(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """``log p(answer | prompt)`` per row, ``[B]``: the weighted sum of token log-probabilities.

    >>> sequence_logps(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 0., 1.]])).round(3).tolist()
    [-0.6930000185966492]
    """
    return (token_logps(logits, tokens) * weights[:, 1:]).sum(axis=-1)


def probability(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> Pair:
    """``sum_n p(answer n | prompt n)^(1 / length)`` and the number of rows (TOFU, arXiv 2401.06121, section 2.2).

    A row whose weights are all zero only fills the batch and does not count.

    >>> total, count = probability(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> float(total.round(3)), float(count)
    (0.5, 1.0)
    """
    each, there = probabilities(logits, tokens, weights)
    return each.sum(), there.sum(dtype=jnp.float32)


def probabilities(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``p(answer n | prompt n)^(1 / length)`` of every row ``[N]``, 0 for one that only fills the batch, and which rows do not.

    >>> each, there = probabilities(jnp.zeros((2, 2, 4)), jnp.zeros((2, 2), int), jnp.array([[0., 1.], [0., 0.]]))
    >>> each.round(3).tolist(), there.tolist()
    ([0.25, 0.0], [True, False])
    """
    lengths = weights[:, 1:].sum(axis=-1)
    per_token = sequence_logps(logits, tokens, weights) / jnp.maximum(lengths, 1.0)
    there = lengths > 0
    return jnp.where(there, jnp.exp(per_token), 0.0), there


def cross_entropy(logits: jax.Array, tokens: jax.Array, weights: jax.Array) -> Pair:
    """``-sum_t w_t log p(token t)`` and ``sum_t w_t``: descent on a stream.

    >>> total, count = cross_entropy(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> round(float(total), 3), float(count)
    (1.386, 2.0)
    """
    return -sequence_logps(logits, tokens, weights).sum(), weights[:, 1:].sum()


def all_tokens(valid: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights ``[B, T]`` of a loss on everything that is not padding: prompt, image tokens, answer, end of turn.

    The labels of the public MMUnlearner code without ``--ans_only``. Rows without any weight only fill the batch. What would be
    predicted from padding, the first token of a row that is padded on the left, has no weight.

    >>> all_tokens(jnp.array([[True, True, False]]), jnp.array([[0., 1., 0.]])).tolist()
    [[1.0, 1.0, 0.0]]
    >>> all_tokens(jnp.array([[False, True, True]]), jnp.array([[0., 0., 1.]])).tolist()
    [[0.0, 0.0, 1.0]]
    """
    after_one = jnp.pad(valid[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    return valid * after_one * (weights > 0).any(axis=1, keepdims=True).astype(jnp.float32)


def ascent(logits: jax.Array, tokens: jax.Array, weights: jax.Array, floor: jax.Array | None = None) -> Pair:
    """Gradient ascent (Thudi et al., arXiv 2109.13398): the negative of :func:`cross_entropy`.

    >>> total, count = ascent(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> round(float(total), 3), float(count)
    (-1.386, 2.0)

    Args:
      floor: ``[B]``, of :func:`probabilities`: an answer that is no likelier than this is left as it is, and does not count.
    """
    if floor is not None:
        each, _ = probabilities(logits, tokens, weights)
        weights = weights * (each > floor)[:, None]
    return negated(cross_entropy(logits, tokens, weights))


def negated(pair: Pair) -> Pair:
    """``(-sum, count)``: what rises instead of falling.

    >>> negated((2.0, 1.0))
    (-2.0, 1.0)
    """
    total, count = pair
    return -total, count


def sketch(logits: jax.Array, weights: jax.Array, rows: jax.Array, *, seed: int = 0) -> Pair:
    """A random projection of the logits whose gradient's square is, in expectation, the Fisher information of the model.

    At every position ``t`` that predicts something, with ``p = softmax(z_t)`` and random signs ``s``, one a class::

        sum_t w_t <v_t, z_t>,   v_t = sqrt(p) * s - p (sqrt(p) . s)   held constant

    Since ``E[v v^T] = diag(p) - p p^T``, the gradient ``g`` of a row has ``E[g^2]`` the diagonal of its *true* Fisher
    (labels drawn from the model, arXiv 1905.12558, not those of the data), in one backward pass and whatever the labels are.
    Where the model is sure of its labels the empirical Fisher vanishes as ``(1 - p)^2``, this one as ``1 - p``.

    >>> total, count = sketch(jnp.array([[[1., 0.], [0., 0.]]]), jnp.array([[0., 1.]]), jnp.array([0]))
    >>> round(abs(float(total)), 3), float(count)  # sqrt(p q) (sqrt(p) + sqrt(q)), p = 0.731; by other signs the difference
    (0.609, 1.0)

    Args:
      logits: ``[B, T, V]``.
      weights: ``[B, T]``, of predicting each token.
      rows: ``[B]`` int, by which each row draws its own signs; the same for the same row and ``seed``.
    """
    z, weights = logits[:, :-1].astype(jnp.float32), weights[:, 1:]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.maximum(rows, 0))
    signs = jax.vmap(lambda key: jax.random.rademacher(key, z.shape[1:], jnp.float32))(keys)
    p = jax.nn.softmax(z)
    root = jnp.sqrt(p)
    v = jax.lax.stop_gradient(root * signs - p * (root * signs).sum(axis=-1, keepdims=True))
    return ((v * z).sum(axis=-1) * weights).sum(), weights.sum()


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


def simnpo(logps: jax.Array, lengths: jax.Array, rows: jax.Array, *, beta: float = 4.5, delta: float = 0.0) -> Pair:
    """Simple NPO (Fan et al., arXiv 2410.07163): no reference model, the answer's log-probability per token.

    ``-(2 / beta) * mean_n log sigmoid(-beta * (log p(y_n | x_n) / |y_n| + delta))``; their margin gamma is ``beta * delta``.
    ``lengths [B]`` are the tokens of the answers, ``rows [B]`` is 1 for rows that count.

    >>> total, count = simnpo(jnp.array([-2.0]), jnp.array([2.0]), jnp.array([1.0]), beta=1.0)
    >>> round(float(total), 3), float(count)
    (0.627, 1.0)
    """
    per_row = -(2.0 / beta) * jax.nn.log_sigmoid(-beta * (logps / jnp.maximum(lengths, 1.0) + delta))
    return (per_row * rows).sum(), rows.sum()


def dpo(better: jax.Array, worse: jax.Array, rows: jax.Array, *, beta: float = 0.1) -> Pair:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), of one answer over another to the same question.

    ``-mean_n log sigmoid(beta * (better_n - worse_n))``, each ``[B]`` a ``log p(y_n | x_n) - log p_ref(y_n | x_n)`` summed over the
    answer. Libraries of unlearning multiply it by ``2 / beta``, as :func:`npo` is; a phase's weight does.

    >>> total, count = dpo(jnp.array([3.0]), jnp.array([1.0]), jnp.array([1.0]), beta=0.5)
    >>> round(float(total), 3), float(count)
    (0.313, 1.0)
    """
    per_row = -jax.nn.log_sigmoid(beta * (better - worse))
    return (per_row * rows).sum(), rows.sum()


def satimp(logits: jax.Array, tokens: jax.Array, weights: jax.Array, *, beta1: float = 5.0, beta2: float = 1.0) -> Pair:
    """Ascent by saturation and importance (SatImp, Yang et al., arXiv 2505.11953).

    ``sum_t w_t p_t^beta1 (1 - p_t)^beta2 log p_t`` and ``sum_t w_t``, with ``p_t`` the probability of token t and both of its
    powers held constant: what is forgotten already and what is still certain are left alone.

    >>> total, count = satimp(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]), beta1=1.0)
    >>> round(float(total), 3), float(count)  # 2 / 4 log 1/2
    (-0.347, 2.0)
    """
    each, weights = token_logps(logits, tokens), weights[:, 1:]
    held = jax.lax.stop_gradient(each)
    return (weights * jnp.exp(beta1 * held) * (-jnp.expm1(held)) ** beta2 * each).sum(), weights.sum()


def wga(logits: jax.Array, tokens: jax.Array, weights: jax.Array, *, beta: float = 1.0) -> Pair:
    """Weighted gradient ascent (WGA, Wang et al., arXiv 2502.19301): less the less likely a token still is.

    ``sum_t w_t p_t^beta log p_t`` and ``sum_t w_t``, with the power held constant.

    >>> total, count = wga(jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 0]]), jnp.array([[0., 1., 1.]]))
    >>> round(float(total), 3), float(count)  # 2 / 2 log 1/2
    (-0.693, 2.0)
    """
    return satimp(logits, tokens, weights, beta1=beta, beta2=0.0)
