"""What a run carries from one iteration to the next, and what is read off it."""

import functools
from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from mmu_jax import masks, sharding, trees
from mmu_jax.models import Model
from mmu_jax.plan import Optimizer, Plan
from mmu_jax.trainable import Limits
from mmu_jax.trees import Mask, Params, Tree

WATCHED = (
    "watched/probability"  # mean p(right answer)^(1 / length) about the people to forget, by which a plan may stop
)


class TrainState(flax.struct.PyTreeNode):
    """Everything a run carries from one iteration to the next.

    Attributes:
      step: iterations done, int32.
      params: what trains: the float32 params, or with LoRA the factors of its adapters by ``lora.KINDS``.
      opt_state: one optimizer state per key of moments.
      history: ``stream/loss`` -> ``[iterations]`` float32, NaN where the phase did not run; :data:`WATCHED` where the plan has
        a stop, NaN where nobody looked.
      failed: the first iteration whose loss, gradient or params are not finite, -1 if none.
      moved: leaf name -> ``[outside, inside]``: entries that masked steps moved outside the mask (summed over the steps that
        count, ``train.PROVING``) and inside (the most in one step), float32.
    """

    step: jax.Array
    params: Params
    opt_state: dict[str, Tree]
    history: dict[str, jax.Array]
    failed: jax.Array
    moved: dict[str, jax.Array]


def abstract(p: Plan, model: Model, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """The shapes, dtypes and shardings of :func:`init`: moments are sharded as what they are moments of."""

    def placed(tree):
        where = sharding.shardings(tree, model.family.rules, mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    bits = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bool_), params)
    trained = placed(jax.eval_shape(lambda x: p.trainable.start(x, p.method.phases, p.seed), shapes))
    opt_state, moved = {}, {}
    for index, phase in enumerate(p.method.phases):
        part = p.trainable.view(trained, params, Limits(), phase).part
        opt_state[p.moments(index)] = placed(jax.eval_shape(p.optimizer(index).transform().init, part))
        if phase.masked:
            moved = jax.eval_shape(p.trainable.moved, part, part, bits)
    names = [f"{s}/{name}" for phase in p.method.phases for s, name in phase.losses.items()] + [WATCHED] * bool(p.stop)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    number = partial(jax.ShapeDtypeStruct, sharding=whole)
    return TrainState(
        step=number((), jnp.int32),
        params=trained,
        opt_state=opt_state,
        history={name: number((p.iterations,), jnp.float32) for name in names},
        failed=number((), jnp.int32),
        moved={name: number((2,), jnp.float32) for name in moved},
    )


@functools.lru_cache(16)
def _moments_program(optimizer: Optimizer, where: sharding.Places) -> Callable[[Tree], Tree]:
    return jax.jit(optimizer.transform().init, out_shardings=jax.tree.unflatten(*where))


def init(p: Plan, model: Model, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """A state at iteration 0. Where ``params`` are consumed, they are its params, to be donated step by step."""
    like = abstract(p, model, params, mesh)
    trained = p.trainable.start(params, p.method.phases, p.seed)
    trained = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), trained, like.params)
    opt_state = {}
    for index, phase in enumerate(p.method.phases):
        part, key = p.trainable.view(trained, params, Limits(), phase).part, p.moments(index)
        opt_state[key] = _moments_program(p.optimizer(index), sharding.places(like.opt_state[key]))(part)

    def full(tree, value):
        return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype, device=x.sharding), tree)

    rest = {"step": full(like.step, 0), "history": full(like.history, jnp.nan), "failed": full(like.failed, -1)}
    return TrainState(params=trained, opt_state=opt_state, moved=full(like.moved, 0.0), **rest)


def mask_proof(state: TrainState, mask: Mask | None) -> dict[str, dict[str, float]]:
    """Per leaf group: ``coverage`` of the mask, entries moved ``outside`` by masked steps, entries moved ``inside``."""
    if mask is None:
        return {}
    table = {name: row | {"outside": 0, "inside": 0} for name, row in masks.coverage(mask).items()}
    for name, (outside, inside) in jax.device_get(state.moved).items():
        table[trees.group(name)]["outside"] += int(outside)
        table[trees.group(name)]["inside"] += int(inside)
    return table


def latest(state: TrainState) -> dict[str, float]:
    """The most recent value of every loss."""
    values = {}
    for name, curve in jax.device_get(state.history).items():
        seen = curve[: int(state.step)]
        seen = seen[seen == seen]
        if len(seen):
            values[name] = float(seen[-1])
    return values


def looks(state: TrainState) -> list[tuple[int, float]]:
    """``(iterations done, what was seen then)`` of every look whether to stop."""
    curve = jax.device_get(state.history.get(WATCHED, jnp.zeros(0)))
    return [(i + 1, float(value)) for i, value in enumerate(curve) if value == value]
