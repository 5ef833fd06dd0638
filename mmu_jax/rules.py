"""Which entries a masked step may move: a rule of a method, and the mask that it makes of scores."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmu_jax import InputError, masks, rowwise, trees
from mmu_jax.trees import Mask, Params, Scores


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Scores of one unit at the vanilla params: squared gradients on the three sets, and how many units each had.

    Attributes:
      forget, retain, text: trees of float32 scores (``saliency.scores``): forget VQA, retain VQA, and what the language side
        is to keep beside it, the text QA of everyone; with ``Rule.mixed`` that and retain VQA in one.
      retain_units, text_units: the numbers of units by which the two are pooled for the language side; with ``Rule.mixed``
        the first is 0.
      summed: ``|mean forget gradient|``, for SalUn; None where no rule asks for it.
    """

    forget: Scores
    retain: Scores
    text: Scores
    retain_units: float
    text_units: float
    summed: Scores | None


# What is chosen, of the mask that the ratio test makes, the scores and a key. Only the first needs no scores of its own.
CHOICES: dict[str, Callable[[Mask, Evidence, jax.Array], Mask]] = {
    "ratio": lambda ratio, evidence, key: ratio,
    "random": lambda ratio, evidence, key: masks.random(key, ratio),
    "top_k": lambda ratio, evidence, key: masks.top_k(evidence.forget, masks.layer_counts(ratio), scope="layer"),
    "salun": lambda ratio, evidence, key: masks.top_k(evidence.summed, masks.count(ratio)),
    "all": lambda ratio, evidence, key: jax.tree.map(jnp.ones_like, ratio),
}


