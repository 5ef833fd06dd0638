"""The training loop, written once: state, step, fit.

One iteration runs the phases of a method in order; each phase is one jitted optimizer step on donated state. Losses
are written on device into ``state.history``; nothing per step goes to the host.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, checkpoint, lora, masks, methods, sharding, transforms, trees
from mmu_jax.data.loader import Stream
from mmu_jax.lora import LoRA

Tree = Any


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
    params: Tree
    opt_state: dict[str, Tree]
    history: dict[str, jax.Array]
    failed: jax.Array
    moved: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A method with the numbers it runs with.

    Attributes:
      method: a row of ``methods.METHODS``.
      iterations: how often the phases run.
      spacing: iterations between two steps of a spread phase.
      lap: iterations of one pass over the retain stream, in each of which the spread phases start anew.
      turns: the most steps of a spread phase in a lap: the batches of the forget stream.
      learning_rate, schedule, warmup, clip: of ``transforms``; ``clip`` is a global norm.
      retain_rate: learning rate of the phases that only descend, None for the same; with Adam this ratio is what a
        weight on the forget loss would be without it.
      adam: keyword arguments of ``transforms.adam``; those of the method win.
      beta: of NPO.
      lora: train low-rank updates of frozen params instead of the params themselves.
      seed: of what is drawn at random, the ``A`` of the adapters.
    """

    method: methods.Method
    iterations: int
    spacing: int = 1
    lap: int = sys.maxsize
    turns: int = sys.maxsize
    learning_rate: float = 1e-5
    retain_rate: float | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float = 1.0
    adam: dict[str, Any] = dataclasses.field(default_factory=dict)
    beta: float = 0.1
    lora: LoRA | None = None
    seed: int = 0


