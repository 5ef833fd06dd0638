"""Params changed without steps: dampened, pruned, added and subtracted. A table of rows, each of what it is computed from.

Where steps are stopped, an edit is weighed: each has one number, its *strength*, of which :func:`matched` finds the weakest
that forgets as much as is asked for. To add one, write its function and a row of ``EDITS``.
"""

import dataclasses
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import activations, sharding, trees
from mmu_jax.activations import Moments
from mmu_jax.data.slices import STREAMS
from mmu_jax.objectives import known
from mmu_jax.trees import Params, Tree

Evidence = dict[str, Tree]  # by stream name: trees like the params, or like a part of them, None elsewhere


def _changed(params: Params, change: Callable[..., jax.Array], *evidence: Tree) -> Params:
    """Those leaves of which there is evidence changed by ``change(leaf, *evidence)`` in float32, the others as they are."""

    def leaf(p, *found):
        return p if found[0] is None else change(p.astype(jnp.float32), *found).astype(p.dtype)

    return jax.tree.map(leaf, params, *evidence, is_leaf=lambda x: x is None)


# ---- what is done


def ssd(params: Params, evidence: Evidence, *, alpha: float = 10.0, dampening: float = 1.0) -> Params:
    """Selective synaptic dampening (Foster et al., arXiv 2308.07707): ``W *= min(dampening F_D / F_f, 1)`` where ``F_f > alpha F_D``.

    ``F_f`` and ``F_D`` are the diagonals of the empirical Fisher of the people to forget (``forget``) and of everyone (``vqa``),
    means over examples (``saliency.scores``): one is at most as many times the other as there are examples of everyone to one of
    theirs, and an alpha above that changes nothing. Leaves that have no score stay as they are.

    >>> scores = {'forget': {'w': jnp.array([8.0, 1.0])}, 'vqa': {'w': jnp.array([2.0, 1.0])}}
    >>> ssd({'w': jnp.array([1.0, 1.0])}, scores, alpha=3.0)['w'].tolist()
    [0.25, 1.0]
    """

    def dampened(w, own, everyone):
        chosen = own > alpha * everyone
        return jnp.where(chosen, w * jnp.minimum(dampening * everyone / jnp.where(chosen, own, 1.0), 1.0), w)

    return _changed(params, dampened, evidence["forget"], evidence["vqa"])


NEURONS = r".*/mlp/(down_proj|fc2)/weight"  # read what the neurons of a layer say
PRUNED = r".*/mlp/(gate_proj|up_proj|down_proj|fc1|fc2)/(weight|bias)"
WEIGHTS = {"absolute": 2.0, "positive": 0.0, "deviation": 2.0, "rms": 2.0}


def manu(params: Params, evidence: Evidence, *, share: float = 0.1) -> Params:
    """Modality-aware neuron pruning (Liu et al., arXiv 2502.15910): the share of neurons that do most for the people to forget is zeroed.

    A neuron is an input of the second linear weight of an MLP. It scores ``sum_m w_m (I_m(forget) / (I_m(retain) + 1e-5) - 1)``, ``I_m``
    the mean of its magnitude, how often it is positive, its standard deviation and root mean square over tokens, and in the vision
    tower over patches, w of :data:`WEIGHTS`. One ranking for all layers of both modalities. Zeroed are the rows (and biases)
    that make it and the column that reads it; the authors' code ranks the outputs of every weight of an MLP for itself, in the last layers.

    >>> own, kept = (jnp.array([[[a, 1.0], [a, 1.0], [a, 1.0], [a * a, 1.0], [1.0, 1.0]]]) for a in (4.0, 1.0))
    >>> mlp = {'fc1': {'bias': jnp.ones((1, 2))}, 'fc2': {'weight': jnp.ones((1, 1, 2))}}
    >>> evidence = {name: {'layers': {'mlp': {'fc1': {'bias': None}, 'fc2': {'weight': x}}}} for name, x in (('forget', own), ('retain', kept))}
    >>> manu({'layers': {'mlp': mlp}}, evidence, share=0.5)['layers']['mlp']['fc2']['weight'].tolist()
    [[[0.0, 1.0]]]
    """
    scores = trees.flatten(_worth(evidence["forget"], evidence["retain"]))
    every = jnp.concatenate([score.ravel() for score in scores.values()])
    place = jnp.zeros(every.shape, jnp.int32).at[jnp.argsort(-every)].set(jnp.arange(every.size))
    kept, start = {}, 0
    for name, score in scores.items():
        kept[name.rsplit("/", 2)[0]] = (place[start : start + score.size] >= share * every.size).reshape(score.shape)
        start += score.size

    def leaf(name, p):
        layer, part, kind = name.rsplit("/", 2) if re.fullmatch(PRUNED, name) else ("", "", "")
        if layer not in kept:
            return p
        if part in ("down_proj", "fc2"):
            return jnp.where(kept[layer][..., None, :], p, 0) if kind == "weight" else p
        return jnp.where(kept[layer][..., None] if kind == "weight" else kept[layer], p, 0)

    return trees.map_named(leaf, params)