CLOSED = {
    "preserve": ("pooled", "retain", "text", "ranks"),
    "side": ("vision", "language", "both"),
    "unit": ("example", "batch"),
    "unlisted": ("freeze", "pass"),
    "clip": ("after", "before"),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which entries a masked step may move.

    >>> Rule(by='top_k').needs_scores, Rule().needs_scores
    (True, False)

    Attributes:
      by: ``'ratio'`` (MMUnlearner), or at the density of that mask ``'random'``, ``'top_k'`` (both as dense in every
        layer, the latter by forget scores) and ``'salun'`` (global, of the summed forget gradient); or ``'all'``, whatever
        the scores.
      side: ``'vision'``, ``'language'`` or ``'both'``; the other side is frozen in masked steps.
      preserve: what the forget scores of the language side are weighed against: retain VQA and the text QA of everyone
        ``'pooled'`` by the number of their examples (the paper; where the model is sure of text, text then weighs next to
        nothing), either alone (``'retain'``, ``'text'``), or ``'ranks'``: the rank of the forget score in its leaf against
        the mean of both ranks.
      fraction: select this share of every layer of every leaf, the largest ratios, instead of those of at least tau; None
        for tau.
      unit: of the scores, ``'example'`` or ``'batch'``.
      unlisted: leaves that are not scored, ``'freeze'`` or ``'pass'`` (the public code: norms, embeddings and head
        get the whole ascent).
      clip: ``'after'`` or ``'before'`` the mask.
      gradients_only: mask the gradient but not the update, as the public code does.
      leaves: pattern of the leaves that are scored, None for the model's own (``Family.eligible``).
      loss: name of the loss whose gradients are scored.
      eps, noise: of the ratio; None for those of the caller, a noise below zero for no floor.
      mixed: whether the preserve set of the language side is scored in batches of photos and text alike.
    Raises:
      InputError: ``by`` is none of these.
    """

    by: str = "ratio"
    side: str = "both"
    preserve: str = "pooled"
    fraction: float | None = None
    unit: str = "example"
    unlisted: str = "freeze"
    clip: str = "after"
    gradients_only: bool = False
    leaves: str | None = None
    loss: str = "descent"
    eps: float | None = None
    noise: float | None = None
    mixed: bool = False

    def __post_init__(self):
        if self.by not in CHOICES:
            raise InputError(f"expected a mask rule {', '.join(CHOICES)}, found {self.by!r}; choose one of them")
        for field, values in CLOSED.items():
            if getattr(self, field) not in values:
                raise InputError(
                    f"expected {field} of a mask rule among {', '.join(values)}, found {getattr(self, field)!r}; correct it"
                )

        if self.fraction is not None and not 0 < self.fraction < 1:
            raise InputError(f"expected fraction of a mask rule between 0 and 1, found {self.fraction!r}; correct it")

    @property
    def reads(self) -> tuple[str, str, str | None, bool]:
        """What tells its scores from others': rules that agree in it share them."""
        return self.unit, self.loss, self.leaves, self.mixed

    def by_row(self, params: Params, linear: str) -> bool:
        """Whether each example is scored by itself in a backward pass of all (``rowwise``): every leaf is a weight of ``linear``."""
        return self.unit == "example" and rowwise.fits(params, self.leaves or linear, linear)

    @property
    def scored(self) -> bool:
        """Whether any scores are needed to make it."""
        return self.by != "all"

    @property
    def needs_scores(self) -> bool:
        """Whether it needs the scores themselves: one signed accumulator decides the ratio, and so how much is drawn at random."""
        return self.by not in ("ratio", "random", "all") or self.fraction is not None or self.preserve != "pooled"

    @property
    def needs_sum(self) -> bool:
        """Whether it needs the summed gradient of the forget set beside the scores."""
        return self.by == "salun"

    def numbers(self, eps: float, noise: float) -> dict[str, float]:
        """``eps`` and ``noise``, its own where it has them."""
        return {"eps": eps if self.eps is None else self.eps, "noise": noise if self.noise is None else self.noise}


def make(
    rule: Rule,
    evidence: Evidence,
    params: Params,
    sides: dict[str, str],
    key: jax.Array,
    *,
    tau: float = 1.0,
    eps: float = 1e-15,
    noise: float = masks.NOISE,
) -> Mask:
    """The mask of a rule, for all of ``params``: a tree of bool like them.

    The vision side (pattern ``sides['vision']``) is weighed against retain VQA, the language side against retain VQA
    and the text QA of everyone, the people to forget included (MMUnlearner, arXiv 2502.11051, section 3).

    >>> scores = {'vision': {'w': jnp.array([4., 1.])}, 'language': {'w': jnp.array([.5, 9.])}}
    >>> ones = jax.tree.map(jnp.ones_like, scores)
    >>> evidence = Evidence(scores, ones, ones, 1.0, 1.0, None)
    >>> sides = {'vision': 'vision/.*', 'language': 'language/.*'}
    >>> make(Rule(side='language'), evidence, ones, sides, jax.random.key(0))['language']['w']
    Array([False,  True], dtype=bool)

    Args:
      tau, eps, noise: of :func:`masks.ratio`.
      key: of the positions that are drawn.
    """
    if rule.needs_sum and evidence.summed is None:
        raise InputError(
            f"expected Evidence.summed for a mask rule {rule.by}, found None; score the forget set signed too"
        )
    units = evidence.retain_units, evidence.text_units

    pool = {
        "pooled": lambda f, retain, text: (f, _pooled(retain, text, *units)),
        "retain": lambda f, retain, text: (f, retain),
        "text": lambda f, retain, text: (f, text),
        "ranks": lambda f, retain, text: (_ranks(f), (_ranks(retain) + _ranks(text)) / 2),
    }[rule.preserve]

    def weigh(name, f, retain, text):
        return (f, retain) if re.fullmatch(sides["vision"], name) else pool(f, retain, text)

    pairs = trees.map_named(weigh, evidence.forget, evidence.retain, evidence.text)
    forget, preserved = (jax.tree.map(lambda _, pair, i=i: pair[i], evidence.forget, pairs) for i in (0, 1))
    numbers = rule.numbers(eps, noise)
    if rule.fraction is None:
        weighed = masks.ratio(forget, preserved, tau=tau, **numbers)
    else:
        weighed = _most(rule.fraction, forget, preserved, **numbers)
    return _unlisted(rule, CHOICES[rule.by](_one_side(rule, weighed, sides), evidence, key), params)


@jax.jit
def _pooled(retain: jax.Array, text: jax.Array, retain_units: float, text_units: float) -> jax.Array:
    """The mean of two scores by the units that each is a mean of."""
    return (retain_units * retain + text_units * text) / (retain_units + text_units)


@jax.jit
def _ratios(forget: jax.Array, preserved: jax.Array, seen: jax.Array, eps: float) -> jax.Array:
    return jnp.where(seen, (forget + eps) / (preserved + eps), 0.0)


@jax.jit
def _ranks(scores: jax.Array) -> jax.Array:
    """The rank of every entry among those of its leaf, from 0 for the smallest to 1; equals share the mean of theirs."""
    flat = jnp.sort(scores.reshape(-1))
    below, up_to = (jnp.searchsorted(flat, scores, side=side).astype(jnp.float32) for side in ("left", "right"))
    return (below + up_to - 1.0) / 2.0 / max(scores.size - 1, 1)


def _most(fraction: float, forget: Scores, preserved: Scores, eps: float, noise: float) -> Mask:
    """The largest ratios of every layer, so many of them; entries without evidence (:func:`masks.ratio`) come last."""
    alive = masks.ratio(forget, preserved, tau=0.0, eps=eps, noise=noise)
    ratios = jax.tree.map(lambda f, p, seen: _ratios(f, p, seen, eps), forget, preserved, alive)
    counts = {}
    for name, leaf in trees.flatten(ratios).items():
        layers = leaf.shape[0] if trees.stacked(name) else 1
        counts[name] = max(int(fraction * leaf.size / layers), 1)
    return masks.top_k(ratios, counts, scope="layer")


def text_share(evidence: Evidence, sides: dict[str, str]) -> float:
    """Share of the pooled preserve score of the language side that is text's: near 0, text restricts nothing.

    >>> one, sides = {'w': jnp.ones(2)}, {'language': 'w'}
    >>> text_share(Evidence(one, one, one, 3.0, 1.0, None), sides)
    0.25
    """
    sums = {}
    for kind, units in (("retain", evidence.retain_units), ("text", evidence.text_units)):
        part = trees.split(getattr(evidence, kind), sides["language"])[0]
        sums[kind] = units * float(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(part)))
    return sums["text"] / max(sums["retain"] + sums["text"], 1e-30)


