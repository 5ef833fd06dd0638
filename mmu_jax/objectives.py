"""How losses are taken of a batch: the table of losses, and what must stand beside each.

To add one, write its equation in ``losses`` and add a row to ``LOSSES``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, distillation, losses, rowwise
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


def _lengths(batch: Batch) -> jax.Array:
    """Tokens of every row's answer, ``[B]``."""
    return batch["weights"][:, 1:].sum(axis=-1)


def _kl(seen: Seen, batch: Batch) -> losses.Pair:
    logits, _, weights = seen.answers(batch)
    return distillation.kl(seen.teacher.answers(batch)[0], logits, weights)


def _undial(seen: Seen, batch: Batch, beta: float = 10.0) -> losses.Pair:
    return distillation.undial(seen.teacher.answers(batch)[0], *seen.answers(batch), beta=beta)


def _distil(seen: Seen, batch: Batch, alpha: float = 1.0, gamma: float = 1.0) -> losses.Pair:
    logits, tokens, weights = seen.answers(batch)
    alike, count = distillation.kl(seen.teacher.answers(batch)[0], logits, weights)
    return alpha * alike + gamma * losses.cross_entropy(logits, tokens, weights)[0], count


def _predicting(batch: Batch) -> jax.Array:
    """1 at the places that predict a token of the answer, 0 elsewhere, ``[B, T]``."""
    return jnp.pad(batch["weights"][:, 1:], ((0, 0), (0, 1)))


def _rmu(seen: Seen, batch: Batch, layer: int | float = 0.225, coefficient: float = 6.5, seed: int = 0) -> losses.Pair:
    return distillation.rmu(seen.states(batch, layer), _predicting(batch), coefficient=coefficient, seed=seed)


def _keep_states(seen: Seen, batch: Batch, layer: int | float = 0.225) -> losses.Pair:
    return distillation.distance(seen.states(batch, layer), seen.teacher.states(batch, layer), _predicting(batch))


def _keep_features(seen: Seen, batch: Batch) -> losses.Pair:
    features, there = seen.features(batch)
    return distillation.distance(features, seen.teacher.features(batch)[0], there * _rows(batch)[:, None])


def _dpo(seen: Seen, batch: Batch, refusal: Batch, beta: float = 0.1) -> losses.Pair:
    better, worse = (seen.logps(each) - each["ref_logps"] for each in (refusal, batch))
    return losses.dpo(better, worse, _rows(batch) * _rows(refusal), beta=beta)


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
      of: ``(seen, batch, *batches of beside, **options) -> (sum, count)``; ``batch`` is one of its stream.
      needs: what must be there: ``'teacher'``, the frozen params of the vanilla model; ``'reference'``, a column
        ``ref_logps`` in its stream.
      beside: the other streams that it takes a batch of, whose row r is beside row r of its own; with a reference, each has its column.
      sign: +1 where it is a cross-entropy that falls, -1 where it is one that rises, 0 where it is none.
      reads: what it takes of the model, of :data:`READS`. Cross-entropies of answers and of the logits of all tokens are means over
        other tokens, and their curves are not to be compared.
      still: whether it has no gradient at the params of its teacher, where a run begins.
    """

    of: Callable[..., losses.Pair]
    needs: frozenset[str] = frozenset()
    sign: int = 0
    reads: str = "answers"
    beside: tuple[str, ...] = ()
    still: bool = False

    def __post_init__(self):
        if nameless := [name for name, value in self.options.items() if value is inspect.Parameter.empty]:
            raise InputError(
                f"expected every option of a loss by name with its default, found {', '.join(nameless)} without; write them out"
            )
        known("needs of a loss", self.needs, sorted(NEEDS))
        known("what a loss reads", [self.reads], READS)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``of`` and their defaults."""
        given = list(inspect.signature(self.of).parameters.values())[2 + len(self.beside) :]
        return {option.name: option.default for option in given}


LOSSES: dict[str, Loss] = {
    "descent": Loss(_cross_entropy, sign=1),
    "descent_all": Loss(_cross_entropy_of_all, sign=1, reads="logits"),
    "ascent": Loss(lambda m, b: losses.ascent(*m.answers(b), b.get("floor")), sign=-1),
    "ascent_all": Loss(lambda m, b: losses.negated(_cross_entropy_of_all(m, b)), sign=-1, reads="logits"),
    "kl": Loss(_kl, frozenset({"teacher"}), still=True),
    "sketch": Loss(_sketch),
    "npo": Loss(
        lambda m, b, beta=0.1: losses.npo(m.logps(b), b["ref_logps"], _rows(b), beta=beta), frozenset({"reference"})
    ),
    "simnpo": Loss(
        lambda m, b, beta=4.5, delta=0.0: losses.simnpo(m.logps(b), _lengths(b), _rows(b), beta=beta, delta=delta)
    ),
    "dpo": Loss(_dpo, frozenset({"reference"}), beside=("refusal",)),
    "wga": Loss(lambda m, b, beta=1.0: losses.wga(*m.answers(b), beta=beta)),
    "satimp": Loss(lambda m, b, beta1=5.0, beta2=1.0: losses.satimp(*m.answers(b), beta1=beta1, beta2=beta2)),
    "ce_u": Loss(lambda m, b, skip=0: distillation.ce_u(*m.answers(b), skip=skip)),
    "undial": Loss(_undial, frozenset({"teacher"})),
    "distil": Loss(_distil, frozenset({"teacher"})),
    "diverge": Loss(lambda m, b: losses.negated(_kl(m, b)), frozenset({"teacher"}), still=True),
    "rmu": Loss(_rmu, reads="states"),
    "keep_states": Loss(_keep_states, frozenset({"teacher"}), reads="states", still=True),
    "keep_features": Loss(_keep_features, frozenset({"teacher"}), reads="features", still=True),
}


def take(
    name: str, seen: Seen, batch: Batch, options: dict[str, Any] | None = None, others: Sequence[Batch] = ()
) -> losses.Pair:
    """The ``(sum, count)`` of the loss ``name`` on a batch, and on ``others`` of the streams that it takes beside.

    Raises:
      InputError: what the loss needs is not there.
    """
    loss = LOSSES[name]
    if "reference" in loss.needs and not all("ref_logps" in each for each in (batch, *others)):
        raise InputError(
            f"expected ref_logps in the batches of {name} (log p of the answer under the reference model), found none; put "
            "them into the stream's columns"
        )
    if "teacher" in loss.needs and seen.vanilla is None:
        raise InputError(f"expected the params of the vanilla model for {name}, found none; give them")
    return loss.of(seen, batch, *others, **(options or {}))


def of_params(name: str, model: Model) -> Callable[[Params, Batch], losses.Pair]:
    """The ``loss(params, batch)`` of a name, whose gradients make scores and Grams.

    Raises:
      InputError: the loss needs a teacher or a reference, of which a single model has none, or takes another stream beside.
    """
    if needed := (*sorted(LOSSES[name].needs), *LOSSES[name].beside):
        raise InputError(
            f"expected a loss of params and batch alone for scores and Grams, found {name}, which needs "
            f"{', '.join(needed)}; use descent, descent_all or sketch"
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