def plan(method: methods.Method, streams: dict[str, Stream], epochs: float, **numbers: Any) -> Plan:
    """``epochs`` passes over the longest stream the method steps through one batch at a time.

    Methods that take the retain batches one by one pass over the retain stream; those that pair each forget batch
    with something pass over the forget stream.
    """
    used = {name for phase in method.phases for name in phase.losses}
    alone = {name for phase in method.phases if not phase.spread for name in phase.losses}
    lead = "forget" if "forget" in alone else max(alone, key=lambda name: streams[name].steps)
    missing = used - streams.keys()
    if missing:
        raise InputError(f"expected streams {sorted(used)} for this method, found no {sorted(missing)}; provide them")
    if numbers.get("lora"):
        check_lora(method)
    if {"retain", "forget"} <= used:
        lap, turns = streams["retain"].steps, streams["forget"].steps
        numbers |= {"spacing": max(lap // turns, 1), "lap": lap, "turns": turns}
    return Plan(method, math.ceil(epochs * streams[lead].steps), **numbers)


def check_lora(method: methods.Method) -> None:
    """Raises InputError for a method that LoRA would change in silence: its mask or its scope would do nothing."""
    if method.mask and (method.mask.gradients_only or method.moments == "shared"):
        raise InputError(
            f"expected a method whose mask holds on the merged update, found one ({method.source}) that masks raw gradients "
            "and shares moments between masked and unmasked steps: with LoRA its mask would do nothing; set "
            "config.unlearn.lora.rank=0 or choose another method"
        )
    if method.scope != ".*":
        raise InputError(
            f"expected a method without a scope of its own, found {method.scope!r} ({method.source}): with LoRA what trains is "
            "config.unlearn.lora.targets; put the scope there"
        )


def turn(p: Plan, phase: methods.Phase, iteration: int) -> int | None:
    """The batch that a phase takes in an iteration, None where it rests.

    In a lap of R iterations, with F forget batches and ``f = R // F``, a spread phase takes ``min(ceil(R / f), F)`` steps:
    each batch once, none twice.
    """
    if not phase.spread:
        return iteration
    lap, place = divmod(iteration, p.lap)
    index, between = divmod(place, p.spacing)
    return None if between or index >= p.turns else lap * p.turns + index


def _taken(p: Plan, key: str) -> int:
    """Steps that the phases with one optimizer state take in all."""
    phases = [phase for index, phase in enumerate(p.method.phases) if _key(p, index) == key]
    return sum(turn(p, phase, i) is not None for phase in phases for i in range(p.iterations))


def _key(p: Plan, index: int) -> str:
    return "shared" if p.method.moments == "shared" else f"phase{index}"


def _adapter(phase: methods.Phase) -> str:
    """Which factors a phase moves: masked steps have their own, which act through the mask."""
    return "masked" if phase.masked else "free"


def optimizer(p: Plan, index: int) -> optax.GradientTransformationExtraArgs:
    """Of phase ``index``: clip, Adam, decay, learning rate; in a masked phase with the mask where the method puts it."""
    phase = p.method.phases[index]
    descends = set(phase.losses.values()) == {"descent"} and not p.method.one_rate
    peak = p.retain_rate if descends and p.retain_rate is not None else p.learning_rate
    rate = transforms.learning_rate(peak, _taken(p, _key(p, index)), schedule=p.schedule, warmup=p.warmup)
    clip = optax.clip_by_global_norm(p.clip) if phase.clip else optax.identity()
    adam = transforms.adam(rate, **(p.adam | p.method.adam))
    mask = p.method.mask
    if (
        not phase.masked or p.lora
    ):  # the masked factors act through the mask: nothing is left for the transform to keep out
        return optax.with_extra_args_support(optax.chain(clip, adam))
    masked = partial(transforms.masked, gradients_only=mask.gradients_only)
    return masked(optax.chain(clip, adam)) if mask.clip == "after" else optax.chain(clip, masked(adam))


@dataclasses.dataclass(frozen=True)
class _View:
    """How a phase sees the state: the ``part`` it moves, the whole params that follow from it, the state afterwards."""

    part: Tree
    whole: Callable[[Tree], Tree]
    kept: Callable[[Tree], Tree]


def _view(p: Plan, phase: methods.Phase, trained: Tree, frozen: Tree, mask: Tree) -> _View:
    if p.lora is None:
        part, rest = trees.split(trained, p.method.scope)
        return _View(part, lambda part: trees.merge(part, rest), lambda part: trees.merge(part, rest))
    kind = _adapter(phase)
    return _View(
        trained[kind],
        lambda part: lora.adapt(p.lora, frozen, trained | {kind: part}, mask),
        lambda part: trained | {kind: part},
    )


def _trained(p: Plan, params: Tree) -> Tree:
    """What trains, at iteration 0: the params themselves, or new adapters."""
    if p.lora is None:
        return params
    kinds, key = sorted({_adapter(phase) for phase in p.method.phases}), jax.random.key(p.seed)
    return {kind: lora.init(p.lora, params, jax.random.fold_in(key, i)) for i, kind in enumerate(kinds)}


def abstract(p: Plan, model: Any, params: Tree, mesh: jax.sharding.Mesh) -> TrainState:
    """The shapes, dtypes and shardings of :func:`init`: moments are sharded as what they are moments of."""

    def placed(tree):
        where = sharding.shardings(tree, model.module.RULES, mesh)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    trained = placed(jax.eval_shape(lambda x: _trained(p, x), shapes))
    opt_state, moved = {}, {}
    for index, phase in enumerate(p.method.phases):
        part = _view(p, phase, trained, params, None).part
        opt_state[_key(p, index)] = placed(jax.eval_shape(optimizer(p, index).init, part))
        if phase.masked:
            moved = dict.fromkeys(trees.flatten(part, is_leaf=lambda x: isinstance(x, lora.Factors)))
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


def init(p: Plan, model: Any, params: Tree, mesh: jax.sharding.Mesh) -> TrainState:
    """A state at iteration 0. Without LoRA its params are ``params`` themselves, to be donated step by step."""
    like = abstract(p, model, params, mesh)
    trained = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), _trained(p, params), like.params)
    opt_state = {}
    for index, phase in enumerate(p.method.phases):
        where = jax.tree.map(lambda x: x.sharding, like.opt_state[_key(p, index)])
        part = _view(p, phase, trained, params, None).part
        opt_state[_key(p, index)] = jax.jit(optimizer(p, index).init, out_shardings=where)(part)

    def full(tree, value):
        return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype, device=x.sharding), tree)

    rest = {"step": full(like.step, 0), "history": full(like.history, jnp.nan), "failed": full(like.failed, -1)}
    return TrainState(params=trained, opt_state=opt_state, moved=full(like.moved, 0.0), **rest)


