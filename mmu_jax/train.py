"""The training loop, written once: state, step, fit.

One iteration runs the phases of a method in order; each phase is one jitted optimizer step on donated state. Losses
are written on device into ``state.history``; nothing per step goes to the host.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, NotFiniteError, checkpoint, losses, masks, methods, sharding, trees
from mmu_jax.data.streams import Stream
from mmu_jax.methods import Phase, Seen
from mmu_jax.models import Model
from mmu_jax.plan import Plan
from mmu_jax.trees import Batch, Mask, Params, Tree

# ---- the state


class TrainState(flax.struct.PyTreeNode):
    """Everything a run carries from one iteration to the next.

    Attributes:
      step: iterations done, int32.
      params: what trains: the float32 params, or with LoRA the factors of its adapters by ``lora.KINDS``.
      opt_state: one optimizer state per key of moments.
      history: ``stream/loss`` -> ``[iterations]`` float32, NaN where the phase did not run.
      failed: the first iteration whose loss, gradient, params or moments are not finite, -1 if none.
      moved: leaf name -> ``[outside, inside]``: entries that masked steps moved outside the mask (summed over the
        steps) and inside (the most in one step), float32.
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
        part = p.trainable.view(trained, params, None, phase).part
        opt_state[p.moments(index)] = placed(jax.eval_shape(p.optimizer(index).init, part))
        if phase.masked:
            moved = jax.eval_shape(p.trainable.moved, part, part, bits)
    names = [f"{s}/{name}" for phase in p.method.phases for s, name in phase.losses.items()]
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


def init(p: Plan, model: Model, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """A state at iteration 0. Where ``params`` are consumed, they are its params, to be donated step by step."""
    like = abstract(p, model, params, mesh)
    trained = p.trainable.start(params, p.method.phases, p.seed)
    trained = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), trained, like.params)
    opt_state = {}
    for index, phase in enumerate(p.method.phases):
        where = jax.tree.map(lambda x: x.sharding, like.opt_state[p.moments(index)])
        part = p.trainable.view(trained, params, None, phase).part
        opt_state[p.moments(index)] = jax.jit(p.optimizer(index).init, out_shardings=where)(part)

    def full(tree, value):
        return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype, device=x.sharding), tree)

    rest = {"step": full(like.step, 0), "history": full(like.history, jnp.nan), "failed": full(like.failed, -1)}
    return TrainState(params=trained, opt_state=opt_state, moved=full(like.moved, 0.0), **rest)


# ---- a step