def _worth(forget: Moments, retain: Moments) -> Tree:
    """The scores of :func:`manu`, ``[..., in]``."""

    def importance(seen):
        mean = activations.means(seen)
        rms = jax.tree.map(jnp.sqrt, mean["square"])
        spread = jax.tree.map(lambda s, m: jnp.sqrt(jnp.maximum(s - m * m, 0.0)), mean["square"], mean["plain"])
        return {"absolute": mean["absolute"], "positive": mean["positive"], "deviation": spread, "rms": rms}

    own, others = importance(forget), importance(retain)
    ratios = [
        jax.tree.map(lambda f, r, w=weight: w * (f / (r + 1e-5) - 1.0), own[name], others[name])
        for name, weight in WEIGHTS.items()
    ]
    return jax.tree.map(lambda *parts: sum(parts), *ratios)


def excess(seen: Iterable[Moments], kept: Moments) -> Tree:
    """``[..., in]``: of every input ``sum_b max(0, log kc_b - log kc_kept)``, ``kc`` its mean magnitude, over batches.

    >>> less, more = {'w': jnp.ones((5, 1))}, {'w': jnp.array([[jnp.e], [1.0], [1.0], [1.0], [1.0]])}
    >>> round(float(excess([more, less, more], less)['w'][0]), 4)
    2.0
    """
    return activations.total(_above(one, kept) for one in seen)


@jax.jit
def _above(seen, kept):
    def leaf(own, others):
        return jnp.maximum(jnp.log(own + 1e-8) - jnp.log(others + 1e-8), 0.0)

    return jax.tree.map(leaf, activations.means(seen)["absolute"], activations.means(kept)["absolute"])


def kvw(params: Params, evidence: Evidence, *, gamma: float = 0.02) -> Params:
    """Knowledge vector weakening: column j of every ``down_proj`` times ``exp(-gamma sum_b max(0, log kc_b,j - log kc_retain,j))``.

    ``kc`` is the mean magnitude of input j over the tokens of answers, ``b`` are the batches of the people to forget
    (:func:`excess`), all measured on the params as they are; the authors weaken after every batch what the next is measured on, in
    layers 1 to 25 of 32.

    >>> kvw({'down_proj': jnp.array([[2.0, 2.0]])}, {'forget': {'down_proj': jnp.array([0.0, 1.0])}}, gamma=math.log(2))['down_proj'].tolist()
    [[2.0, 1.0]]
    """
    return _changed(params, lambda w, above: w * jnp.exp(-gamma * above)[..., None, :], evidence["forget"])


def task_vector(params: Params, evidence: Evidence, *, scale: float = 1.0) -> Params:
    """Negated task vector (Ilharco et al., arXiv 2212.04089): ``W - scale (W_forget - W)``, ``W_forget`` trained on the people to forget.

    >>> task_vector({'w': jnp.array([1.0])}, {'forget': {'w': jnp.array([1.5])}}, scale=2.0)['w'].tolist()
    [0.0]
    """
    return _changed(params, lambda w, tuned: w - scale * (tuned.astype(jnp.float32) - w), evidence["forget"])


def smfa(params: Params, evidence: Evidence, *, scale: float = 1.0, k: float = 5.0) -> Params:
    """Sculpted memory forgetting: what training on refusals adds, but where it undoes what training on the people to keep adds.

    ``D`` and ``D_r`` are the updates of a tensor by either; ``D = 0`` where ``D D_r < 0`` and ``|D| > k (|D|_2 / |D_r|_2) |D_r|``;
    then ``W + scale D``. The authors' updates are of LoRAs, one of them of questions without photos.

    >>> tuned = {'refusal': {'w': jnp.array([1.0, 8.0])}, 'retain': {'w': jnp.array([1.0, -1.0])}}
    >>> smfa({'w': jnp.zeros(2)}, tuned, k=1.0)['w'].tolist()
    [1.0, 0.0]
    """

    def leaf(name, p, tuned, others):
        w = p.astype(jnp.float32)
        update, keeps = tuned.astype(jnp.float32) - w, others.astype(jnp.float32) - w
        axes = tuple(range(int(trees.stacked(name)), p.ndim))
        size, kept = (jnp.sqrt(jnp.square(x).sum(axis=axes, keepdims=True)) for x in (update, keeps))
        against = (update * keeps < 0) & (jnp.abs(update) * kept > k * size * jnp.abs(keeps))
        return (w + scale * jnp.where(against, 0.0, update)).astype(p.dtype)

    return trees.map_named(leaf, params, evidence["refusal"], evidence["retain"])


# ---- how much of it