def _moved(p: Plan, before: Tree, after: Tree, mask: Tree) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Leaf name -> entries that changed ``(outside, inside)`` the mask; with LoRA, of the merged update."""
    if p.lora is not None:
        return lora.moved(p.lora, before, after, mask)
    before, after, mask = trees.flatten(before), trees.flatten(after), trees.flatten(mask)
    counts = {}
    for name in before:
        changed = before[name] != after[name]
        outside = jnp.sum(changed & ~mask[name], dtype=jnp.float32)
        counts[name] = (outside, jnp.sum(changed & mask[name], dtype=jnp.float32))
    return counts


def _finite(tree: Tree) -> jax.Array:
    """Whether no float of a tree is NaN or infinite; a scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def make_step(p: Plan, model: Any, index: int, like: TrainState) -> Callable[..., TrainState]:
    """The jitted step of phase ``index``: ``state, batches, mask, vanilla -> state``, donated and sharded as ``like``.

    A step whose loss or gradient is not finite changes nothing but ``state.failed``; so does every step after one that
    left params or moments that are not.
    """
    phase, key = p.method.phases[index], _key(p, index)
    tx = optimizer(p, index)

    def step(state, batches, mask, vanilla):
        view = _view(p, phase, state.params, vanilla, mask)

        def loss(part):
            return methods.objective(phase, model, view.whole(part), batches, vanilla, p.beta)

        (value, values), grads = jax.value_and_grad(loss, has_aux=True)(view.part)
        good = jnp.isfinite(value) & jnp.isfinite(optax.global_norm(grads)) & (state.failed < 0)
        extra = {"mask": trees.part(mask, view.part)} if phase.masked and p.lora is None else {}
        updates, opt_state = tx.update(grads, state.opt_state[key], view.part, **extra)
        new = optax.apply_updates(view.part, updates)
        new, opt_state = jax.tree.map(partial(jnp.where, good), (new, opt_state), (view.part, state.opt_state[key]))
        sound = good & _finite((new, opt_state))  # of what is kept, so that nothing is held twice to be judged
        moved = dict(state.moved)
        if phase.masked:
            for name, (outside, inside) in _moved(p, view.part, new, mask).items():
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


