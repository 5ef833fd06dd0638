"""How a method of the table becomes a job: its streams, mask and factors, its rates, and when it is to stop."""

import collections
import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmu_jax import InputError, curvature, factor, likelihood, masks, metrics, train_state
from mmu_jax.data import Example, facts
from mmu_jax.phases import Method
from mmu_jax.plan import Plan, Stop
from mmu_jax.study import checks, editing, records, scoring
from mmu_jax.study.fitting import Job, fit
from mmu_jax.study.workspace import Workspace
from mmu_jax.trainable import Limits
from mmu_jax.trees import Mask, Params


def prepare(work: Workspace, name: str, **rates: float) -> Job:
    """The job of a method; ``learning_rate`` and ``retain_rate`` stand for those of the config.

    Raises:
      InputError: the method is an edit, of which steps are at most a part; or something that it needs is not there.
    """
    if (method := checks.method(work.config, name)).edit:
        raise InputError(
            f"expected a method that is its steps, found {name}, which edits params ({method.edit}) and has a strength instead of a rate "
            "and a place to stop; leave it out"
        )
    return _job(work, name, method, find_stop(work), **rates)


def _job(work: Workspace, name: str, method: Method, stop: Stop | None, **rates: float) -> Job:
    c = work.config.unlearn
    numbers = {key: c[key] for key in ("schedule", "clip")}
    numbers |= {
        "learning_rate": c.learning_rate.get(name),
        "retain_rate": c.retain_rate.get(name),
        "trainable": checks.trainable(work.config, "unlearn", work.model) or method.trains(work.model.family),
        "seed": work.config.seed,
    } | rates
    for key in ("learning_rate", *["retain_rate"] * method.has_own_rate):
        if numbers[key] is None:
            raise InputError(f"expected config.unlearn.{key}.{name}, found none; set it")
    streams = {stream: work.stream(stream, c.rows, share=c.replay or 1.0) for stream in sorted(method.streams)}
    for stream in sorted(method.referenced):
        logps = likelihood.reference_logps(work.model, work.load(work.vanilla), streams[stream], work.mesh)
        streams[stream].columns["ref_logps"] = logps
    limits = Limits(
        _read_mask(work, name) if method.mask else None, _factors(work, method) if method.projects else None
    )
    if stop and stop.facts:
        streams["forget"].columns["floor"] = _floors(work, stop, streams["forget"].examples)
    plan = Plan.of(method, streams, c.epochs, stop=stop, **numbers)
    limits = limits._replace(mask=_reached(plan, limits.mask, name))
    return Job(plan, streams, limits, work.watched("forget", c.stop.rows or c.rows) if stop else None)


def find_stop(work: Workspace) -> Stop | None:
    """Where the people to forget are to be: at the level that is given, or below that of people whom vanilla never saw.

    By ``margin`` standard errors of it, so that chance in who was never seen leaves nobody better known than they are; by no more
    than half of it, where they are so few that little is known of the level. With ``facts`` every wording of every fact is to be as far
    below what it is for the people never seen who were asked it; where none of them was, below that of all.
    """
    c = work.config.unlearn.stop
    if not c.every:
        return None
    if not c.level and not work.benchmark.unseen:
        print("  this data set has no people whom nobody was trained on, whose level would be where to stop: all passes are "
              "made (config.unlearn.stop.level gives one)", flush=True)  # fmt: skip
        return None
    if not all(work.asked_by_photo(split) for split in (["forget"] if c.level else ["forget", "unseen"])):
        print(
            "  this data set has no questions by photo, each with its answer, to look by where to stop: all passes are made",
            flush=True,
        )
        return None
    if c.level:
        return Stop(c.level, c.every, "the level that is given", _of_facts(work, {}, c.level) if c.facts else ())
    if work.strangers is None:
        vanilla = work.load(work.vanilla)
        work.strangers = likelihood.recognised(
            work.model, vanilla, work.watched("unseen", c.rows or work.config.unlearn.rows), work.mesh
        )
    (mean, below), found = _mean_and_margin(work.strangers, c.margin), ()
    if c.facts:
        question, levels = np.array(["\n".join(facts.wording(item)[1:]) for item in work.asked_by_photo("unseen")]), {}
        for one in np.unique(question):
            of_one = metrics.Items(*(column[question == one] for column in work.strangers))
            levels[str(one)] = np.subtract(*_mean_and_margin(of_one, c.margin))
        found = _of_facts(work, levels, mean - below)
        below = mean - sum(len(rows) * level for rows, level in found) / sum(len(rows) for rows, _ in found)
    margin = f", {mean:.3f}, less {below:.3f} for chance in who they are" if below else ""
    also = ", every fact at its own" if c.facts else ""
    return Stop(mean - below, c.every, f"the level of people never seen{margin}{also}", found)


def _mean_and_margin(items: metrics.Items, margin: float) -> tuple[float, float]:
    """The mean, and how far below it to end."""
    mean = float(items.values.mean())
    return mean, min(margin * metrics.standard_error(*items), mean / 2)