def matched(
    look: Callable[[float], float],
    reached: Callable[[float], bool],
    *,
    start: float,
    limit: float,
    rises: bool = True,
    looks: int = 16,
    near: float = 0.02,
) -> tuple[float, list[tuple[float, float]]]:
    """The weakest strength found at which ``reached(look(strength))``, and every look, ``(strength, what was seen)`` each.

    By doubling and halving from ``start`` until one strength reaches and a weaker one does not, then by bisection, until the two
    are within a factor ``1 + near``: what stopping early is to steps. Where nothing reaches, the strongest that was tried.

    >>> matched(lambda s: 1.0 / s, lambda seen: seen <= 0.2, start=1.0, limit=math.inf, near=0.3)[0]
    5.656854249492381

    Args:
      look: what is still known at a strength.
      limit: the strongest there is.
      rises: whether a larger number does more.
      looks: at most so many.
    """
    seen = [(start, look(start))]
    short = enough = None  # the strongest that does not reach, and the weakest that does
    while True:
        strength, value = seen[-1]
        short, enough = (short, strength) if reached(value) else (strength, enough)
        if None not in (short, enough):
            following = math.sqrt(short * enough)
            found = max(short, enough) <= (1 + near) * min(short, enough)
        else:
            following = strength * 2.0 if rises == (enough is None) else strength / 2.0
            following = min(following, limit) if rises else max(following, limit)
            found = following == strength
        if found or len(seen) == looks:
            return (short if enough is None else enough), seen
        seen.append((following, look(following)))


# ---- the table

READS = {
    "scores": "saliency by example of the linear weights, of every stream (saliency.scores)",
    "moments": "what every input of those weights is over all tokens and patches, of every stream (activations.total)",
    "excess": "how much more the answers of the first stream excite every input of those weights, batch by batch, than those of the second",
    "updates": "params trained on the phases of the method, each from the same and by itself, by the first stream of each",
}


@dataclasses.dataclass(frozen=True)
class Edit:
    """A row of the table.

    >>> EDITS['ssd'].options, EDITS['ssd'].start
    ({'alpha': 10.0, 'dampening': 1.0}, 1.0)

    Attributes:
      of: ``(params, evidence, **options) -> params``, pure; ``evidence`` by stream name, of the kind that it ``reads``.
      reads: of :data:`READS`.
      streams: what of; rows of ``data.slices.STREAMS``.
      strength: the option by which more or less is done, a number above 0.
      limit: the strongest that it may be, or come near to; below its default where a smaller number does more.
      leaves: pattern of what it may change; empty for the linear weights of a family.
    """

    of: Callable[..., Params]
    reads: str
    streams: tuple[str, ...]
    strength: str
    limit: float = math.inf
    leaves: str = ""

    def __post_init__(self):
        known("what an edit reads", [self.reads], READS)
        known("streams of an edit", self.streams, STREAMS)
        known("the strength of an edit", [self.strength], self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``of`` and their defaults."""
        _, _, *others = inspect.signature(self.of).parameters.values()
        return {option.name: option.default for option in others}

    @property
    def trained(self) -> tuple[str, ...]:
        """The streams that begin the phases whose updates it reads."""
        return self.streams if self.reads == "updates" else ()

    @property
    def rises(self) -> bool:
        """Whether a larger number does more.

        >>> EDITS['manu'].rises, EDITS['ssd'].rises
        (True, False)
        """
        return self.limit > self.start

    def beyond(self, strength: float) -> bool:
        """Whether a strength is on the far side of the strongest there is.

        >>> EDITS['manu'].beyond(1.5), EDITS['kvw'].beyond(1.5)
        (True, False)
        """
        return strength > self.limit if self.rises else strength < self.limit

    @property
    def start(self) -> float:
        """Its strength where nothing else is said."""
        return self.options[self.strength]


EDITS: dict[str, Edit] = {
    "ssd": Edit(ssd, "scores", ("forget", "vqa"), "dampening", limit=0.0),
    "manu": Edit(manu, "moments", ("forget", "retain"), "share", limit=1.0, leaves=PRUNED),
    "kvw": Edit(kvw, "excess", ("forget", "retain"), "gamma", leaves=r"language_model/.*/mlp/down_proj/weight"),
    "task_vector": Edit(task_vector, "updates", ("forget",), "scale", leaves=".*"),
    "smfa": Edit(smfa, "updates", ("refusal", "retain"), "scale", leaves=".*"),
}


def apply(
    name: str, params: Params, evidence: Evidence, strength: float, options: dict[str, Any] | None = None
) -> Params:
    """Params that a row makes of ``params``, which stay; placed as they are. One program serves every strength.

    >>> scores = {'forget': {'w': jnp.array([8.0, 1.0])}, 'vqa': {'w': jnp.array([2.0, 1.0])}}
    >>> apply('ssd', {'w': jnp.array([1.0, 1.0])}, scores, 0.5, {'alpha': 3.0})['w'].tolist()
    [0.125, 1.0]
    """
    others = {key: value for key, value in (options or {}).items() if key != EDITS[name].strength}
    program = _program(name, json.dumps(others, sort_keys=True), sharding.places(params))
    return program(params, evidence, jnp.float32(strength))


@functools.lru_cache(4)
def _program(name: str, options: str, where: sharding.Places) -> Callable[..., Params]:
    row = EDITS[name]

    def edited(params, evidence, strength):
        return partial(row.of, **json.loads(options))(params, evidence, **{row.strength: strength})

    return jax.jit(edited, out_shardings=jax.tree.unflatten(*where))