def make_signed(
    rule: Rule,
    difference: Scores,
    params: Params,
    sides: dict[str, str],
    key: jax.Array,
    *,
    tau: float = 1.0,
    eps: float = 1e-15,
    noise: float = masks.NOISE,
) -> Mask:
    """The mask of a rule by ratio, or a random one as dense, from ``F_forget - tau * F_preserve`` (``saliency.difference``).

    ``tau``, ``eps`` and ``noise`` are those of ``masks.sign``. The preserve set of each side is that of :func:`make`, and so is
    ``key``.

    >>> make_signed(Rule(), {'w': jnp.array([3., -3.])}, {'w': jnp.zeros(2)}, {}, jax.random.key(0))['w']
    Array([ True, False], dtype=bool)

    Raises:
      InputError: the rule needs the scores themselves.
    """
    if rule.needs_scores:
        raise InputError(
            "expected a mask rule that one signed accumulator decides (by ratio or random, pooled, at tau), found by="
            f"{rule.by!r}, preserve={rule.preserve!r}, fraction={rule.fraction!r}; keep the scores (keep_scores)"
        )
    weighed = _one_side(rule, masks.sign(difference, tau=tau, **rule.numbers(eps, noise)), sides)
    return _unlisted(rule, masks.random(key, weighed) if rule.by == "random" else weighed, params)


def make_unscored(rule: Rule, params: Params, sides: dict[str, str], eligible: str) -> Mask:
    """The mask of a rule that needs no scores: every entry of the leaves that ``eligible``, or the rule itself, names.

    >>> make_unscored(Rule(by='all'), {'w': jnp.zeros(1), 'b': jnp.zeros(1)}, {}, 'w')
    {'b': Array([False], dtype=bool), 'w': Array([ True], dtype=bool)}
    """
    part, _ = trees.split(params, rule.leaves or eligible)
    ones = jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), part)
    return _unlisted(rule, _one_side(rule, ones, sides), params)


def _one_side(rule: Rule, chosen: Mask, sides: dict[str, str]) -> Mask:
    return chosen if rule.side == "both" else masks.restrict(chosen, sides[rule.side])


def _unlisted(rule: Rule, chosen: Mask, params: Params) -> Mask:
    """What leaves that were not scored may do in masked steps."""
    if rule.unlisted == "pass":
        ones = trees.map_named(lambda _, p: jnp.ones(p.shape, bool), params)
        return trees.merge(chosen, ones)
    return masks.fill(chosen, params)
