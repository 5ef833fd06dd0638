"""A method that edits params: what its edit is computed from, how much of it is done, and the model that comes out of it."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from mmu_jax import activations, edits, likelihood, objectives, saliency, trees
from mmu_jax.activations import Moments
from mmu_jax.data.streams import Pass, Stream
from mmu_jax.edits import EDITS, Edit, Evidence
from mmu_jax.phases import Method
from mmu_jax.plan import Stop
from mmu_jax.study import records
from mmu_jax.study.fitting import Job, curves, trained, write
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trainable import Limits, Whole
from mmu_jax.trees import Params

# ---- what is measured


def _stream(work: Workspace, name: str, rows: int) -> Stream:
    return work.stream(name, rows, share=work.config.unlearn.replay or 1.0)


def _scores(work: Workspace, row: Edit) -> Evidence:
    """Saliency of the linear weights, example by example."""
    c, model, params = work.config.saliency, work.model, work.load(work.vanilla)
    passes = {name: Pass((_stream(work, name, c.rows),), work.mesh) for name in row.streams}
    bar = Progress("scores by example", sum(map(len, passes.values())))
    score = partial(saliency.scores, leaves=row.leaves or model.family.eligible, chunk=c.chunk)
    found = {name: score(objectives.of_rows("descent", model), params, one.shown(bar)) for name, one in passes.items()}
    bar.close()
    return found


def _each(work: Workspace, name: str, leaves: str, over: str) -> Iterator[Moments]:
    """The moments of what weights read, batch by batch of a stream."""
    batches = Pass((_stream(work, name, work.config.unlearn.rows),), work.mesh)
    bar = Progress(f"activations on {name}", len(batches))
    yield from activations.each(work.model, work.load(work.vanilla), batches.shown(bar), leaves=leaves, over=over)
    bar.close()


def _moments(work: Workspace, row: Edit) -> Evidence:
    """What the neurons of MLPs say, over all tokens and patches."""
    return {name: activations.total(_each(work, name, edits.NEURONS, "tokens")) for name in row.streams}


def _excess(work: Workspace, row: Edit) -> Evidence:
    """How much more the answers about the people to forget excite them than those about the people to keep."""
    own, kept = row.streams
    others = activations.total(_each(work, kept, row.leaves, "answers"))
    return {own: edits.excess(_each(work, own, row.leaves, "answers"), others)}


MEASURES: dict[str, Callable[[Workspace, Edit], Evidence]] = {
    "scores": _scores,
    "moments": _moments,
    "excess": _excess,
}


def _updates(
    work: Workspace, name: str, method: Method, jobs: Callable[[Method], Job]
) -> tuple[Evidence, dict[str, Any]]:
    """The params trained on every phase by itself, and what the record keeps of it.

    Nothing stops them: all passes are made, each of the others takes as many steps as the first.
    """
    found, seen, iterations = {}, {}, 0
    for stream, one in zip(EDITS[method.edit].trained, method.trained, strict=True):
        job, params = jobs(one), work.load(work.vanilla, consumed=True)
        if found:
            alike = dataclasses.replace(job.plan, iterations=iterations // len(found))
            job = dataclasses.replace(job, plan=alike)
        state = trained(work, f"unlearn/{name}/{stream}", job, params, work.mesh)
        found[stream], iterations = state.params, iterations + int(state.step)
        seen |= {f"{curve} of {stream}" if curve in seen else curve: values for curve, values in curves(state).items()}
    records.write(work.curves(f"unlearn/{name}"), seen)
    return found, {"iterations": iterations}


# ---- what is done


def describe(work: Workspace, method: Method, start: float, stop: Stop | None) -> str:
    """What will change, leaf group by leaf group. Shown before anything is measured."""
    row, abstract = EDITS[method.edit], work.model.abstract()
    leaves, may = (
        trees.flatten(abstract),
        trees.flatten(trees.select(abstract, row.leaves or work.model.family.eligible)),
    )
    options = row.options | method.options | {row.strength: start}
    said = ", ".join(f"{key} {value:g}" for key, value in options.items())
    lines = [f"  plan: {method.source}; edited without steps by {method.edit}, {said}"]
    if stop:
        lines += [
            f"    {row.strength} becomes the weakest by which the right answers about the people to forget are at {stop.level:.3f}, {stop.whose}"
        ]
    for group in dict.fromkeys(map(trees.group, leaves)):
        own = [name for name in leaves if trees.group(name) == group]
        total, edited = sum(leaves[name].size for name in own), sum(may[name] for name in own)
        lines.append(f"    {group:32s}{total:>14,} parameters  {f'{edited} leaves edited' if edited else 'untouched'}")
    return "\n".join(lines)


def edited(
    work: Workspace, name: str, method: Method, stop: Stop | None, jobs: Callable[[Method], Job]
) -> tuple[Params, dict[str, Any]]:
    """Measures and edits; returns the params and what the record of the stage keeps.

    Where there is a ``stop``, with the weakest strength by which as little is known of the people to forget as it says, else
    with that of the config.

    Args:
      jobs: ``method -> job`` of what its updates are trained by.
    """
    c, row = work.config.unlearn, EDITS[method.edit]
    strength = start = float(c.strength[name])
    work.scores.drop()
    if row.trained:
        evidence, numbers = _updates(work, name, method, jobs)
    else:
        with jax.set_mesh(work.mesh):
            evidence, numbers = MEASURES[row.reads](work, row), {"iterations": 0}
    made = partial(edits.apply, method.edit, work.load(work.vanilla), evidence, options=method.options)
    if stop:
        strength, seen = _weighed(work, name, made, stop, start, row)
        numbers |= {"looks": seen, "stopped": _stopped(stop, dict(seen)[strength], row, strength)}
    return made(strength), numbers | {"strength": {row.strength: strength}, "mask_proof": {}}


def edit(
    work: Workspace, name: str, method: Method, stop: Stop | None, jobs: Callable[[Method], Job]
) -> dict[str, Any]:
    """:func:`edited` and written; returns what the record of the stage keeps."""
    print(describe(work, method, float(work.config.unlearn.strength[name]), stop), flush=True)
    params, numbers = edited(work, name, method, stop, jobs)
    changed = write(work, name, work.vanilla, Whole().change(params, Limits()))
    ((strength, value),) = numbers["strength"].items()
    print(f"  {name}: {strength} {value:.4g}, {100 * changed:.2f} % of the entries changed", flush=True)
    return numbers | {"changed_in_file": changed}


def _weighed(
    work: Workspace, name: str, made: Callable[[float], Params], stop: Stop, start: float, row: Edit
) -> tuple[float, list[tuple[float, float]]]:
    """``edits.matched``, of what is known of the people to forget after an edit."""
    watched = work.watched("forget", work.config.unlearn.stop.rows or work.config.unlearn.rows)

    def look(strength):
        items = likelihood.recognised(work.model, made(strength), watched, work.mesh)
        value = stop.value(float(items.values.mean()), items.values)
        print(f"  {name}: at {strength:.4g}, {value:.3f} is left", flush=True)
        return value

    return edits.matched(look, stop.reached, start=start, limit=row.limit, rises=row.rises)


def _stopped(stop: Stop, last: float, row: Edit, strength: float) -> dict[str, Any]:
    """As ``fitting`` tells it of steps."""
    if not (reached := stop.reached(last)):
        print(f"  ended with {row.strength} {strength:.4g} above {stop.level:.3f}, {stop.whose}: {last:.3f} is left, whatever "
              "its strength; choose another method, or other options of this one", flush=True)  # fmt: skip
    return {"level": stop.level, "whose": stop.whose, "last": last, "reached": reached}
