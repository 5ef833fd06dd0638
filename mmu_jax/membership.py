"""Whether somebody's answers were trained on, told from what a model says of them: scores, each **low for a member**, and what they tell.

    told = examiner.told(params, examples, photos, album)            # of people to forget, and of people never seen
    found = membership.scores(told, texts=[e.answer for e in examples])
    membership.auc(found["min_k"], others["min_k"])                   # 1/2 where nothing tells them apart

A model that forgot is told from one that never learned by nothing: its area is that of gold, not the least that there is.
Where published code leaves the last token of an answer out, its end of turn, it is left out here too: in Min-K, Min-K++ and
GradNorm, and not in LOSS, ZLIB and Reference.
"""

import dataclasses
import zlib as compression
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, likelihood, models, objectives, rowwise, sharding, trees
from mmu_jax.data import streams
from mmu_jax.likelihood import Told
from mmu_jax.trees import Batch, Params

# ---- scores


def loss(told: Told) -> np.ndarray:
    """Cross-entropy in nats per token, end of turn included, ``[N]`` (LOSS: Yeom et al., arXiv 1709.01604).

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> loss(told).round(3).tolist()
    [0.4]
    """
    return -told.logps.sum(axis=1) / told.there.sum(axis=1)


def zlib(told: Told, texts: Sequence[str]) -> np.ndarray:
    """:func:`loss` over the bytes that zlib makes of each answer in UTF-8, ``[N]`` (ZLIB: Carlini et al., arXiv 2012.07805).

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> zlib(told, ['Lima']).round(4).tolist()
    [0.0333]
    """
    return loss(told) / np.array([len(compression.compress(text.encode())) for text in texts])


def min_k(told: Told, share: float = 0.2) -> np.ndarray:
    """Minus the mean log p of the least likely tokens of each answer, ``[N]`` (Min-K%: Shi et al., arXiv 2310.16789).

    Of n tokens, the end of turn left out, the ``max(1, int(share n))`` least likely.

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> min_k(told, share=0.5).round(3).tolist()
    [0.9]
    """
    return _least(told.logps, told.words, share)


def min_k_plus(told: Told, share: float = 0.2) -> np.ndarray:
    """:func:`min_k` of ``z = (log p - mu) / sqrt(max(sigma^2, 1e-6))``, ``[N]`` (Min-K%++: Zhang et al., arXiv 2404.02936).

    ``mu`` and ``sigma^2`` are mean and variance of log p of a token that the model draws at that place.

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> min_k_plus(told, share=0.5).round(3).tolist()
    [0.8]
    """
    return _least((told.logps - told.means) / np.sqrt(np.maximum(told.variances, 1e-6)), told.words, share)


def _least(values: np.ndarray, there: np.ndarray, share: float) -> np.ndarray:
    if not 0 < share <= 1:
        raise InputError(f"expected the share of tokens above 0 and up to 1, found {share}; correct it")
    counts = np.maximum((share * there.sum(axis=1)).astype(int), 1)
    lowest = np.sort(np.where(there, values, np.inf), axis=1)
    taken = np.arange(values.shape[1]) < counts[:, None]
    return -np.where(taken, lowest, 0.0).sum(axis=1) / counts


def reference(told: Told, other: Told) -> np.ndarray:
    """:func:`loss` less that of another model, which never saw any of them, ``[N]`` (Reference: Carlini et al., arXiv 2112.03570).

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> reference(told, told).tolist()
    [0.0]
    """
    return loss(told) - loss(other)


def grad_norm(told: Told, norms: np.ndarray, p: float = 2) -> np.ndarray:
    """The p-norms of the ``norms [N, 3]`` of :func:`grad_norms`, ``[N]``, whatever was told (GradNorm: Wang et al., arXiv 2402.17012).

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> grad_norm(told, np.array([[3.0, 0.5, 0.25]])).tolist()
    [0.5]

    Raises:
      InputError: ``p`` is none of 1, 2 and infinity, or the norms are not of these three.
    """
    del told
    if p not in rowwise.NORMS:
        raise InputError(f"expected p among {', '.join(map(str, rowwise.NORMS))}, found {p}; correct it")
    if np.ndim(norms) != 2 or np.shape(norms)[1] != len(rowwise.NORMS):
        raise InputError(
            f"expected the [N, {len(rowwise.NORMS)}] of grad_norms, found the shape {list(np.shape(norms))}; give these"
        )
    return norms[:, rowwise.NORMS.index(p)]


