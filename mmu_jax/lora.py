"""Low-rank adaptation (LoRA, arXiv 2106.09685) of chosen leaves of a frozen tree, masked on the merged update.

An adapted weight acts as ``W + s B A`` with ``s = alpha / rank``. Where a method masks some of its steps, those steps have
factors of their own that act through the mask, ``W + s B A + s mask * (B' A')``: what they add to the merged weight is
exactly zero outside the mask. The factors themselves are never masked: one entry of a factor reaches a whole row or
column of the weight, and with ``B = 0`` the gradient of ``A`` is exactly zero, so a ratio of its scores is noise.

Where a method projects steps off the directions ``U`` of what is kept (``curvature``), those steps too have factors of their
own, which act as ``W + s B (A - ((A U) * strength) U^T)``: the merged update leaves those directions alone, exactly.

    adapters = {"free": lora.init(spec, params, key)}
    loss(lora.adapt(spec, params, adapters), batch)      # differentiate with respect to adapters; params stay frozen
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mmu_jax import InputError, curvature, sharding, trees
from mmu_jax.curvature import Factor, Factors
from mmu_jax.rowwise import linear
from mmu_jax.trainable import Change, Counts, Limits, LowRank, View, states
from mmu_jax.trees import Mask, Params, Tree

if TYPE_CHECKING:
    from mmu_jax.phases import Method, Phase

KINDS = ("free", "masked", "projected")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which leaves are adapted, and how.

    >>> LoRA(rank=8, alpha=16.0, targets='.*proj/weight').scale
    2.0

    Attributes:
      rank, alpha: of the update ``(alpha / rank) B A``.
      targets: pattern that matches the whole name of each leaf to adapt (``trees.select``), so that nothing is adapted
        by a part of its name: CLIP's ``q_proj`` is not the language model's.
    """

    rank: int
    alpha: float
    targets: str
    consumes = False
    limits_in_params = True

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def reach(self) -> str:
        return self.targets

    def check(self, method: "Method") -> None:
        """Refuses a method that LoRA would change in silence: its mask or its scope would do nothing."""
        if method.mask and (method.mask.gradients_only or method.moments == "shared"):
            raise InputError(
                f"expected a method whose mask holds on the merged update, found one ({method.source}) that masks raw "
                "gradients and shares moments between masked and unmasked steps: with LoRA its mask would do nothing; set "
                "lora.rank=0 or choose another method"
            )
        if method.scope != ".*" or method.bounded:
            raise InputError(
                f"expected a method without a scope of its own, found {method.bounded or method.scope!r} ({method.source}): with LoRA "
                "what trains is lora.targets; put the scope there, or set lora.rank=0"
            )

    def check_mask(self, mask: Mask) -> None:
        del mask  # a plan shows how much of it the targets reach

    def start(self, params: Params, phases: Iterable["Phase"], seed: int) -> dict[str, Tree]:
        """New adapters, by kind."""
        key = jax.random.key(seed)
        return {kind: init(self, params, jax.random.fold_in(key, i)) for i, kind in enumerate(_kinds(phases))}

    def view(self, trained: dict[str, Tree], frozen: Params, limits: Limits, phase: "Phase") -> View:
        kind = _kind(phase)
        return View(
            trained[kind],
            lambda part: adapt(self, frozen, trained | {kind: part}, *limits),
            lambda part: trained | {kind: part},
        )

    def sees(self, phase: "Phase") -> str:
        return _kind(phase)

    def moved(self, before: Tree, after: Tree, mask: Mask) -> Counts:
        return moved(self, before, after, mask)

    def change(self, trained: dict[str, Tree], limits: Limits) -> Change:
        return merge(self, trained, *limits)

    def low_rank(self, trained: dict[str, Tree], limits: Limits) -> LowRank:
        return low_rank(self, trained, *limits)

    def needs(self, params: Params, method: "Method", count: Callable[..., int]) -> dict[str, int]:
        factors = count(jax.eval_shape(lambda: init(self, params, jax.random.key(0))))
        kinds = len(_kinds(method.phases))
        return {"adapters": kinds * factors, "gradients": kinds * factors, "moments": 2 * states(method) * factors}

    def describe(self, params: Params, phases: Iterable["Phase"]) -> list[str]:
        kinds = len(_kinds(phases))
        factors = jax.eval_shape(lambda: init(self, params, jax.random.key(0)))
        return [
            f"    LoRA: rank {self.rank}, alpha {self.alpha:g}, {kinds * trees.size(factors):,} trained parameters in "
            f"{kinds} set{'s' if kinds > 1 else ''} of factors; what is below stays as it is, updates are added to it"
        ]

    def says(self, leaves: int) -> str:
        return f"{leaves} leaves adapted" if leaves else "untouched"