def _of_facts(work: Workspace, levels: Mapping[str, float], level: float) -> tuple[tuple[tuple[int, ...], float], ...]:
    """The facts of a :class:`Stop`, every wording for itself, at their ``levels``; what has none there at ``level``."""
    rows = collections.defaultdict(list)
    for row, item in enumerate(work.asked_by_photo("forget")):
        rows[facts.wording(item)].append(row)
    return tuple((tuple(of), float(levels.get("\n".join(one[1:]), level))) for one, of in rows.items())


def _floors(work: Workspace, stop: Stop, examples: Sequence[Example]) -> np.ndarray:
    """Where each question that is trained on is to be, ``[N]``: what is at its level need not fall further."""
    items = work.asked_by_photo("forget")
    levels = {facts.wording(items[rows[0]]): level for rows, level in stop.facts}
    return np.array([levels.get(facts.wording(example), stop.level) for example in examples], np.float32)


def _read_mask(work: Workspace, name: str) -> Mask:
    try:
        return masks.load(work.mask(name), work.load(work.vanilla))
    except InputError as error:
        raise InputError(f"{error} (delete it, and the saliency stage makes it again)") from error


def _factors(work: Workspace, method: Method) -> curvature.Factors:
    return _read_factors(work) if method.reads_factors else scoring.input_factors(work)


def _read_factors(work: Workspace) -> curvature.Factors:
    try:
        found = curvature.load(work.factors, work.load(work.vanilla))
        shown, forget = set(factor.people(work.factors)), set(work.benchmark.forget_ids)
        if both := shown & forget:
            print(f"  the factors keep the faces of {len(both)} of the {len(forget)} people to forget, among {len(shown)}: whom they were "
                  "measured on when nobody knew who would ask; forgetting takes more steps", flush=True)  # fmt: skip
        return found
    except InputError as error:
        given = work.config.factors.path
        advice = "correct config.factors.path" if given else "delete it, and the factors stage makes it again"
        raise InputError(f"{error} ({advice})") from error


def _reached(plan: Plan, mask: Mask | None, name: str) -> Mask | None:
    """The part of a mask that what trains can reach."""
    if mask is None or plan.trainable.consumes:
        return mask
    mask = masks.restrict(mask, plan.trainable.reach)
    if not masks.count(mask):
        raise InputError(
            f"expected a mask of {name} that selects some of what LoRA adapts, found it empty on {plan.trainable.reach!r}; widen "
            "config.unlearn.lora.targets or set config.unlearn.lora.rank=0"
        )
    print("  of the mask, LoRA reaches what the plan shows; the rest of it stays frozen", flush=True)
    return mask


def unlearn(work: Workspace, name: str) -> dict:
    """Runs a method from the vanilla model.

    Raises:
      InputError: the vanilla model was found not to know what is to be forgotten.
    """
    known = records.read(work.workdir, "evaluate/vanilla")
    if known and known["status"] != "done" and work.result("vanilla").exists():
        raise InputError(
            "expected a vanilla model that knows the people to forget, found one whose evaluation ended otherwise; run "
            "--stages=evaluate/vanilla, which says what to do"
        )
    if (method := checks.method(work.config, name)).edit:
        jobs = functools.partial(_job, work, name, stop=None)
        return editing.edit(work, name, method, find_stop(work), jobs)
    job = prepare(work, name)
    params = work.load(work.vanilla, consumed=job.plan.trainable.consumes)
    return fit(work, f"unlearn/{name}", job, params, work.mesh)


def forgotten(work: Workspace, name: str, *, iterations: int = 0, **rates: float) -> tuple[Params, dict[str, Any]]:
    """The params that a method makes of vanilla, of which nothing is written, and where it ended.

    Args:
      iterations: the most of its steps, 0 for the passes of the config; of an edit, whose updates make all their passes, they are not looked at.
      rates: ``learning_rate`` and ``retain_rate``, which stand for those of the config.
    Returns:
      params, and ``iterations``; where there is a level to end at, ``level``, ``last`` and ``reached`` too, of an edit its ``strength``.
    Raises:
      NotFiniteError: it diverged.
    """
    if (method := checks.method(work.config, name)).edit:
        shutil.rmtree(work.workdir / "checkpoints" / "unlearn" / name, ignore_errors=True)  # of other rates
        jobs = functools.partial(_job, work, name, stop=None, **rates)
        params, numbers = editing.edited(work, name, method, find_stop(work), jobs)
        ended = {key: numbers.get("stopped", {})[key] for key in ("level", "last", "reached") if "stopped" in numbers}
        return params, {"iterations": numbers["iterations"], "strength": numbers["strength"]} | ended
    job = prepare(work, name, **rates)
    plan = dataclasses.replace(job.plan, iterations=iterations or job.plan.iterations)
    vanilla = work.load(work.vanilla, consumed=plan.trainable.consumes)
    state = dataclasses.replace(job, plan=plan).fit(work, vanilla, work.mesh)
    seen = plan.trainable.view(state.params, vanilla, job.limits, plan.method.phases[-1])
    ended = {"iterations": int(state.step)}
    if plan.stop:
        last = train_state.latest(state).get(train_state.WATCHED)
        ended |= {"level": plan.stop.level, "last": last, "reached": bool(plan.stop.reached(last))}
    return seen.whole(seen.part), ended
