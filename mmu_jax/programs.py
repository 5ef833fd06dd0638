"""The compiled programs of a phase: its gradient, the update that follows from it, and a look at what is forgotten.

Most methods share a loss with another, and nearly all an optimizer but for its learning rate. So a step is two programs, and an
update is given its pace: runs that are given the same :class:`Programs` compile each gradient and each update once.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmu_jax import losses, objectives, sharding, trees
from mmu_jax.models import Model
from mmu_jax.objectives import LOSSES, Seen
from mmu_jax.optimizers import Pace
from mmu_jax.phases import Phase
from mmu_jax.plan import Optimizer, Plan
from mmu_jax.train_state import TrainState
from mmu_jax.trainable import Limits, Trainable
from mmu_jax.trees import Batch, Tree


class Programs:
    """Programs that were compiled, kept as long as this is, for any number of runs.

    Whatever a trace reads must stay as it is meanwhile: the model (told apart by identity), what trains (by value), the rows
    of ``objectives.LOSSES``. Where one of these is changed, make new ``Programs``.
    """

    def __init__(self):
        self._kept: dict[Hashable, Callable] = {}

    def get(self, key: Hashable, make: Callable[[], Callable]) -> Callable:
        """What was kept by ``key``, or else is now."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


# ---- what a step is made of