def _kind(phase: "Phase") -> str:
    """Which adapters a phase moves: masked and projected steps have their own, which act through mask and factors."""
    return "masked" if phase.masked else "projected" if phase.projected else "free"


def _kinds(phases: Iterable["Phase"]) -> list[str]:
    return sorted({_kind(phase) for phase in phases})


class Adapter(flax.struct.PyTreeNode):
    """``a [..., r, in]`` and ``b [..., out, r]``, float32; leading axes are those of the weight."""

    a: jax.Array
    b: jax.Array


class Adapted(flax.struct.PyTreeNode):
    """A frozen weight ``[..., out, in]`` with its updates; stands where the weight stood, and is scanned as it was."""

    weight: jax.Array
    free: Adapter | None
    masked: Adapter | None
    projected: Adapter | None
    mask: jax.Array | None
    factor: Factor | None
    scale: float = flax.struct.field(pytree_node=False)

    def contract(self, x: jax.Array, dtype: DTypeLike) -> jax.Array:
        """``x [..., in] -> [..., out]``.

        No update is added to a weight in a dtype that would swallow it. What acts through a mask is as large as the weight: where
        all is computed in float32 the two are added and contracted once, so that a step costs what one of whole params does; in a
        coarser dtype each is contracted by itself.
        """
        masked = None if self.masked is None else product(self.masked, self.scale, self.mask)
        together = masked is not None and dtype == jnp.float32
        y = linear(self.weight + masked if together else self.weight, x, dtype)
        if masked is not None and not together:
            y = y + linear(masked, x, dtype)
        for low in (self.free, kept_out(self.projected, self.factor)):
            if low is not None:
                y = y + self.scale * linear(low.b, linear(low.a, x, dtype), dtype)
        return y


def kept_out(adapter: Adapter | None, factor: Factor | None) -> Adapter | None:
    """The adapter whose product leaves the factor's directions alone; None where there is neither of the two."""
    if adapter is None or factor is None:
        return None
    return Adapter(curvature.keep_out(factor, adapter.a), adapter.b)


def product(factors: Adapter, scale: float, mask: jax.Array | None = None) -> jax.Array:
    """The merged update ``[..., out, in]``: ``s B A``, zero outside the mask.

    >>> factors = Adapter(jnp.ones((1, 3)), jnp.ones((2, 1)))
    >>> product(factors, 2.0, jnp.array([[True, False, False]] * 2)).tolist()
    [[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]
    """
    update = scale * jnp.einsum("...or,...ri->...oi", factors.b, factors.a)
    return update if mask is None else jnp.where(mask, update, 0.0)


def check_targets(spec: LoRA, params: Params, eligible: str) -> None:
    """Raises InputError unless the rank is positive and the targets are linear weights of ``params`` (``eligible``)."""
    if spec.rank < 1:
        raise InputError(f"expected a LoRA rank of at least 1, found {spec.rank}; set lora.rank")
    chosen, linear = trees.flatten(trees.select(params, spec.targets)), trees.flatten(trees.select(params, eligible))
    axes = {name: len(leaf.shape) - trees.stacked(name) for name, leaf in trees.flatten(params).items()}
    wrong = [name for name, yes in chosen.items() if yes and not (linear[name] and axes[name] == 2)]
    if wrong:
        raise InputError(
            f"expected lora.targets that match weights of linear layers only, found {spec.targets!r} which also matches "
            f"{', '.join(wrong[:4])}{', ...' if len(wrong) > 4 else ''}; narrow the pattern"
        )


