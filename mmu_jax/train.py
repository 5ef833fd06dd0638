"""The training loop, written once.

One iteration runs the phases of a method in order; each phase is one optimizer step (``programs``) on donated state. Losses
are written on device into ``state.history``; nothing per step goes to the host, but for one number where a plan looks whether
to stop.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, NotFiniteError, Stopped, checkpoint, curvature, sharding, trees
from mmu_jax.curvature import Factors
from mmu_jax.data.streams import Stream
from mmu_jax.models import Model
from mmu_jax.phases import Phase
from mmu_jax.plan import Plan
from mmu_jax.programs import Programs, counted, make_step, make_watch, note_program
from mmu_jax.train_state import WATCHED, TrainState, abstract, init, latest, looks
from mmu_jax.trainable import Limits
from mmu_jax.trees import Batch, Mask, Params

# Of the steps of a masked phase, the first two (momentum is there from the second on) and every so many count what they move:
# all of them took a seventh of a step.
PROVING = 8

# ---- the loop


def fit(
    p: Plan,
    model: Model,
    params: Params,
    streams: dict[str, Stream],
    *,
    mesh: jax.sharding.Mesh,
    mask: Mask | None = None,
    factors: Factors | None = None,
    watched: Stream | None = None,
    programs: Programs | None = None,
    checkpoints: checkpoint.Checkpoints | None = None,
    save_every: int = 200,
    save_minutes: float = 0.0,
    stop_asked: Callable[[], bool] = lambda: False,
    report: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    report_every: int = 25,
) -> TrainState:
    """Runs a plan from ``params``, or from the newest checkpoint, to its last iteration or to where it says stop.

    Args:
      params: float32, consumed (their memory becomes the state's); with LoRA they stay as they are, in any dtype.
      streams: by the names the method's losses use.
      mask: required if the method has one; checked against the params.
      factors: required if the method has a projected phase; trees of ``curvature.Factor`` like the params.
      watched: required if the plan has a stop: the right answers about the people to forget, whose probability is looked at; a stream
        with ``looks`` (``data.streams.Stream.looks``).
      programs: those of other runs of this model, with which this one shares what it can.
      checkpoints: where the state is kept every ``save_every`` iterations, and when ``save_minutes`` have gone by since it last
        was (0: by iterations alone); the same call again resumes from there and ends in the same bits, whenever it was kept.
      stop_asked: looked at after every iteration; where it says so, the state is kept and the run ends.
      report: called every ``report_every`` iterations with the latest losses.
    Raises:
      InputError: mask or factors do not fit or are not there; a loss, a gradient or what a step would leave is not finite (the
        iteration, the rows of its batches and the last good checkpoint are named; the state on disk is untouched).
      Stopped: it was asked to stop.
    """
    limits, programs = Limits(mask, factors), programs or Programs()
    _check(p, params, streams, limits, watched)
    teaches, consumes = "teacher" in p.method.needs, p.trainable.consumes
    vanilla = params if not consumes else jax.tree.map(jnp.copy, params) if teaches else None
    state = _begin(p, model, params, mesh, checkpoints)
    iterate = _iteration(p, model, state, streams, limits, vanilla, mesh, programs)
    look = _look(p, model, watched, limits, vanilla, mesh, programs) if p.stop else None
    schedule, seen = checkpoint.Schedule(save_every, save_minutes), looks(state)
    after = _after(p, streams, checkpoints, schedule, stop_asked, report, report_every)

    with jax.set_mesh(mesh):
        for i in range(int(state.step), p.iterations):
            if seen and p.stop.reached(seen[-1][1]):
                break
            state = iterate(state, i)
            ended = i + 1 == p.iterations
            if p.stop and (ended or p.stop.next(seen) == i + 1):
                state, value = look(state, i)
                seen.append((i + 1, value))
                ended |= p.stop.reached(value)
            after(state, i + 1, ended)
    return state


def _after(
    p: Plan,
    streams: dict[str, Stream],
    checkpoints: checkpoint.Checkpoints | None,
    schedule: checkpoint.Schedule,
    stop_asked: Callable[[], bool],
    report: Callable[[int, dict[str, float]], None],
    report_every: int,
) -> Callable[[TrainState, int, bool], None]:
    """``state, iterations done, whether they were the last``: what the host does after an iteration."""

    def decided(done):
        """Whether to keep the state and whether to end: all that clocks and signals say, which no two processes hear alike."""
        return sharding.agreed([schedule.due(done), stop_asked()])

    def after(state, done, ended):
        due, asked = decided(done)
        saving = checkpoints is not None and (ended or due or asked)
        if saving or ended or done % report_every == 0:
            _raise_if_failed(state, p, streams, checkpoints)
            report(done, latest(state))
        if saving:
            checkpoints.save(done, state)
        if asked:
            raise Stopped(f"after iteration {done} of {p.iterations}")

    return after


def _iteration(
    p: Plan,
    model: Model,
    like: TrainState,
    streams: dict[str, Stream],
    limits: Limits,
    vanilla: Any,
    mesh: Any,
    programs: Programs,
) -> Callable[[TrainState, int], TrainState]:
    """``state, i -> state``: the phases of a method, in order."""
    steps = [make_step(p, model, index, like, programs) for index in range(len(p.method.phases))]

    def iterate(state, i):
        for phase, step in zip(p.method.phases, steps, strict=True):
            if (at := p.turn(phase, i)) is not None:
                beside = _beside(phase, streams, at, mesh)
                state = step(state, _batches(phase, streams, at, mesh), limits, vanilla, beside, proves(at))
        return counted(state)

    return iterate


def proves(at: int) -> bool:
    """Whether the step of a masked phase in turn ``at`` counts what it moves.

    >>> [at for at in range(20) if proves(at)]
    [0, 1, 8, 16]
    """
    return at < 2 or at % PROVING == 0


def _batches(phase: Phase, streams: dict[str, Stream], at: int, mesh: jax.sharding.Mesh) -> dict[str, Batch]:
    return {name: sharding.put(streams[name].batch(at), mesh) for name in phase.streams}


def _beside(phase: Phase, streams: dict[str, Stream], at: int, mesh: jax.sharding.Mesh) -> dict[str, Batch] | None:
    """Where a phase looks ahead, the batches of half a pass later: other questions than those that it takes now."""
    if not phase.lookahead:
        return None
    return {
        name: sharding.put(streams[name].batch(at + max(streams[name].steps // 2, 1)), mesh) for name in phase.losses
    }


def _look(
    p: Plan,
    model: Model,
    watched: Any,
    limits: Limits,
    vanilla: Any,
    mesh: jax.sharding.Mesh,
    programs: Programs,
) -> Callable[..., tuple]:
    """``state, iteration -> state, value``: what :class:`plan.Stop` looks at, noted in the history."""
    watch = make_watch(p, model, programs)

    def look(state, i):
        found, rows = [], []
        for batch in watched.looks(mesh.shape["data"]):
            found.append(watch(state.params, sharding.put(batch, mesh), limits, vanilla))
            rows.append(batch["row"] >= 0)
        value = sum(total for (total, _), _ in found) / sum(n for (_, n), _ in found)
        if p.stop.facts:
            each = [sharding.host(values)[own] for (_, values), own in zip(found, rows, strict=True)]
            value = p.stop.value(float(value), np.concatenate(each))
        if not math.isfinite(value):
            raise NotFiniteError(
                f"expected a finite probability of the right answers about the people to forget, found {float(value)} after "
                f"{i + 1} iterations; lower the learning rate"
            )
        note = note_program(state.failed.sharding)
        curves = note({WATCHED: state.history[WATCHED]}, i, {WATCHED: np.float32(value)})
        return state.replace(history=state.history | curves), float(value)

    return look


def _check(p: Plan, params: Params, streams: dict[str, Stream], limits: Limits, watched: Stream | None) -> None:
    if p.method.mask is not None:
        if limits.mask is None:
            raise InputError("expected a mask for this method, found none; run the saliency stage first")
        trees.check_like(limits.mask, params, "the mask", dtype=jnp.bool_)
        p.trainable.check_mask(limits.mask)
    if p.method.projects:
        if limits.factors is None:
            raise InputError("expected factors for this method, found none; run the factors stage first")
        curvature.match(limits.factors, params)
    if p.stop and watched is None:
        raise InputError(
            "expected a stream of answers to watch for this plan, which stops by it, found none; give watched"
        )
    if p.trainable.consumes and any(x.dtype != jnp.float32 for x in jax.tree.leaves(params)):
        raise InputError(
            "expected float32 params to train, found others, which swallow small steps whole; read them as float32 "
            "(param_dtype), or train a LoRA (lora.rank)"
        )
    for name in p.method.streams:
        check_batch(streams[name].batch(0), name)


def check_batch(batch: Batch, name: str) -> None:
    """Whether the arrays of a batch of stream ``name`` have the shapes that ``mmu_jax.data`` gives them.

    Raises:
      InputError: one has not; both shapes are named.
    """
    tokens = [batch[key] for key in ("tokens", "valid", "weights") if key in batch]
    columns = [batch[key] for key in ("row", "person", "ref_logps", "floor") if key in batch]
    try:
        chex.assert_rank(tokens, 2)
        chex.assert_equal_shape(tokens)
        chex.assert_rank(columns, 1)
        chex.assert_equal_shape_prefix([*tokens, *columns], 1)
    except AssertionError as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"expected tokens, valid, weights as [rows, tokens] and row, person, ref_logps, floor as [rows] in stream {name!r}, found others "
            f"({said}); correct the stream"
        ) from error


def _begin(p: Plan, model: Model, params: Params, mesh: jax.sharding.Mesh, checkpoints: Any) -> TrainState:
    """The state of iteration 0, or that of the newest checkpoint."""
    if checkpoints is None or checkpoints.latest is None:
        return init(p, model, params, mesh)
    like = abstract(p, model, params, mesh)
    if p.trainable.consumes:
        jax.tree.map(lambda x: x.delete(), params)  # their place is needed for those of the checkpoint
    return checkpoints.resume(like)


def _raise_if_failed(state: TrainState, p: Plan, streams: dict[str, Stream], checkpoints: Any) -> None:
    failed = int(state.failed)
    if failed < 0:
        return
    rows = []
    for phase in p.method.phases:
        if (at := p.turn(phase, failed)) is not None:
            rows += [streams[name].describe(streams[name].batch(at)) for name in phase.streams]
    kept = checkpoints.latest if checkpoints is not None else None
    raise NotFiniteError(
        f"expected finite losses, gradients and params, found NaN or infinity at step {failed} in "
        f"{'; '.join(dict.fromkeys(rows))}; "
        f"last good checkpoint: {'none yet' if kept is None else f'step {kept}'}; lower the learning rate or mend those rows"
    )
