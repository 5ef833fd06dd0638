"""Params changed without steps: dampened, pruned, added and subtracted. A table of rows, each of what it is computed from.

Where steps are stopped, an edit is weighed: each has one number, its *strength*, of which :func:`matched` finds the weakest
that forgets as much as is asked for. To add one, write its function and a row of ``EDITS``.
"""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import sharding
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


# ---- how much of it


def matched(
    look: Callable[[float], float],
    reached: Callable[[float], bool],
    *,
    start: float,
    limit: float,
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
      limit: the strongest there is; below ``start`` where a smaller number does more.
      looks: at most so many.
    """
    rises, seen = limit > start, [(start, look(start))]
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
      updates: how many it reads, each of a phase of the method.
    """

    of: Callable[..., Params]
    reads: str
    streams: tuple[str, ...]
    strength: str
    limit: float = math.inf
    leaves: str = ""
    updates: int = 0

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
    def start(self) -> float:
        """Its strength where nothing else is said."""
        return self.options[self.strength]


EDITS: dict[str, Edit] = {
    "ssd": Edit(
        ssd,
        "scores",
        ("forget", "vqa"),
        "dampening",
        limit=0.0,
    ),
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