def init(spec: LoRA, params: Params, key: jax.Array) -> Tree:
    """Factors for every target, None elsewhere: ``A ~ N(0, 1 / r)``, ``B = 0``, so that the update starts at zero.

    >>> factors = init(LoRA(2, 4.0, 'w'), {'w': jnp.zeros((3, 5))}, jax.random.key(0))
    >>> factors['w'].a.shape, factors['w'].b.shape
    ((2, 5), (3, 2))

    Raises:
      InputError: the pattern matches no leaf.
    """

    def leaf(name, weight):
        *leading, out, width = weight.shape
        drawn = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), (*leading, spec.rank, width))
        return Adapter(drawn / jnp.sqrt(spec.rank), jnp.zeros((*leading, out, spec.rank)))

    return trees.map_named(leaf, trees.split(params, spec.targets)[0])


def adapt(
    spec: LoRA, params: Params, adapters: dict[str, Tree], mask: Mask | None = None, factors: Factors | None = None
) -> Tree:
    """``params`` with every target replaced by its :class:`Adapted`.

    >>> spec, params = LoRA(1, 1.0, 'w'), {'w': jnp.ones((2, 3))}
    >>> adapted = adapt(spec, params, {'free': init(spec, params, jax.random.key(0))})
    >>> adapted['w'].contract(jnp.ones(3), jnp.float32).tolist()
    [3.0, 3.0]

    Args:
      adapters: of :data:`KINDS`, any: trees of factors as :func:`init` makes them.
      mask: tree of bool like ``params``; needed with ``masked``.
      factors: tree of ``curvature.Factor`` like ``params``; needed with ``projected``. A target without one stays as it is.
    """
    free, masked, projected, mask, factors = (
        tree if tree is not None else jax.tree.map(lambda _: None, params)
        for tree in (*map(adapters.get, KINDS), mask, factors)
    )

    def leaf(weight, f, m, p, keep, factor):
        if f is None and m is None and p is None:
            return weight
        return Adapted(weight, f, m, p, keep if m is not None else None, factor if p is not None else None, spec.scale)

    return jax.tree.map(leaf, params, free, masked, projected, mask, factors)


