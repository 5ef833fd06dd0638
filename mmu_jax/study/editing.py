"""A method that edits params: what its edit is computed from, how much of it is done, and the model that comes out of it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from mmu_jax import edits, evaluate, objectives, saliency, trees
from mmu_jax.data.streams import Pass
from mmu_jax.edits import EDITS, Edit, Evidence
from mmu_jax.methods import Method
from mmu_jax.plan import Stop
from mmu_jax.study.fitting import write
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trainable import Limits, Whole
from mmu_jax.trees import Params


def _scores(work: Workspace, row: Edit) -> Evidence:
    """Saliency of the linear weights, example by example."""
    c, model = work.config.saliency, work.model
    passes = {name: Pass((_stream(work, name, c.rows),), work.mesh) for name in row.streams}
    bar = Progress("scores by example", sum(map(len, passes.values())))
    common = {"leaves": row.leaves or model.family.eligible, "chunk": c.chunk}
    loss, params = objectives.of_rows("descent", model), work.load(work.vanilla)
    with jax.set_mesh(work.mesh):
        found = {name: saliency.scores(loss, params, p.shown(bar), **common) for name, p in passes.items()}
    bar.close()
    return found


MEASURES: dict[str, Callable[[Workspace, Edit], Evidence]] = {"scores": _scores}


def _stream(work: Workspace, name: str, rows: int) -> Any:
    return work.stream(name, rows, share=work.config.unlearn.replay or 1.0)


def describe(work: Workspace, method: Method, start: float, stop: Stop | None) -> str:
    """What will change, leaf group by leaf group. Shown before anything is measured."""
    row, abstract = EDITS[method.edit], trees.flatten(work.model.abstract())
    may = trees.flatten(trees.select(work.model.abstract(), row.leaves or work.model.family.eligible))
    options = row.options | method.options | {row.strength: start}
    said = ", ".join(f"{key} {value:g}" for key, value in options.items())
    lines = [f"  plan: {method.source}; an edit without steps: {method.edit}, {said}"]
    if stop:
        lines += [
            f"    with the weakest {row.strength} by which the right answers about the people to forget are at {stop.level:.3f}, {stop.whose}"
        ]
    for group in dict.fromkeys(map(trees.group, abstract)):
        own = [name for name in abstract if trees.group(name) == group]
        total, edited = sum(abstract[name].size for name in own), sum(may[name] for name in own)
        lines.append(f"    {group:32s}{total:>14,} parameters  {f'{edited} leaves edited' if edited else 'untouched'}")
    return "\n".join(lines)


def edit(work: Workspace, name: str, method: Method, stop: Stop | None) -> dict[str, Any]:
    """Measures, edits and writes; returns what the record of the stage keeps.

    Where there is a ``stop``, with the weakest strength by which as little is known of the people to forget as it says, else
    with that of the config.
    """
    c, row = work.config.unlearn, EDITS[method.edit]
    start = float(c.strength.get(name, method.strength))
    print(describe(work, method, start, stop), flush=True)
    work.scores.drop()
    evidence = MEASURES[row.reads](work, row)
    made = partial(edits.apply, method.edit, work.load(work.vanilla), evidence, options=method.options)
    strength, numbers = start, {}
    if stop:
        strength, seen = _weighed(work, name, made, stop, start, row.limit)
        numbers = {"looks": seen, "stopped": _stopped(stop, dict(seen)[strength], row, strength)}
    changed = write(work, name, work.vanilla, Whole().change(made(strength), Limits()))
    print(f"  {name}: {row.strength} {strength:.4g}, {100 * changed:.2f} % of the entries changed", flush=True)
    numbers |= {"iterations": 0, "changed_in_file": changed, "strength": {row.strength: strength}, "mask_proof": {}}
    return numbers


def _weighed(
    work: Workspace, name: str, made: Callable[[float], Params], stop: Stop, start: float, limit: float
) -> tuple[float, list[tuple[float, float]]]:
    """``edits.matched``, of what is known of the people to forget after an edit."""
    watched = work.watched("forget", work.config.unlearn.stop.rows or work.config.unlearn.rows)

    def look(strength):
        items = evaluate.recognised(work.model, made(strength), watched, work.mesh)
        value = stop.value(float(items.values.mean()), items.values)
        print(f"  {name}: at {strength:.4g}, {value:.3f} is left", flush=True)
        return value

    return edits.matched(look, stop.reached, start=start, limit=limit)


def _stopped(stop: Stop, last: float, row: Edit, strength: float) -> dict[str, Any]:
    """As ``fitting`` tells it of steps."""
    if not (reached := stop.reached(last)):
        print(f"  ended with {row.strength} {strength:.4g} above {stop.level:.3f}, {stop.whose}: {last:.3f} is left, whatever "
              "its strength; choose another method, or other options of this one", flush=True)  # fmt: skip
    return {"level": stop.level, "whose": stop.whose, "last": last, "reached": reached}
