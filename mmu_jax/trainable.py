"""What trains: the params themselves, or something from which they follow. The loop in ``train`` asks nothing else."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, trees
from mmu_jax.curvature import Factors
from mmu_jax.trees import Mask, Params, Tree

if TYPE_CHECKING:
    from mmu_jax.models.family import Family
    from mmu_jax.phases import Method, Phase

Counts = dict[str, tuple[jax.Array, jax.Array]]
Change = Callable[[str, int | None, np.ndarray], Any]


class Limits(NamedTuple):
    """What restricts the steps of a method: a mask, the factors of what is kept, either or none."""

    mask: Mask | None = None
    factors: Factors | None = None


class LowRank(NamedTuple):
    """What is added to weights ``[..., out, in]`` as a product of factors, ``W + scale B A``, by leaf name.

    Attributes:
      a, b: float32 ``[..., r, in]`` and ``[..., out, r]``, of one rank for all; leading axes are those of the weight.
      scale: of the product.
      others: leaves to which something is added that no such product is.
    """

    a: dict[str, jax.Array]
    b: dict[str, jax.Array]
    scale: float
    others: list[str]


@dataclasses.dataclass(frozen=True)
class View:
    """How a phase sees the state.

    Attributes:
      part: the tree that it moves.
      whole: ``part -> params``, as the model reads them.
      kept: ``part -> trained``, the state afterwards.
    """

    part: Tree
    whole: Callable[[Tree], Params]
    kept: Callable[[Tree], Tree]


class Trainable(Protocol):
    """A parametrisation of the params: :class:`Whole` is one; ``lora.LoRA``, ``together.Together`` and ``sine.Sine`` are others.

    Compared by value where it says how (a frozen dataclass, each subclass too), since compiled programs are looked up by it.

    Attributes:
      consumes: whether the params become the state, and so have to be float32; else they stay frozen beside it.
      limits_in_params: whether a method's mask and factors act in the params that follow, so that every phase needs them;
        else on the updates of masked and projected phases.
      reach: pattern of the leaves of the params that change.
    """

    consumes: bool
    limits_in_params: bool

    @property
    def reach(self) -> str: ...

    def check(self, method: "Method") -> None:
        """Raises InputError for a ``phases.Method`` that would not do here what its row says."""

    def check_mask(self, mask: Mask) -> None:
        """Raises InputError for a mask that selects what no masked step here would move, where nothing tells of it."""

    def start(self, params: Params, phases: Iterable["Phase"], seed: int) -> Tree:
        """What trains, at iteration 0."""

    def view(self, trained: Tree, frozen: Params | None, limits: Limits, phase: "Phase") -> View:
        """What ``phase`` sees of it; ``frozen`` are the params where they are not consumed.

        Only ``View.whole`` may read ``frozen`` and ``limits``: who asks for the part alone gives none.
        """

    def sees(self, phase: "Phase") -> Hashable:
        """What of a phase :meth:`view` looks at: phases for which it is the same share compiled programs."""

    def moved(self, before: Tree, after: Tree, mask: Mask) -> Counts:
        """Leaf name -> entries of the params that a step changed ``(outside, inside)`` the mask."""

    def change(self, trained: Tree, limits: Limits) -> Change:
        """``change(leaf name, row, tensor) -> its new values`` for ``hf.rewrite``."""

    def low_rank(self, trained: Tree, limits: Limits) -> LowRank | None:
        """The same change as factors, None where there are none."""

    def needs(self, params: Params, method: "Method", count: Callable[..., int]) -> dict[str, int]:
        """What is kept beside the params -> bytes; ``count(tree, dtype)`` are those of a tree."""

    def describe(self, params: Params, phases: Iterable["Phase"]) -> list[str]:
        """Lines for a person, before the first step."""

    def says(self, leaves: int) -> str:
        """The state of a group of which ``leaves`` leaves change."""


def states(method: "Method") -> int:
    """How many optimizer states a ``phases.Method`` has."""
    return 1 if method.moments == "shared" else len(method.phases)


@dataclasses.dataclass(frozen=True)
class Whole:
    """The params themselves, or those leaves of them that match ``scope``; in masked phases, that match all of ``masked`` too.

    >>> view = Whole('w').view({'w': 1, 'b': 2}, None, Limits(), None)
    >>> view.part, view.whole({'w': 3, 'b': None})
    ({'b': None, 'w': 1}, {'b': 2, 'w': 3})

    Attributes:
      scope: pattern of the leaves that train.
      masked: patterns of those that a mask may select. Of the others a masked phase has no gradient and no moments.
    """

    scope: str = ".*"
    masked: tuple[str, ...] = dataclasses.field(default=(), compare=False)  # :meth:`sees` tells it where a phase does
    consumes = True
    limits_in_params = False

    @classmethod
    def of(cls, method: "Method", family: "Family") -> "Whole":
        """What of the params of a ``models.Family`` a method trains.

        A mask that freezes what is not scored, or a side, says beforehand which leaves its steps leave alone, but where what they
        would have there acts on the others: in the norm by which a gradient is clipped before it is masked, in moments that are
        shared, in decay where the gradient alone is masked, or in where a phase looks ahead.
        """
        rule, ahead = method.mask, any(phase.masked and phase.lookahead for phase in method.phases)
        if rule is None or ahead or rule.unlisted == "pass" or rule.clip == "before" or rule.gradients_only:
            return cls(method.scope)
        if method.moments == "shared":
            return cls(method.scope)
        sides = () if rule.side == "both" else (family.sides[rule.side],)
        return cls(method.scope, (rule.leaves or family.eligible, *sides))

    @property
    def reach(self) -> str:
        return self.scope

    def _also(self, phase: "Phase | None") -> tuple[str, ...]:
        return self.masked if phase is not None and phase.masked else ()

    def _split(self, tree: Tree, also: tuple[str, ...]) -> tuple[Tree, Tree]:
        """The leaves of a tree like the params that match the scope and all of ``also``, and the rest."""
        part, rest = trees.split(tree, self.scope)
        for pattern in also:
            part, beside = trees.split(part, pattern)
            rest = trees.merge(rest, beside)
        return part, rest

    def check(self, method: "Method") -> None:
        del method  # every row of the table is written for it

    def start(self, params: Params, phases: Iterable["Phase"], seed: int) -> Tree:
        del phases, seed
        return params

    def view(self, trained: Tree, frozen: Params | None, limits: Limits, phase: "Phase") -> View:
        del frozen, limits
        part, rest = self._split(trained, self._also(phase))
        return View(part, lambda part: trees.merge(part, rest), lambda part: trees.merge(part, rest))

    def sees(self, phase: "Phase") -> tuple[str, tuple[str, ...]]:
        return self.scope, self._also(phase)

    def check_mask(self, mask: Mask) -> None:
        beyond = trees.flatten(self._split(mask, self.masked)[1])
        if odd := [name for name, leaf in beyond.items() if jnp.any(leaf)]:
            raise InputError(
                f"expected a mask that selects nothing but leaves that match {' and '.join((self.scope, *self.masked))}, found entries "
                f"of {odd[0]!r}; leave them out (masks.restrict), or train Whole(), which has gradients and moments of all"
            )

    def moved(self, before: Tree, after: Tree, mask: Mask) -> Counts:
        before, after, mask, counts = trees.flatten(before), trees.flatten(after), trees.flatten(mask), {}
        for name in before:
            changed = before[name] != after[name]
            outside = jnp.sum(changed & ~mask[name], dtype=jnp.float32)
            counts[name] = (outside, jnp.sum(changed & mask[name], dtype=jnp.float32))
        return counts

    def change(self, trained: Tree, limits: Limits) -> Change:
        del limits
        leaves = trees.flatten(trained)
        return lambda name, row, _: leaves[name] if row is None else leaves[name][row]

    def low_rank(self, trained: Tree, limits: Limits) -> LowRank | None:
        del trained, limits
        return None

    def needs(self, params: Params, method: "Method", count: Callable[..., int]) -> dict[str, int]:
        parts = [count(self._split(params, self._also(phase))[0], np.float32) for phase in method.phases]
        needs = {"gradients": max(parts), "moments": 2 * (sum(parts) if states(method) > 1 else parts[0])}
        return needs | ({"teacher": count(params, np.float32)} if "teacher" in method.needs else {})

    def describe(self, params: Params, phases: Iterable["Phase"]) -> list[str]:
        del params, phases
        return []

    def says(self, leaves: int) -> str:
        return "trained" if leaves else "frozen"