def merge(spec: LoRA, adapters: dict[str, Tree], mask: Mask | None = None, factors: Factors | None = None) -> Change:
    """``change(leaf name, row, tensor) -> tensor + merged update`` for ``hf.rewrite``; None for leaves not adapted.

    The sum is taken in float32 on the tensor as it is in the file, one layer at a time.

    >>> spec = LoRA(1, 2.0, 'w')
    >>> change = merge(spec, {'free': {'w': Adapter(jnp.ones((1, 3)), jnp.ones((2, 1)))}})
    >>> change('w', None, np.ones((2, 3), np.float32)).tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    found = {kind: _adapters(adapters[kind]) for kind in KINDS if kind in adapters}
    masks = trees.flatten(mask) if mask is not None else {}
    kept = curvature.by_name(factors) if factors is not None else {}

    def change(name: str, row: int | None, tensor: np.ndarray) -> np.ndarray | None:
        updates = []
        for kind, table in found.items():
            if name in table:
                keep = masks[name] if kind == "masked" else None
                parts = (table[name], keep, kept.get(name) if kind == "projected" else None)
                low, keep, factor = parts if row is None else jax.tree.map(lambda x: x[row], parts)
                low = kept_out(low, factor) if kind == "projected" else low
                if low is not None:
                    with jax.default_matmul_precision("highest"):  # once, and for good
                        updates.append(sharding.host(product(low, spec.scale, keep)))
        return sum(updates, np.asarray(tensor, np.float32)) if updates else None

    return change


def low_rank(
    spec: LoRA, adapters: dict[str, Tree], mask: Mask | None = None, factors: Factors | None = None
) -> LowRank:
    """The merged update as one pair of factors a leaf: those of all kinds side by side, their ranks added up.

    Projected factors are taken as they act (:func:`kept_out`). Masked ones are factors of what they add only where the mask
    keeps all of a layer or nothing is added; a mask that keeps single entries of a product leaves no product.

    >>> spec, one = LoRA(1, 2.0, 'w'), {'w': Adapter(jnp.ones((1, 3)), jnp.ones((2, 1)))}
    >>> made = low_rank(spec, {'free': one, 'masked': one}, {'w': jnp.ones((2, 3), bool)})
    >>> made.a['w'].shape, made.b['w'].shape, made.scale
    ((2, 3), (2, 2), 2.0)
    """
    masks = trees.flatten(mask) if mask is not None else {}
    kept = curvature.by_name(factors) if factors is not None else {}
    tables, others = [], []
    for kind in (kind for kind in KINDS if kind in adapters):
        table = _adapters(adapters[kind])
        if kind == "projected":
            table = {name: kept_out(low, kept.get(name)) for name, low in table.items()}
        elif kind == "masked":
            table = {name: _unmasked(low, masks[name], spec.scale) for name, low in table.items()}
            others = [name for name, low in table.items() if low is None]
            acts = any(bool(jnp.any(low.a)) for low in table.values() if low is not None)
            table = table if acts else {}
        tables += [{name: low for name, low in table.items() if low is not None}]
    a, b = {}, {}
    for name in dict.fromkeys(name for table in tables for name in table):
        there = [table.get(name) for table in tables if table]
        zeros = jax.tree.map(jnp.zeros_like, next(low for low in there if low is not None))
        parts = [zeros if low is None else low for low in there]
        a[name] = jnp.concatenate([low.a for low in parts], axis=-2)
        b[name] = jnp.concatenate([low.b for low in parts], axis=-1)
    return LowRank(a, b, spec.scale, others)


def _unmasked(low: Adapter, mask: jax.Array, scale: float) -> Adapter | None:
    """Factors whose product is what the masked ones add; None where the mask leaves a part of some layer's."""

    def one(layer):
        return jnp.all(layer[1]), jnp.any(product(layer[0], scale, layer[1]) != 0)

    whole, acts = jax.lax.map(one, (low, mask)) if mask.ndim > 2 else one((low, mask))
    if jnp.any(acts & ~whole):
        return None
    return Adapter(low.a * (whole & acts)[..., None, None], low.b)


def _adapters(tree: Tree) -> dict[str, Adapter]:
    return trees.flatten(tree, is_leaf=lambda x: isinstance(x, Adapter))


def moved(spec: LoRA, before: Tree, after: Tree, mask: Mask) -> Counts:
    """Leaf name -> entries of the merged update that changed ``(outside, inside)`` the mask, counted layer by layer.

    The mask is a factor of that update, so ``outside`` is zero by construction; ``inside`` says whether it acts.

    >>> spec, mask = LoRA(1, 1.0, 'w'), {'w': jnp.array([[True, False, False]] * 2)}
    >>> before = {'w': Adapter(jnp.ones((1, 3)), jnp.zeros((2, 1)))}
    >>> after = {'w': Adapter(jnp.ones((1, 3)), jnp.ones((2, 1)))}
    >>> [float(n) for n in moved(spec, before, after, mask)['w']]
    [0.0, 2.0]
    """
    first, second, masks, counts = _adapters(before), _adapters(after), trees.flatten(mask), {}
    for name, old in first.items():

        def one(layer):
            changed = product(layer[0], spec.scale, layer[2]) != product(layer[1], spec.scale, layer[2])
            return (jnp.sum(changed & ~layer[2], dtype=jnp.float32), jnp.sum(changed & layer[2], dtype=jnp.float32))

        layers = (old, second[name], masks[name])
        counts[name] = tuple(map(jnp.sum, jax.lax.map(one, layers) if masks[name].ndim > 2 else one(layers)))
    return counts