def objective(phase: Phase, seen: Seen, batches: dict[str, Batch]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum of the phase's losses, each divided by its own count, and every loss by ``stream/loss`` name."""
    values = {}
    for stream, name in phase.losses.items():
        pair = methods.take(name, seen, batches[stream], phase.options.get(name))
        values[f"{stream}/{name}"] = losses.mean(*pair)
    return jnp.sum(jnp.stack(jax.tree.leaves(values))), values


def _finite(tree: Tree) -> jax.Array:
    """Whether no float of a tree is NaN or infinite; a scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def make_step(p: Plan, model: Model, index: int, like: TrainState) -> Callable[..., TrainState]:
    """The jitted step of phase ``index``: ``state, batches, mask, vanilla -> state``, donated and sharded as ``like``.

    A step whose loss or gradient is not finite changes nothing but ``state.failed``; so does every step after one that
    left params or moments that are not.
    """
    phase, key = p.method.phases[index], p.moments(index)
    tx = p.optimizer(index)

    def step(state, batches, mask, vanilla):
        view = p.trainable.view(state.params, vanilla, mask, phase)

        def loss(part):
            return objective(phase, Seen(model, view.whole(part), vanilla), batches)

        (value, values), grads = jax.value_and_grad(loss, has_aux=True)(view.part)
        good = jnp.isfinite(value) & jnp.isfinite(optax.global_norm(grads)) & (state.failed < 0)
        extra = {"mask": trees.part(mask, view.part)} if phase.masked and not p.trainable.mask_in_params else {}
        updates, opt_state = tx.update(grads, state.opt_state[key], view.part, **extra)
        new = optax.apply_updates(view.part, updates)
        new, opt_state = jax.tree.map(partial(jnp.where, good), (new, opt_state), (view.part, state.opt_state[key]))
        sound = good & _finite((new, opt_state))  # of what is kept, so that nothing is held twice to be judged
        moved = dict(state.moved)
        if phase.masked:
            for name, (outside, inside) in p.trainable.moved(view.part, new, mask).items():
                moved[name] = jnp.stack([moved[name][0] + outside, jnp.maximum(moved[name][1], inside)])
        history = {name: state.history[name].at[state.step].set(v) for name, v in values.items()}
        return state.replace(
            params=view.kept(new),
            opt_state=state.opt_state | {key: opt_state},
            history=state.history | history,
            failed=jnp.where((state.failed < 0) & ~sound, state.step, state.failed),
            moved=moved,
        )

    return jax.jit(step, donate_argnums=0, out_shardings=jax.tree.map(lambda x: x.sharding, like))


# ---- the loop


def fit(
    p: Plan,
    model: Model,
    params: Params,
    streams: dict[str, Stream],
    *,
    mesh: jax.sharding.Mesh,
    mask: Mask | None = None,
    checkpoints: checkpoint.Checkpoints | None = None,
    save_every: int = 200,
    report: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    report_every: int = 25,
) -> TrainState:
    """Runs a plan from ``params``, or from the newest checkpoint, to its last iteration.

    Args:
      params: float32, consumed (their memory becomes the state's); with LoRA they stay as they are, in any dtype.
      streams: by the names the method's losses use.
      mask: required if the method has one; checked against the params.
      checkpoints: where the state is kept every ``save_every`` iterations; the same call again resumes from there and
        ends in the same bits.
      report: called every ``report_every`` iterations with the latest losses.
    Raises:
      InputError: the mask does not fit or cannot act; a loss, a gradient or what a step would leave is not finite (the
        iteration, the rows of its batches and the last good checkpoint are named; the state on disk is untouched).
    """
    _check(p, params, mask)
    teaches, consumes = "teacher" in p.method.needs, p.trainable.consumes
    vanilla = params if not consumes else jax.tree.map(jnp.copy, params) if teaches else None
    for name in p.method.streams:
        check_batch(streams[name].batch(0), name)
    state = _begin(p, model, params, mesh, checkpoints)
    steps = [make_step(p, model, index, state) for index in range(len(p.method.phases))]
    count = jax.jit(lambda step: step + 1, out_shardings=state.step.sharding)

    with jax.set_mesh(mesh):
        for i in range(int(state.step), p.iterations):
            for phase, step in zip(p.method.phases, steps, strict=True):
                if (at := p.turn(phase, i)) is None:
                    continue
                batches = {name: sharding.put(streams[name].batch(at), mesh) for name in phase.losses}
                state = step(state, batches, mask if phase.masked or p.trainable.mask_in_params else None, vanilla)
            state = state.replace(step=count(state.step))
            last = i + 1 == p.iterations
            saving = checkpoints is not None and (last or (i + 1) % save_every == 0)
            if saving or last or (i + 1) % report_every == 0:
                _raise_if_failed(state, p, streams, checkpoints)
                report(i + 1, latest(state))
            if saving:
                checkpoints.save(i + 1, state)
    return state


def _check(p: Plan, params: Params, mask: Mask | None) -> None:
    if p.method.mask is not None:
        if mask is None:
            raise InputError("expected a mask for this method, found none; run the saliency stage first")
        trees.check_like(mask, params, "the mask", dtype=jnp.bool_)
    if p.trainable.consumes and any(x.dtype != jnp.float32 for x in jax.tree.leaves(params)):
        raise InputError(
            "expected float32 params to train, found others, which swallow small steps whole; read them as float32 "
            "(param_dtype), or train a LoRA (lora.rank)"
        )


def check_batch(batch: Batch, name: str) -> None:
    """Whether the arrays of a batch of stream ``name`` have the shapes that ``mmu_jax.data`` gives them.

    Raises:
      InputError: one has not; both shapes are named.
    """
    tokens = [batch[key] for key in ("tokens", "valid", "weights") if key in batch]
    columns = [batch[key] for key in ("row", "person", "ref_logps") if key in batch]
    try:
        chex.assert_rank(tokens, 2)
        chex.assert_equal_shape(tokens)
        chex.assert_rank(columns, 1)
        chex.assert_equal_shape_prefix([*tokens, *columns], 1)
    except AssertionError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"expected tokens, valid, weights as [rows, tokens] and row, person, ref_logps as [rows] in stream {name!r}, found others "
            f"({said}); correct the stream"
        ) from error


def _begin(p: Plan, model: Model, params: Params, mesh: jax.sharding.Mesh, checkpoints: Any) -> TrainState:
    """The state of iteration 0, or that of the newest checkpoint."""
    if checkpoints is None or checkpoints.latest is None:
        return init(p, model, params, mesh)
    like = abstract(p, model, params, mesh)
    if p.trainable.consumes:
        jax.tree.map(lambda x: x.delete(), params)  # their place is needed for those of the checkpoint
    return checkpoints.restore(checkpoints.latest, like)


# ---- what a state tells


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


def _raise_if_failed(state: TrainState, p: Plan, streams: dict[str, Stream], checkpoints: Any) -> None:
    failed = int(state.failed)
    if failed < 0:
        return
    rows = []
    for phase in p.method.phases:
        if (at := p.turn(phase, failed)) is not None:
            rows += [streams[name].describe(streams[name].batch(at)) for name in phase.losses]
    kept = checkpoints.latest if checkpoints is not None else None
    raise NotFiniteError(
        f"expected finite losses, gradients and params, found NaN or infinity at step {failed} in "
        f"{'; '.join(dict.fromkeys(rows))}; "
        f"last good checkpoint: {'none yet' if kept is None else f'step {kept}'}; lower the learning rate or mend those rows"
    )
