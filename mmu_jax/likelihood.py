"""How likely a model finds the answers that are right, of all a row or token by token; what is not finite is refused by name."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import NotFiniteError, losses, models, objectives, sharding
from mmu_jax.data import streams
from mmu_jax.metrics import Items
from mmu_jax.trees import Params


@partial(jax.jit, static_argnums=0)
def answer_logps(model: models.Model, params: Params, batch: dict) -> jax.Array:
    """log p(answer | prompt) of every row, ``[B]``; not finite where a logit of the row is not (:func:`check_finite`)."""
    return objectives.Seen(model, params).logps(batch)


@partial(jax.jit, static_argnums=(0, 3))
def branch_logps(model: models.Model, params: Params, batch: dict, count: int) -> jax.Array:
    """log p(answer | prompt) of every branch of a batch of ``branches.Branched`` rows, ``[B, count]``; 0 where there is none."""
    logps = losses.next_logps(model.forward(params, batch), batch["said"]) * batch["told"]
    return jnp.where(batch["of"][..., None] == jnp.arange(1, count + 1), logps[..., None], 0.0).sum(axis=1)


class Told(NamedTuple):
    """What a model says of right answers, teacher forced, token by token: N answers, A tokens of the longest, in float32.

    An answer ends with its end of turn, as training has it; where :attr:`there` is False it has ended, and all else is 0.

    >>> one = Told(*(np.array([[-0.1, -0.7, 0.0]]),) * 3, np.array([[True, False, False]]), np.array([[True, True, False]]))
    >>> one.words.tolist()
    [[True, False, False]]

    Attributes:
      logps: ``[N, A]``, log p of every token of the answer, in nats.
      means, variances: ``[N, A]``, of log p of a token that the model itself draws at that place: ``mu = sum_v p_v log p_v`` and
        ``sum_v p_v (log p_v - mu)^2``, over the vocabulary.
      hits: ``[N, A]`` bool, whether the token is the likeliest one.
      there: ``[N, A]`` bool.
    """

    logps: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    hits: np.ndarray
    there: np.ndarray

    @property
    def words(self) -> np.ndarray:
        """``[N, A]`` bool: the tokens of every answer but its last, which is the end of turn."""
        return self.there & np.pad(self.there[:, 1:], ((0, 0), (0, 1)))


@partial(jax.jit, static_argnums=0)
def token_numbers(model: models.Model, params: Params, batch: dict) -> Told:
    """:class:`Told` of a batch, but that answers end in the last column they may have instead of beginning in the first."""
    logits, tokens, weights = objectives.Seen(model, params).answers(batch)
    logits, said = logits[:, :-1].astype(jnp.float32), tokens[:, 1:]
    logps = jax.nn.log_softmax(logits)
    p = jnp.exp(logps)
    means = (p * logps).sum(axis=-1)
    variances = (p * jnp.square(logps - means[..., None])).sum(
        axis=-1
    )  # of squares less a square, float32 keeps too little
    hits = jnp.argmax(logits, axis=-1) == said
    return Told(losses.next_logps(logits, said), means, variances, hits, weights[:, 1:] > 0)


def joined(parts: list[Told]) -> Told:
    """Of several batches with as many columns, every answer from the first column on, as long as the longest.

    >>> late = Told(*(np.array([[9.0, -0.1]]),) * 3, np.array([[True, True]]), np.array([[False, True]]))
    >>> [x.tolist() for x in joined([late, late])[3:]], joined([late]).logps.tolist()
    ([[[True], [True]], [[True], [True]]], [[-0.1]])
    """
    *values, there = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(~there, axis=1, kind="stable")[:, : int(there.sum(axis=1).max())]
    there = np.take_along_axis(there, order, axis=1)
    found = (np.take_along_axis(x, order, axis=1) for x in values)
    return Told(*(np.where(there, x, np.zeros((), x.dtype)) for x in found), there)


def check_finite(good: np.ndarray, whose: Callable[[int], str]) -> None:
    """Raises NotFiniteError if one of ``good [N]`` (bool) is False, naming ``whose(i)`` the first is."""
    broken = np.flatnonzero(~np.asarray(good))
    if len(broken):
        raise NotFiniteError(
            f"expected finite numbers from the model, found NaN or infinity for {whose(int(broken[0]))} ({len(broken)} of "
            f"{len(good)} rows); its weights are not finite or do not fit its config, or the dtype it computes in is too coarse"
        )


def reference_logps(model: models.Model, params: Params, stream: streams.Stream, mesh: jax.sharding.Mesh) -> np.ndarray:
    """log p(answer) under ``params`` of every row and photo of a stream, ``[R, P]``: a column ``ref_logps`` for it.

    Raises:
      InputError: one is not finite; its row is named.
    """
    rows = len(stream.examples)
    photos = max(len(stream.photos(row)) for row in range(rows))
    column = np.zeros((rows, photos), np.float32)
    with jax.set_mesh(mesh):
        for photo in range(photos):
            for start in range(0, rows, stream.rows):
                part = np.arange(start, min(start + stream.rows, rows))
                batch = sharding.put(stream.gather(part, np.full(len(part), photo)), mesh)
                values = sharding.host(answer_logps(model, params, batch))
                check_finite(
                    np.isfinite(values[: len(part)]),
                    lambda i, part=part: f"the reference of {stream.describe({'row': part[i : i + 1]})}",
                )
                column[part, photo] = values[: len(part)]
    return column


def recognised(model: models.Model, params: Params, stream: streams.Stream, mesh: jax.sharding.Mesh) -> Items:
    """``p(answer)^(1 / length)`` of every row of a stream, each with its first photo: how well its people are known.

    Raises:
      NotFiniteError: one is not finite; its row is named.
    """
    logps = []
    with jax.set_mesh(mesh):
        looks = stream.looks(mesh.shape["data"])
        for batch, values in sharding.ahead((b, answer_logps(model, params, sharding.put(b, mesh))) for b in looks):
            found = sharding.host(values)[batch["row"] >= 0]
            check_finite(np.isfinite(found), lambda i, b=batch: stream.describe({"row": b["row"][i : i + 1]}))
            logps.append(found)
    lengths = np.array([weights[1:].sum() for weights in stream.texts.weights])
    return Items(np.exp(np.concatenate(logps) / lengths), np.array([e.person for e in stream.examples]))