def objective(phase: Phase, seen: Seen, batches: dict[str, Batch]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the phase's losses, each divided by its own count, and every loss by ``stream/loss`` name."""
    values, weighted = {}, []
    for stream, name in phase.losses.items():
        others = [batches[other] for other in LOSSES[name].beside]
        pair = objectives.take(name, seen, batches[stream], phase.options.get(name), others)
        values[f"{stream}/{name}"] = losses.mean(*pair)
        weighted.append(phase.weights.get(stream, 1.0) * values[f"{stream}/{name}"])
    return jnp.sum(jnp.stack(weighted)), values


def _finite(tree: Tree) -> jax.Array:
    """Whether no float of a tree is NaN or infinite; a scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    # A sum is as fast as memory. A reduction of bools takes four times as long, and the largest of all loses NaN (XLA on CPU).
    return jnp.isfinite(jnp.stack([jnp.sum(jnp.abs(x), dtype=jnp.float32) for x in floats])).all()


def _gradient(model: Model, phase: Phase, part: Tree, whole: Any, batches: dict, beside: dict, vanilla: Any) -> tuple:
    """``(value, values), gradient`` of a phase at ``part``; with a look-ahead, the mean of it and of one beside the path."""

    def loss(part):
        return objective(phase, Seen(model, whole(part), vanilla), batches)

    told, grads = jax.value_and_grad(loss, has_aux=True)(part)
    if not phase.lookahead:
        return told, grads
    other = {name: "descent" for name in phase.losses}
    relearn = dataclasses.replace(phase, losses=other, options={}, weights={}, lookahead=0.0)
    down = jax.grad(lambda part: objective(relearn, Seen(model, whole(part), vanilla), beside)[0])(part)
    scale = phase.lookahead / jnp.maximum(optax.global_norm(down), 1e-30)
    ahead = jax.grad(loss, has_aux=True)(jax.tree.map(lambda x, d: x - scale * d, part, down))[0]
    return told, jax.tree.map(lambda g, a: (g + a) / 2, grads, ahead)


# ---- programs


def _gradient_program(model: Model, trainable: Trainable, phase: Phase, where: sharding.Places) -> Callable[..., tuple]:
    def gradient(trained, batches, limits, vanilla, beside):
        view = trainable.view(trained, vanilla, limits, phase)
        (value, values), grads = _gradient(model, phase, view.part, view.whole, batches, beside, vanilla)
        return value, values, grads

    return jax.jit(gradient, out_shardings=(None, None, jax.tree.unflatten(*where)))


def _update_program(
    trainable: Trainable, phase: Phase, optimizer: Optimizer, where: sharding.Places
) -> Callable[..., tuple]:
    in_params = trainable.limits_in_params

    def count(before, after, mask, moved):
        counts = trainable.moved(before, after, mask)
        return {name: jnp.stack([moved[name][0] + out, jnp.maximum(moved[name][1], into)])
                for name, (out, into) in counts.items()}  # fmt: skip

    def update(carried, grads, value, iteration, limits, pace, proving):
        trained, before, failed, moved = carried
        view, extra, tx = trainable.view(trained, None, Limits(), phase), {}, optimizer.transform(pace)
        good = jnp.isfinite(value) & jnp.isfinite(optax.global_norm(grads)) & (failed < 0)
        if phase.masked and not in_params:
            extra["mask"] = trees.part(limits.mask, view.part)
        if phase.projected and not in_params:
            extra["factors"] = trees.part(limits.factors, view.part)

        # What is not taken is left where each number is made: a branch, or a choice between two states, would hold both.
        updates, after = tx.update(grads, before, view.part, taken=good, **extra)
        new = jax.tree.map(partial(jnp.where, good), optax.apply_updates(view.part, updates), view.part)
        moved = count(view.part, new, limits.mask, moved) if proving else moved
        # Moments of a gradient whose squares have a finite sum are finite: averages of its entries and of their squares.
        sound = good & _finite(new)
        failed = jnp.where((failed < 0) & ~sound, iteration, failed)
        return view.kept(new), after, failed, moved

    # Two programs: what is counted holds the params before and after, and the other writes in place.
    return jax.jit(update, donate_argnums=0, static_argnums=6, out_shardings=jax.tree.unflatten(*where))


def _watch_program(model: Model, trainable: Trainable, phase: Phase) -> Callable[..., tuple[losses.Pair, jax.Array]]:
    def watch(trained, batch, limits, vanilla):
        view = trainable.view(trained, vanilla, limits, phase)
        said = Seen(model, view.whole(view.part)).answers(batch)
        return losses.probability(*said), losses.probabilities(*said)[0]

    return jax.jit(watch)


@functools.lru_cache(16)  # by where it is: it holds nothing of a model
def note_program(where: jax.sharding.Sharding) -> Callable[..., dict]:
    """Jitted ``curves, iteration, values -> curves`` with a number more in each, all placed at ``where``; curves are donated."""

    def note(curves, iteration, values):
        return {name: curve.at[iteration].set(values[name]) for name, curve in curves.items()}

    return jax.jit(note, donate_argnums=0, out_shardings=where)


@functools.lru_cache(16)
def _count_program(where: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda iteration: iteration + 1, out_shardings=where)


# ---- of a plan


def _known(trainable: Trainable) -> Hashable:
    """By what a trainable is known: its value, or where that cannot be looked up or is only what a parent class compares, itself."""
    if "__eq__" not in vars(type(trainable)):
        return id(trainable)
    try:
        hash(trainable)
    except TypeError:
        return id(trainable)
    return trainable


def _asked(phase: Phase) -> Hashable:
    """What of a phase shows in its gradient, however the params are seen."""
    try:
        options = json.dumps(phase.options, sort_keys=True)
    except TypeError:  # an array, say
        options = id(phase.options)
    return tuple(phase.losses.items()), options, tuple(sorted(phase.weights.items())), phase.lookahead


def _seen_limits(p: Plan, limits: Limits) -> Limits:
    return limits if p.trainable.limits_in_params else Limits()


def make_gradient(
    p: Plan, model: Model, index: int, like: TrainState, programs: Programs | None = None
) -> Callable[..., tuple]:
    """Jitted ``trained, batches, limits, vanilla, beside -> value, values, gradient`` of phase ``index``; nothing is donated.

    The gradient is placed as ``like`` says of what the phase moves; ``values`` are the losses by ``stream/loss`` name.
    """
    phase, trainable = p.method.phases[index], p.trainable
    where = sharding.places(trainable.view(like.params, None, Limits(), phase).part)
    key = ("gradient", id(model), _known(trainable), trainable.sees(phase), _asked(phase), where)
    return (programs or Programs()).get(key, lambda: _gradient_program(model, trainable, phase, where))


def make_update(p: Plan, index: int, like: TrainState, programs: Programs | None = None) -> Callable[..., tuple]:
    """Jitted ``carried, gradient, value, iteration, limits, pace, proving -> carried`` of phase ``index``, placed as ``like``.

    ``carried``, which is donated, is ``trained, moments, failed, moved``, of which ``moved`` is empty but in masked phases, and is
    added to where ``proving``.
    """
    phase, trainable, optimizer = p.method.phases[index], p.trainable, p.optimizer(index)
    where = sharding.places(
        (like.params, like.opt_state[p.moments(index)], like.failed, like.moved if phase.masked else {})
    )
    key = ("update", _known(trainable), trainable.sees(phase), phase.masked, phase.projected, optimizer, where)
    return (programs or Programs()).get(key, lambda: _update_program(trainable, phase, optimizer, where))


def make_step(
    p: Plan, model: Model, index: int, like: TrainState, programs: Programs | None = None
) -> Callable[..., TrainState]:
    """The step of phase ``index``: ``state, batches, limits, vanilla, beside, proving -> state``, sharded as ``like``.

    ``batches`` are those of the phase's streams, ``beside`` others of them for a look-ahead; ``proving`` is whether a masked step
    counts what it moves. Of the state all is donated that the
    phase changes: params, its moments, its curves, ``failed`` and ``moved``. A step whose loss or gradient is not finite
    changes nothing but ``failed``; so does every step after one that left params that are not.
    """
    phase, key = p.method.phases[index], p.moments(index)
    with np.errstate(over="ignore"):  # a rate beyond float32 is an infinite one, and ends in ``failed``
        pace = Pace(*(kind(x) for kind, x in zip((np.float32, np.int32, np.int32), p.pace(index), strict=True)))
    gradient = make_gradient(p, model, index, like, programs)
    update, note = make_update(p, index, like, programs), note_program(like.failed.sharding)

    def step(state, batches, limits, vanilla, beside=None, proving=True):
        value, values, grads = gradient(state.params, batches, _seen_limits(p, limits), vanilla, beside)
        carried = (state.params, state.opt_state[key], state.failed, state.moved if phase.masked else {})
        own = Limits(limits.mask if phase.masked else None, limits.factors if phase.projected else None)
        params, moments, failed, moved = update(carried, grads, value, state.step, own, pace, phase.masked and proving)
        curves = note({name: state.history[name] for name in values}, state.step, values)
        return state.replace(
            params=params,
            opt_state=state.opt_state | {key: moments},
            history=state.history | curves,
            failed=failed,
            moved=moved if phase.masked else state.moved,
        )

    return step


def counted(state: TrainState) -> TrainState:
    """The state with an iteration done."""
    return state.replace(step=_count_program(state.step.sharding)(state.step))


def make_watch(p: Plan, model: Model, programs: Programs | None = None) -> Callable[..., tuple[losses.Pair, jax.Array]]:
    """``trained, batch, limits, vanilla -> `` the ``losses.probability`` of a batch's answers, and that of each ``[rows]``."""
    phase, trainable = p.method.phases[-1], p.trainable
    key = ("watch", id(model), _known(trainable), trainable.sees(phase))
    watch = (programs or Programs()).get(key, lambda: _watch_program(model, trainable, phase))
    return lambda trained, batch, limits, vanilla: watch(trained, batch, _seen_limits(p, limits), vanilla)