def grad_norms(model: models.Model, params: Params, stream: streams.Stream, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Mean over linear weights, layer by layer, of the 1-, 2- and maximum norm of the gradient of every row's own loss, ``[N, 3]``.

    For the weights that the family calls eligible: of these one backward pass gives the norms of
    all rows of a batch (``rowwise``). Peers take the mean over whatever trains. The loss is a mean over the words of an answer; each is
    shown with its first photo.

    Raises:
      NotFiniteError: one is not finite; its row is named.
    """
    found = []
    with jax.set_mesh(mesh):
        for batch, values in sharding.ahead(
            (b, row_norms(model, params, sharding.put(b, mesh))) for b in stream.epoch()
        ):
            norms = sharding.host(values)[batch["row"] >= 0]
            likelihood.check_finite(
                np.isfinite(norms).all(axis=1),
                lambda i, b=batch: f"the gradient of {stream.describe({'row': b['row'][i : i + 1]})}",
            )
            found.append(norms)
    return np.concatenate(found)


@partial(jax.jit, static_argnums=0)
def row_norms(model: models.Model, params: Params, batch: Batch) -> jax.Array:
    """:func:`grad_norms` of a batch, ``[B, 3]``; 0 for rows that only fill it."""
    weights = batch["weights"]
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=1)
    words = weights * (jnp.arange(weights.shape[1]) != last[:, None])
    rows, part = len(words), trees.split(params, model.family.eligible)[0]
    like = trees.map_named(
        lambda name, p: jax.ShapeDtypeStruct((*p.shape[: trees.stacked(name)], rows, 3), jnp.float32), part
    )
    there = (batch["row"] >= 0).astype(jnp.float32)
    norms = rowwise.sums(objectives.of_rows("descent", model), params, like, batch | {"weights": words}, "norms", there)
    return jnp.concatenate([x.reshape(-1, rows, 3) for x in jax.tree.leaves(norms)]).mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Score:
    """A row of the table.

    >>> SCORES['zlib'].title, SCORES['zlib'].needs
    ('ZLIB', 'texts')

    Attributes:
      title: as a heading.
      of: ``(told) -> [N]``, or ``(told, what it needs) -> [N]``; low for a member.
      needs: beside what a model says: nothing, or one of :data:`NEEDS`.
      source: the paper.
    """

    title: str
    of: Callable[..., np.ndarray]
    needs: str = ""
    source: str = ""

    def __post_init__(self):
        if self.needs and self.needs not in NEEDS:
            raise InputError(
                f"expected needs of a score among {', '.join(NEEDS)}, found {self.needs!r}; correct the row"
            )


NEEDS = {
    "texts": "the answers themselves, N",
    "reference": "the Told of a model that saw neither side, of the same answers",
    "gradients": "grad_norms of the same answers, [N, 3]",
}
_GRAD_NORM = "Wang et al., arXiv 2402.17012"
SCORES: dict[str, Score] = {
    "loss": Score("LOSS", loss, source="Yeom et al., arXiv 1709.01604"),
    "zlib": Score("ZLIB", zlib, "texts", "Carlini et al., arXiv 2012.07805"),
    "min_k": Score("Min-K", min_k, source="Shi et al., arXiv 2310.16789"),
    "min_k_plus": Score("Min-K++", min_k_plus, source="Zhang et al., arXiv 2404.02936"),
    "grad_norm": Score("GradNorm", grad_norm, "gradients", _GRAD_NORM),
    "grad_norm_1": Score("GradNorm, p = 1", partial(grad_norm, p=1), "gradients", _GRAD_NORM),
    "grad_norm_max": Score("GradNorm, p = inf", partial(grad_norm, p=np.inf), "gradients", _GRAD_NORM),
    "reference": Score("Reference", reference, "reference", "Carlini et al., arXiv 2112.03570"),
}


def scores(told: Told, **given: Any) -> dict[str, np.ndarray]:
    """Every score of the table of which there is what it needs, by name, each ``[N]``.

    >>> told = Told(*np.array([[[-0.1, -0.9, -0.2]], [[-0.5] * 3], [[0.25] * 3]]), *np.ones((2, 1, 3), bool))
    >>> list(scores(told, texts=['Lima']))
    ['loss', 'zlib', 'min_k', 'min_k_plus']

    Args:
      given: by the names of :data:`NEEDS`.
    Raises:
      InputError: what is given is none of these, or of another number of answers.
    """
    for name, value in given.items():
        if name not in NEEDS:
            raise InputError(f"expected what scores need among {', '.join(NEEDS)}, found {name!r}; correct it")
        count = len(value.logps) if isinstance(value, Told) else len(value)
        if count != len(told.logps):
            raise InputError(f"expected {name} of the {len(told.logps)} answers, found {count}; give those of the same")
    return {
        name: score.of(told, *([given[score.needs]] if score.needs else []))
        for name, score in SCORES.items()
        if not score.needs or score.needs in given
    }


# ---- what they tell


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the ROC curve: how often a score of ``others [M]`` is above one of ``members [N]``, a tie half.

    1 where members are always told, 1/2 where a score says nothing, 0 where members score worst, which tells them as well.

    >>> auc(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
    0.875
    """
    return float(_above(members, others).mean())


def _above(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """``[N]``: the share of ``others`` above each of ``members``."""
    both = {"members": members, "others": others}
    if broken := [name for name, values in both.items() if not len(values) or not np.isfinite(values).all()]:
        raise InputError(
            f"expected finite scores of members and of others, found none or NaN or infinity among {' and '.join(broken)}; look "
            "at what the model says of them"
        )
    rising = np.sort(others)
    below, up_to = (np.searchsorted(rising, members, side=side) for side in ("left", "right"))
    return 1 - (below + up_to) / 2 / len(rising)


def auc_interval(
    members: np.ndarray,
    others: np.ndarray,
    people: np.ndarray,
    strangers: np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """:func:`auc` with a 95 % interval from a bootstrap over people of both sides: whole people are drawn, with all that is theirs.

    Of a side that is one person alone, items are drawn.

    >>> found = auc_interval(np.array([0.1, 0.2]), np.array([0.2, 0.9]), np.array(['a', 'b']), np.array(['c', 'd']))
    >>> found['mean'], found['n'], found['people']
    (0.875, 2, 2)

    Args:
      people: ``[N]``, whose each of ``members [N]`` is.
      strangers: ``[M]``, whose each of ``others [M]`` is.
    Returns:
      ``{'mean', 'low', 'high', 'n', 'people'}``; the last two of members.
    """
    mean, rng, drawn = auc(members, others), np.random.default_rng(seed), []
    for owners in (people, strangers):
        ids, index = np.unique(owners, return_inverse=True)
        clusters = index if len(ids) > 1 else np.arange(len(owners))
        count = clusters.max() + 1
        times = rng.multinomial(count, np.full(count, 1 / count), samples)  # how often each is drawn
        drawn.append((times, clusters, np.bincount(clusters)))
    (mine, of_mine, sizes), (theirs, of_theirs, other_sizes) = drawn
    # Pairs of people -> pairs of their items in which the other is above.
    pairs = np.zeros((len(sizes), len(other_sizes)))
    for j in range(len(other_sizes)):
        found = _above(members, others[of_theirs == j]) * other_sizes[j]
        pairs[:, j] = np.bincount(of_mine, weights=found, minlength=len(sizes))
    above = ((mine @ pairs) * theirs).sum(axis=1)
    low, high = np.percentile(above / (mine @ sizes) / (theirs @ other_sizes), [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(members), "people": len(np.unique(people))}


def tpr(members: np.ndarray, others: np.ndarray, fpr: float = 0.01) -> float:
    """Share of ``members [N]`` that are told where no more than a share ``fpr`` of ``others [M]`` is taken for one.

    Who is told scores below a threshold, the highest at which that holds (Carlini et al., arXiv 2112.03570). Of fewer than
    ``1 / fpr`` others none may be: only members below all of them are told.

    >>> tpr(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.4])), tpr(np.array([0.1, 0.5]), np.array([0.2, 0.4]), fpr=0.5)
    (0.3333333333333333, 0.5)
    """
    _above(members, others)
    allowed = int(fpr * len(others) + 1e-9)
    if allowed >= len(others):
        return 1.0
    return float((members < np.sort(others)[allowed]).mean())


def privleak(area: float, gold: float) -> float:
    """How much further from gold's a model's :func:`auc` is, in per cent of ``1 - gold`` (MUSE, arXiv 2407.06460).

    ``((1 - area) - (1 - gold)) / (1 - gold) x 100``: 0 like gold; below 0 members are told better than of gold, down to -100
    where they always are; above 0 they score worse than people never seen do, which gives them away too.

    >>> privleak(1.0, 0.5), privleak(0.5, 0.5), privleak(0.25, 0.5)
    (-100.0, 0.0, 50.0)

    Raises:
      InputError: gold tells members always, so that there is nothing to compare with.
    """
    if gold >= 1:
        raise InputError(
            f"expected an area below 1 of gold, found {gold}: the two sides differ by more than training; compare people who "
            "were asked alike"
        )
    return 100 * ((1 - area) - (1 - gold)) / (1 - gold)
