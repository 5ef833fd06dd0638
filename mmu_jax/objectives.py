"""How losses are taken of a batch: the table of losses, and what must stand beside each.

To add one, write its equation in ``losses`` and add a row to ``LOSSES``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, losses, rowwise
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

    def answers(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``logits [B, A, V], tokens [B, A], weights [B, A]`` of the ``tail`` of every row, where all that weighs anything is.

        Hidden states are gathered first, so that nowhere else a logit is computed; of a batch without a tail, all its tokens.
        """
        return _tail(self.model, self.params, batch), *_of_tail(batch)

    def logps(self, batch: Batch) -> jax.Array:
        """log p(answer | prompt) of every row, ``[B]``."""
        return losses.sequence_logps(*self.answers(batch))

    def states(self, batch: Batch, layer: int | float) -> jax.Array:
        """What decoder layer ``layer`` says, ``[B, T, D]`` (``Model.states``)."""
        return self.model.states(self.params, batch, layer)

    def features(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What images are to the language model, ``[B, N, D]``, and which there are, ``[B, N]`` (``Model.features``)."""
        return self.model.features(self.params, batch)

    @property
    def teacher(self) -> "Seen":
        """The vanilla model, seen likewise; nothing has a gradient into it."""
        return Seen(self.model, jax.lax.stop_gradient(self.vanilla))


def _tail(model: Model, params: Params, batch: Batch) -> jax.Array:
    return model.forward(params, batch | {"at": batch["tail"]} if "tail" in batch else batch)


def _of_tail(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Tokens and weights of the tail."""
    both = (batch["tokens"], batch["weights"])
    return both if "tail" not in batch else tuple(jnp.take_along_axis(x, batch["tail"], axis=1) for x in both)


@dataclasses.dataclass(frozen=True)
class Said(Seen):
    """A model of which it is known what it says of a batch: one of :data:`READS`."""

    said: Any = None

    def logits(self, batch: Batch) -> jax.Array:
        del batch
        return self.said

    def answers(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self.said, *_of_tail(batch)

    def states(self, batch: Batch, layer: int | float) -> jax.Array:
        del batch, layer
        return self.said

    def features(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        del batch
        return self.said


# What a loss reads of a model -> ``(seen, batch, options) -> `` it.
READS: dict[str, Callable[[Seen, Batch, dict[str, Any]], Any]] = {
    "answers": lambda seen, batch, options: seen.answers(batch)[0],
    "logits": lambda seen, batch, options: seen.logits(batch),
    "states": lambda seen, batch, options: seen.states(batch, options["layer"]),
    "features": lambda seen, batch, options: seen.features(batch),
}


def _rows(batch: Batch) -> jax.Array:
    """1 for rows that are there, 0 for those that only fill the batch, ``[B]``."""
    return (batch["row"] >= 0).astype(jnp.float32)


def _cross_entropy(seen: Seen, batch: Batch) -> losses.Pair:
    return losses.cross_entropy(*seen.answers(batch))


def _cross_entropy_of_all(seen: Seen, batch: Batch) -> losses.Pair:
    weights = losses.all_tokens(batch["valid"], batch["weights"])
    return losses.cross_entropy(seen.logits(batch), batch["tokens"], weights)


def _kl(seen: Seen, batch: Batch) -> losses.Pair:
    logits, _, weights = seen.answers(batch)
    return losses.kl(seen.teacher.answers(batch)[0], logits, weights)


def _sketch(seen: Seen, batch: Batch, seed: int = 0) -> losses.Pair:
    logits, _, weights = seen.answers(batch)
    return losses.sketch(logits, weights, batch["row"], seed=seed)


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
      reads: what it takes of the model, of :data:`READS`. Cross-entropies of answers and of the logits of all tokens are means over
        other tokens, and their curves are not to be compared.
    """

    of: Callable[..., losses.Pair]
    needs: frozenset[str] = frozenset()
    sign: int = 0
    reads: str = "answers"

    def __post_init__(self):
        _, _, *others = inspect.signature(self.of).parameters.values()
        if nameless := [o.name for o in others if o.default is inspect.Parameter.empty]:
            raise InputError(
                f"expected every option of a loss by name with its default, found {', '.join(nameless)} without; write them out"
            )
        known("needs of a loss", self.needs, sorted(NEEDS))
        known("what a loss reads", [self.reads], READS)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``of`` and their defaults."""
        _, _, *others = inspect.signature(self.of).parameters.values()
        return {option.name: option.default for option in others}


LOSSES: dict[str, Loss] = {
    "descent": Loss(_cross_entropy, sign=1),
    "descent_all": Loss(_cross_entropy_of_all, sign=1, reads="logits"),
    "ascent": Loss(lambda m, b: losses.ascent(*m.answers(b), b.get("floor")), sign=-1),
    "ascent_all": Loss(lambda m, b: losses.negated(_cross_entropy_of_all(m, b)), sign=-1, reads="logits"),
    "kl": Loss(_kl, frozenset({"teacher"})),
    "sketch": Loss(_sketch),
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


def of_rows(name: str, model: Model) -> rowwise.Losses:
    """The same of every row by itself, for one backward pass: the model runs once, and the loss is taken row by row of what it says.

    Raises:
      InputError: as :func:`of_params`.
    """
    of_params(name, model)

    def of(params, batch):
        said = READS[LOSSES[name].reads](Seen(model, params), batch, LOSSES[name].options)

        def one(said, row):
            said, row = jax.tree.map(lambda x: x[None], (said, row))
            return losses.mean(*take(name, Said(model, params, said=said), row))

        return jax.vmap(one)(said, batch)

    return rowwise.Losses(of)
