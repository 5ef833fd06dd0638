"""A bounded re-parametrisation: chosen weights act as ``W + sin(D)``, W frozen and D trained from zero (SineProject, arXiv 2511.18444).

No entry of a weight ends further than 1 from where it was, whatever the loss and however long it is stepped; at ``D = 0`` the
gradient is that of W itself.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, sharding, trees
from mmu_jax.trainable import Change, Counts, Limits, LowRank, View, states
from mmu_jax.trees import Mask, Params, Tree

if TYPE_CHECKING:
    from mmu_jax.phases import Method, Phase


@dataclasses.dataclass(frozen=True)
class Sine:
    """Which leaves act as ``W + sin(D)``; a ``trainable.Trainable``.

    >>> sine, params = Sine('w'), {'w': jnp.ones(2), 'b': jnp.zeros(1)}
    >>> trained = sine.start(params, (), 0)
    >>> view = sine.view(trained, params, Limits(), None)
    >>> view.whole({'w': jnp.array([0.0, np.pi / 2]), 'b': None})['w'].tolist()
    [1.0, 2.0]

    Attributes:
      targets: pattern of the leaves (``trees.select``); all others are frozen.
    """

    targets: str
    consumes = False
    limits_in_params = False  # entry by entry, so that a mask on the updates of D is one on those of the weight

    @property
    def reach(self) -> str:
        return self.targets

    def check(self, method: "Method") -> None:
        """Refuses a method whose projection would not hold: a sine of a projected update is none."""
        if method.projects:
            raise InputError(
                f"expected a method without projected steps, found one ({method.source}): a bounded weight is no linear function of "
                "what trains; choose another method, or train the params themselves"
            )

    def check_mask(self, mask: Mask) -> None:
        del mask  # a plan shows how much of it the targets reach

    def start(self, params: Params, phases: Iterable["Phase"], seed: int) -> Tree:
        """Zeros for every target, float32, None elsewhere."""
        del phases, seed
        return jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), trees.split(params, self.targets)[0])

    def view(self, trained: Tree, frozen: Params | None, limits: Limits, phase: "Phase | None") -> View:
        del limits, phase

        def whole(part):
            return jax.tree.map(lambda w, d: w if d is None else w.astype(jnp.float32) + jnp.sin(d), frozen, part)

        return View(trained, whole, lambda part: part)

    def sees(self, phase: "Phase") -> str:
        del phase
        return self.targets

    def moved(self, before: Tree, after: Tree, mask: Mask) -> Counts:
        before, after, masks, counts = trees.flatten(before), trees.flatten(after), trees.flatten(mask), {}
        for name, old in before.items():
            changed = jnp.sin(old) != jnp.sin(after[name])
            outside = jnp.sum(changed & ~masks[name], dtype=jnp.float32)
            counts[name] = (outside, jnp.sum(changed & masks[name], dtype=jnp.float32))
        return counts

    def change(self, trained: Tree, limits: Limits) -> Change:
        """``change(leaf name, row, tensor) -> tensor + sin(D)`` in float32 for ``hf.rewrite``; None for leaves that are frozen."""
        del limits
        leaves = trees.flatten(trained)

        def change(name: str, row: int | None, tensor: np.ndarray) -> np.ndarray | None:
            if name not in leaves:
                return None
            added = jnp.sin(leaves[name] if row is None else leaves[name][row])
            return np.asarray(tensor, np.float32) + sharding.host(added)

        return change

    def low_rank(self, trained: Tree, limits: Limits) -> LowRank | None:
        del trained, limits
        return None

    def needs(self, params: Params, method: "Method", count: Callable[..., int]) -> dict[str, int]:
        part = count(trees.split(params, self.targets)[0], np.float32)
        return {"adapters": part, "gradients": part, "moments": 2 * states(method) * part}

    def describe(self, params: Params, phases: Iterable["Phase"]) -> list[str]:
        del phases
        size = trees.size(trees.split(params, self.targets)[0])
        return [
            f"    bounded: {size:,} weights act as W + sin(D), none further than 1 from where it was; all else is frozen"
        ]

    def says(self, leaves: int) -> str:
        return f"{leaves} leaves bounded" if leaves else "frozen"
