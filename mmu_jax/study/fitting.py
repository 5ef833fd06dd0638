"""A plan with all that it runs on, trained, and the model that comes out of it written."""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from mmu_jax import adapters, checkpoint, hf, sharding, train, train_state, trees
from mmu_jax.data.streams import Stream, padding_line
from mmu_jax.plan import Plan, describe
from mmu_jax.study import records
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.train_state import TrainState
from mmu_jax.trainable import Change, Limits, LowRank
from mmu_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan, its streams, what restricts its steps, and the answers that it watches where it may stop by them."""

    plan: Plan
    streams: dict[str, Stream]
    limits: Limits = Limits()
    watched: Stream | None = None

    def fit(self, work: Workspace, params: Params, mesh: jax.sharding.Mesh, **options: Any) -> TrainState:
        """``train.fit`` from ``params``."""
        given = dict(mesh=mesh, mask=self.limits.mask, factors=self.limits.factors, watched=self.watched)
        given["programs"] = work.programs
        return train.fit(self.plan, work.model, params, self.streams, **given, **options)


def trained(work: Workspace, stage: str, job: Job, params: Params, mesh: jax.sharding.Mesh) -> TrainState:
    """What a job ends in; told of, and kept in checkpoints, under the name of a stage or of a part of one."""
    work.scores.drop()  # room for the moments
    plan = job.plan
    print(describe(plan, params, *job.limits), flush=True)
    print(padding_line(job.streams), flush=True)
    kept = checkpoint.Checkpoints(
        work.workdir / "checkpoints" / stage, tell=lambda line: print(f"  {line}", flush=True)
    )
    when = {key: work.config[key] for key in ("save_every", "save_minutes")}
    bar = Progress(stage, plan.iterations)
    with contextlib.closing(kept), contextlib.closing(bar), work.stopping.waiting():
        told = {"report": work.tracker.beside(stage, bar.to), "stop_asked": lambda: work.stopping.asked}
        return job.fit(work, params, mesh, checkpoints=kept, **when, **told)


def fit(work: Workspace, stage: str, job: Job, params: Params, mesh: jax.sharding.Mesh) -> dict:
    """Trains and writes the model, its curves and what the record of the stage keeps."""
    state, plan = trained(work, stage, job, params, mesh), job.plan
    name = stage.removeprefix("unlearn/")
    source = work.base if name in ("vanilla", "gold") else work.vanilla
    share = write(work, name, source, plan.trainable.change(state.params, job.limits))
    records.write(work.curves(stage), curves(state))
    numbers = {"iterations": int(state.step), "spacing": plan.spacing, "changed_in_file": share}
    numbers |= {"stopped": _stopped(plan, state)} if plan.stop else {}
    if source == work.vanilla:
        numbers |= _adapter(work, name, plan.trainable.low_rank(state.params, job.limits))
    return numbers | {"mask_proof": train_state.mask_proof(state, job.limits.mask)}


def curves(state: TrainState) -> dict[str, list[float | None]]:
    """What was seen of every loss in every iteration that was made, None where nothing was."""
    made = {key: curve[: int(state.step)] for key, curve in jax.device_get(state.history).items()}
    return {key: [None if np.isnan(x) else float(x) for x in curve] for key, curve in made.items()}


def write(work: Workspace, name: str, source: pathlib.Path, change: Change) -> float:
    """Writes a model as a changed copy of ``source``; returns the share of the entries that differ."""
    hf.read_config(source)  # it goes into the copy, and is read from nowhere else
    if sharding.main():
        shutil.rmtree(work.adapted(name), ignore_errors=True)  # of the model that was here before
    changed, shapes = hf.rewrite(work.model, source, work.folder(name), change), trees.flatten(work.model.abstract())
    return sum(changed.values()) / sum(shapes[leaf].size for leaf in changed)


def _adapter(work: Workspace, name: str, change: LowRank | None) -> dict[str, Any]:
    """Writes what a method did as an adapter too; rank and modules of it, or why there is none, for the record."""
    if change is None:
        return {}
    why = "no weight changes" if not change.a else ""
    if change.others:
        why = f"its mask keeps single entries of what is added to {len(change.others)} weights ({change.others[0]}), as no factors do"
    if why:
        print(f"  no adapter of {name}: {why}; {work.folder(name)} is what to ship", flush=True)
        return {"adapter": {"none": why}}
    adapters.write(change, work.model, work.vanilla_name, work.adapted(name))
    return {"adapter": {"rank": next(iter(change.a.values())).shape[-2], "weights": len(change.a)}}


def _stopped(plan: Plan, state: TrainState) -> dict[str, Any]:
    """The level a run was to end at and what it is, what was last seen, and whether it got there; said where it did not."""
    last = train_state.latest(state).get(train_state.WATCHED)
    reached = plan.stop.reached(last)
    if not reached:
        seen = "nothing was looked at" if last is None else f"the last look saw {last:.3f}"
        print(f"  ended after {int(state.step)} iterations above {plan.stop.level:.3f}, {plan.stop.whose}: {seen}; "
              "give it more passes (config.unlearn.epochs) or a higher rate", flush=True)  # fmt: skip
    return {"level": plan.stop.level, "whose": plan.stop.whose, "last": last, "reached": reached}
