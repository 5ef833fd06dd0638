"""How losses are taken of a batch: the table of losses, and what must stand beside each.

To add one, write its equation in ``losses`` and add a row to ``LOSSES``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, losses
from mmu_jax.models import Model
from mmu_jax.trees import Batch, Params


@dataclasses.dataclass(frozen=True)
class Seen:
    """A model as a loss sees it: at the params that train, and at the frozen ones of the vanilla model.

    Attributes:
      vanilla: None unless the loss says that it needs a teacher.
    """

    model: Model
    params: Params
    vanilla: Params | None = None

    def logits(self, batch: Batch) -> jax.Array:
        """``[B, T, V]`` at the params that train."""
        return self.model.forward(self.params, batch)

    def logps(self, batch: Batch) -> jax.Array:
        """log p(answer | prompt) of every row, ``[B]``."""
        return losses.sequence_logps(self.logits(batch), batch["tokens"], batch["weights"])

    def teacher(self, batch: Batch) -> jax.Array:
        """``[B, T, V]`` of the vanilla model."""
        return self.model.forward(self.vanilla, batch)


def _rows(batch: Batch) -> jax.Array:
    """1 for rows that are there, 0 for those that only fill the batch, ``[B]``."""
    return (batch["row"] >= 0).astype(jnp.float32)


def _cross_entropy(seen: Seen, batch: Batch) -> losses.Pair:
    return losses.cross_entropy(seen.logits(batch), batch["tokens"], batch["weights"])


def _cross_entropy_of_all(seen: Seen, batch: Batch) -> losses.Pair:
    weights = losses.all_tokens(batch["valid"], batch["weights"])
    return losses.cross_entropy(seen.logits(batch), batch["tokens"], weights)


def known(what: str, found: Iterable[str], names: Iterable[str]) -> None:
    """Raises InputError if one of ``found`` is none of ``names``."""
    if unknown := sorted(set(found) - set(names)):
        said = ", ".join(map(repr, unknown))
        raise InputError(f"expected {what} among {', '.join(names) or 'none'}, found {said}; correct the row")


NEEDS = frozenset({"teacher", "reference"})


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of the table of losses: how one is taken of a batch, and what must stand beside it.

    >>> LOSSES['kl'].needs, LOSSES['ascent'].sign
    (frozenset({'teacher'}), -1)

    Attributes:
      of: ``(seen, batch, **options) -> (sum, count)``; ``batch`` is one of its stream.
      needs: what must be there: ``'teacher'``, the frozen params of the vanilla model; ``'reference'``, a column
        ``ref_logps`` in its stream.
      sign: +1 where it is a cross-entropy that falls, -1 where it is one that rises, 0 where it is none.
      over: the tokens that it is a mean over: two curves are comparable only where these are the same.
    """

    of: Callable[..., losses.Pair]
    needs: frozenset[str] = frozenset()
    sign: int = 0
    over: str = "answers"

    def __post_init__(self):
        _, _, *others = inspect.signature(self.of).parameters.values()
        if nameless := [o.name for o in others if o.default is inspect.Parameter.empty]:
            raise InputError(
                f"expected every option of a loss by name with its default, found {', '.join(nameless)} without; write them out"
            )
        known("needs of a loss", self.needs, sorted(NEEDS))

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``of`` and their defaults."""
        _, _, *others = inspect.signature(self.of).parameters.values()
        return {option.name: option.default for option in others}


LOSSES: dict[str, Loss] = {
    "descent": Loss(_cross_entropy, sign=1),
    "descent_all": Loss(_cross_entropy_of_all, sign=1, over="all tokens"),
    "ascent": Loss(lambda m, b: losses.ascent(m.logits(b), b["tokens"], b["weights"], b.get("floor")), sign=-1),
    "ascent_all": Loss(lambda m, b: losses.negated(_cross_entropy_of_all(m, b)), sign=-1, over="all tokens"),
    "kl": Loss(lambda m, b: losses.kl(m.teacher(b), m.logits(b), b["weights"]), frozenset({"teacher"})),
    "sketch": Loss(lambda m, b, seed=0: losses.sketch(m.logits(b), b["weights"], b["row"], seed=seed)),
    "npo": Loss(
        lambda m, b, beta=0.1: losses.npo(m.logps(b), b["ref_logps"], _rows(b), beta=beta), frozenset({"reference"})
    ),
}


def take(name: str, seen: Seen, batch: Batch, options: dict[str, Any] | None = None) -> losses.Pair:
    """The ``(sum, count)`` of the loss ``name`` on a batch.

    Raises:
      InputError: what the loss needs is not there.
    """
    loss = LOSSES[name]
    if "reference" in loss.needs and "ref_logps" not in batch:
        raise InputError(
            f"expected ref_logps in the batches of {name} (log p of the answer under the reference model), found none; put "
            "them into the stream's columns"
        )
    if "teacher" in loss.needs and seen.vanilla is None:
        raise InputError(f"expected the params of the vanilla model for {name}, found none; give them")
    return loss.of(seen, batch, **(options or {}))


def of_params(name: str, model: Model) -> Callable[[Params, Batch], losses.Pair]:
    """The ``loss(params, batch)`` of a name, whose gradients make scores and Grams.

    Raises:
      InputError: the loss needs a teacher or a reference, of which a single model has none.
    """
    if needed := LOSSES[name].needs:
        raise InputError(
            f"expected a loss of params and batch alone for scores and Grams, found {name}, which needs "
            f"{', '.join(sorted(needed))}; use descent, descent_all or sketch"
        )
    return lambda params, batch: take(name, Seen(model, params), batch)
