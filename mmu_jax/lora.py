"""Low-rank adaptation (LoRA, arXiv 2106.09685) of chosen leaves of a frozen tree, masked on the merged update.

An adapted weight acts as ``W + s B A`` with ``s = alpha / rank``. Where a method masks some of its steps, those steps have
factors of their own that act through the mask, ``W + s B A + s mask * (B' A')``: what they add to the merged weight is
exactly zero outside the mask. The factors themselves are never masked: one entry of a factor reaches a whole row or
column of the weight, and with ``B = 0`` the gradient of ``A`` is exactly zero, so a ratio of its scores is noise.

    adapters = {"free": lora.init(spec, params, key)}
    loss(lora.adapt(spec, params, adapters), batch)      # differentiate with respect to adapters; params stay frozen
"""

import dataclasses
import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, trees

Tree = Any
KINDS = ("free", "masked")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which leaves are adapted, and how.

    Attributes:
      rank, alpha: of the update ``(alpha / rank) B A``.
      targets: pattern that matches the whole name of each leaf to adapt (``trees.select``), so that nothing is adapted
        by a part of its name: CLIP's ``q_proj`` is not the language model's.
    """

    rank: int
    alpha: float
    targets: str

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Factors(flax.struct.PyTreeNode):
    """``a [..., r, in]`` and ``b [..., out, r]``, float32; leading axes are those of the weight."""

    a: jax.Array
    b: jax.Array


class Adapted(flax.struct.PyTreeNode):
    """A frozen weight ``[..., out, in]`` with its updates; stands where the weight stood, and is scanned as it was."""

    weight: jax.Array
    free: Factors | None
    masked: Factors | None
    mask: jax.Array | None
    scale: float = flax.struct.field(pytree_node=False)

    def contract(self, x: jax.Array, dtype: Any) -> jax.Array:
        """``x [..., in] -> [..., out]``. The update is never added to the weight, whose dtype may be too coarse for it."""
        y = jnp.einsum("...i,oi->...o", x, self.weight.astype(dtype))
        if self.free is not None:
            low = jnp.einsum("...i,ri->...r", x, self.free.a.astype(dtype))
            y = y + self.scale * jnp.einsum("...r,or->...o", low, self.free.b.astype(dtype))
        if self.masked is not None:
            update = product(self.masked, self.scale, self.mask)
            y = y + jnp.einsum("...i,oi->...o", x, update.astype(dtype))
        return y


def product(factors: Factors, scale: float, mask: jax.Array | None = None) -> jax.Array:
    """The merged update ``[..., out, in]``: ``s B A``, zero outside the mask."""
    update = scale * jnp.einsum("...or,...ri->...oi", factors.b, factors.a)
    return update if mask is None else jnp.where(mask, update, 0.0)


def check(spec: LoRA, params: Tree, eligible: str) -> None:
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


def init(spec: LoRA, params: Tree, key: jax.Array) -> Tree:
    """Factors for every target, None elsewhere: ``A ~ N(0, 1 / r)``, ``B = 0``, so that the update starts at zero.

    Raises:
      InputError: the pattern matches no leaf.
    """

    def leaf(name, weight):
        *leading, out, width = weight.shape
        drawn = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), (*leading, spec.rank, width))
        return Factors(drawn / jnp.sqrt(spec.rank), jnp.zeros((*leading, out, spec.rank)))

    return trees.map_named(leaf, trees.split(params, spec.targets)[0])


def adapt(spec: LoRA, params: Tree, adapters: dict[str, Tree], mask: Tree | None = None) -> Tree:
    """``params`` with every target replaced by its :class:`Adapted`.

    Args:
      adapters: ``free`` and ``masked``, either or both: trees of factors as :func:`init` makes them.
      mask: tree of bool like ``params``; needed with ``masked``.
    """
    free, masked, mask = (
        tree if tree is not None else jax.tree.map(lambda _: None, params)
        for tree in (adapters.get("free"), adapters.get("masked"), mask)
    )

    def leaf(weight, f, m, keep):
        if f is None and m is None:
            return weight
        return Adapted(weight, f, m, keep if m is not None else None, spec.scale)

    return jax.tree.map(leaf, params, free, masked, mask)


def merge(spec: LoRA, adapters: dict[str, Tree], mask: Tree | None = None):
    """``change(leaf name, row, tensor) -> tensor + merged update`` for ``hf.rewrite``; None for leaves not adapted.

    The sum is taken in float32 on the tensor as it is in the file, one layer at a time.
    """
    found = {kind: _factors(adapters[kind]) for kind in KINDS if kind in adapters}
    masks = trees.flatten(mask) if mask is not None else {}

    def change(name: str, row: int | None, tensor: np.ndarray) -> np.ndarray | None:
        updates = []
        for kind, table in found.items():
            if name in table:
                keep = masks[name] if kind == "masked" else None
                parts = (table[name], keep)
                one = parts if row is None else jax.tree.map(lambda x: x[row], parts)
                updates.append(np.asarray(jax.device_get(product(one[0], spec.scale, one[1]))))
        return sum(updates, np.asarray(tensor, np.float32)) if updates else None

    return change


def _factors(tree: Tree) -> dict[str, Factors]:
    return trees.flatten(tree, is_leaf=lambda x: isinstance(x, Factors))


def moved(spec: LoRA, before: Tree, after: Tree, mask: Tree) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Leaf name -> entries of the merged update that changed ``(outside, inside)`` the mask, counted layer by layer.

    The mask is a factor of that update, so ``outside`` is zero by construction; ``inside`` says whether it acts.
    """
    first, second, masks, counts = _factors(before), _factors(after), trees.flatten(mask), {}
    for name, old in first.items():

        def one(layer):
            changed = product(layer[0], spec.scale, layer[2]) != product(layer[1], spec.scale, layer[2])
            return (jnp.sum(changed & ~layer[2], dtype=jnp.float32), jnp.sum(changed & layer[2], dtype=jnp.float32))

        layers = (old, second[name], masks[name])
        found = jax.lax.map(one, layers) if masks[name].ndim > 2 else one(layers)
        counts[name] = tuple(jnp.sum(x) for x in found)
    return counts
