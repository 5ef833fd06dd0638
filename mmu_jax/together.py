"""Adapters on some leaves, and others beside them that train whole: how LLaVA is taught, its projector in full."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mmu_jax import InputError, trees
from mmu_jax.lora import LoRA
from mmu_jax.trainable import Change, Counts, Limits, LowRank, View
from mmu_jax.trees import Mask, Params, Tree

if TYPE_CHECKING:
    from mmu_jax.methods import Method, Phase


@dataclasses.dataclass(frozen=True)
class Together:
    """A :class:`LoRA`, and leaves that train whole beside it.

    >>> Together(LoRA(8, 16.0, 'language_model/.*'), 'projector/.*').reach
    '(?:language_model/.*)|(?:projector/.*)'

    Attributes:
      lora: what is adapted.
      whole: pattern of the leaves that train whole, in float32; none of them is adapted.
    """

    lora: LoRA
    whole: str
    consumes = False
    limits_in_params = True

    @property
    def reach(self) -> str:
        return f"(?:{self.lora.targets})|(?:{self.whole})"

    def check(self, method: "Method") -> None:
        """Refuses a method whose mask or projection would hold on a part of what trains alone."""
        if method.mask or method.projects:
            raise InputError(
                f"expected a method without mask or projection where leaves train whole beside a LoRA, found one ({method.source}), which "
                "would hold on the adapters alone; set lora.whole=''"
            )
        self.lora.check(method)

    def check_leaves(self, params: Params) -> None:
        """Raises InputError unless ``whole`` matches leaves of ``params``, none of which is adapted."""
        whole, adapted = (trees.flatten(trees.select(params, pattern)) for pattern in (self.whole, self.lora.targets))
        if both := [name for name in whole if whole[name] and adapted[name]]:
            raise InputError(
                f"expected leaves that train whole or are adapted, found {both[0]!r}, which both patterns match ({self.whole!r}, "
                f"{self.lora.targets!r}); narrow one"
            )

    def check_mask(self, mask: Mask) -> None:
        self.lora.check_mask(mask)

    def start(self, params: Params, phases: Iterable["Phase"], seed: int) -> dict[str, Tree]:
        part = trees.split(params, self.whole)[0]
        # Copies: the state is donated, and the params stay.
        own = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), part)
        return {"lora": self.lora.start(params, phases, seed), "whole": own}

    def view(self, trained: dict[str, Tree], frozen: Params, limits: Limits, phase: "Phase") -> View:
        inner = self.lora.view(trained["lora"], frozen, limits, phase)

        def whole(part):
            held = trees.merge(part["whole"], trees.split(frozen, self.whole)[1])
            return self.lora.view(trained["lora"], held, limits, phase).whole(part["lora"])

        return View(
            {"lora": inner.part, "whole": trained["whole"]},
            whole,
            lambda part: {"lora": inner.kept(part["lora"]), "whole": part["whole"]},
        )

    def sees(self, phase: "Phase") -> str:
        return self.lora.sees(phase)

    def moved(self, before: Tree, after: Tree, mask: Mask) -> Counts:
        return self.lora.moved(before["lora"], after["lora"], mask)

    def change(self, trained: dict[str, Tree], limits: Limits) -> Change:
        leaves, adapted = trees.flatten(trained["whole"]), self.lora.change(trained["lora"], limits)

        def change(name, row, tensor):
            if name not in leaves:
                return adapted(name, row, tensor)
            return leaves[name] if row is None else leaves[name][row]

        return change

    def low_rank(self, trained: dict[str, Tree], limits: Limits) -> LowRank:
        return self.lora.low_rank(trained["lora"], limits)._replace(others=sorted(trees.flatten(trained["whole"])))

    def needs(self, params: Params, method: "Method", count: Callable[..., int]) -> dict[str, int]:
        part, needs = count(trees.split(params, self.whole)[0], jnp.float32), self.lora.needs(params, method, count)
        return {name: size + (2 if name == "moments" else 1) * part for name, size in needs.items()}

    def describe(self, params: Params, phases: Iterable["Phase"]) -> list[str]:
        part = trees.size(trees.split(params, self.whole)[0])
        return [*self.lora.describe(params, phases), f"    beside it {part:,} parameters train whole ({self.whole})"]

    def says(self, leaves: int) -> str:
        return f"{leaves} leaves changed" if leaves else "untouched"