def fit(
    p: Plan,
    model: Any,
    params: Tree,
    streams: dict[str, Stream],
    *,
    mesh: jax.sharding.Mesh,
    mask: Tree | None = None,
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
      checkpoints: where the state is kept every ``save_every`` iterations; the same call again goes on from there and
        ends in the same bits.
      report: called every ``report_every`` iterations with the latest losses.
    Raises:
      InputError: the mask does not fit or cannot act; a loss, a gradient or what a step would leave is not finite (the
        iteration, the rows of its batches and the last good checkpoint are named; the state on disk is untouched).
    """
    if p.method.mask is not None:
        if mask is None:
            raise InputError("expected a mask for this method, found none; run the saliency stage first")
        trees.check_like(mask, params, "the mask", dtype=jnp.bool_)
    if p.lora is None and any(x.dtype != jnp.float32 for x in jax.tree.leaves(params)):
        raise InputError(
            "expected float32 params to train, found others, which swallow small steps whole; set "
            "config.model.param_dtype=float32, or train a LoRA (config.unlearn.lora.rank)"
        )
    teaches = "teacher" in methods.needs(p.method)
    vanilla = params if p.lora else jax.tree.map(jnp.copy, params) if teaches else None
    if checkpoints is None or checkpoints.latest is None:
        state = init(p, model, params, mesh)
    else:
        like = abstract(p, model, params, mesh)
        if p.lora is None:
            jax.tree.map(lambda x: x.delete(), params)  # their place is needed for those of the checkpoint
        state = checkpoints.restore(checkpoints.latest, like)
    steps = [make_step(p, model, index, state) for index in range(len(p.method.phases))]
    count = jax.jit(lambda step: step + 1, out_shardings=state.step.sharding)

    with jax.set_mesh(mesh):
        for i in range(int(state.step), p.iterations):
            for phase, step in zip(p.method.phases, steps, strict=True):
                if (at := turn(p, phase, i)) is None:
                    continue
                batches = {name: sharding.put(streams[name].batch(at), mesh) for name in phase.losses}
                state = step(state, batches, mask if phase.masked or p.lora else None, vanilla)
            state = state.replace(step=count(state.step))
            last = i + 1 == p.iterations
            saving = checkpoints is not None and (last or (i + 1) % save_every == 0)
            if saving or last or (i + 1) % report_every == 0:
                _raise_if_failed(state, p, streams, checkpoints)
                report(i + 1, latest(state))
            if saving:
                checkpoints.save(i + 1, state)
    return state


def describe(p: Plan, params: Tree, mask: Tree | None) -> str:
    """What will change, leaf group by leaf group. Shown before the first step."""
    lines = [f"  plan: {p.method.source}; {p.iterations} iterations, learning rate {p.learning_rate:g}"]
    groups = {name: {"total": 0, "moving": 0, "adapted": 0} for name in map(trees.group, trees.flatten(params))}
    for leaf, value in trees.flatten(params).items():
        groups[trees.group(leaf)]["total"] += value.size
    part = trees.split(params, p.lora.targets if p.lora else p.method.scope)[0]
    for leaf, value in trees.flatten(part).items():
        groups[trees.group(leaf)]["moving"] += value.size
        groups[trees.group(leaf)]["adapted"] += 1
    if p.lora:
        kinds = len({_adapter(phase) for phase in p.method.phases})
        factors = jax.eval_shape(lambda: lora.init(p.lora, params, jax.random.key(0)))
        lines.append(
            f"    LoRA: rank {p.lora.rank}, alpha {p.lora.alpha:g}, {kinds * trees.size(factors):,} trained parameters in "
            f"{kinds} set{'s' if kinds > 1 else ''} of factors; what is below stays as it is, updates are added to it"
        )
    coverage = masks.coverage(mask) if mask is not None else {}
    for group, row in groups.items():
        state = "trained" if row["moving"] else "frozen"
        if p.lora:
            state = f"{row['adapted']} leaves adapted" if row["moving"] else "untouched"
        density = f"  forget mask {100 * coverage[group]['density']:5.1f} %" if coverage else ""
        lines.append(f"    {group:32s}{row['total']:>14,} parameters  {state}{density}")
    return "\n".join(lines)


def mask_proof(state: TrainState, mask: Tree | None) -> dict[str, dict[str, float]]:
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
        if (at := turn(p, phase, failed)) is not None:
            rows += [streams[name].describe(streams[name].batch(at)) for name in phase.losses]
    kept = checkpoints.latest if checkpoints is not None else None
    raise InputError(
        f"expected finite losses, gradients and params, found NaN or infinity at step {failed} in "
        f"{'; '.join(dict.fromkeys(rows))}; "
        f"last good checkpoint: {'none yet' if kept is None else f'step {kept}'}; lower the learning rate or mend those rows"
    )
