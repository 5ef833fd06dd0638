"""What comes back of a model that was made to forget: the stages ``attack/<model>/<attack>``."""

from typing import Any

from mmu_jax import InputError, attacks
from mmu_jax.attacks import ATTACKS, Scene
from mmu_jax.data.streams import Stream, stream
from mmu_jax.study import records
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace


def reads(work: Workspace, name: str) -> dict[str, Any]:
    """The part of the config that the result of an attack depends on."""
    c, row = work.config, ATTACKS[name]
    asked = {"rows": c.evaluate.rows, "samples": c.evaluate.samples, "generation": c.evaluate.prompts.generation}
    found = {"arithmetic": row.arithmetic(), "evaluate": asked, "seed": c.seed}
    taught = {key: c.attack[key] for key in ("steps", "rows", "learning_rate")}
    return found | ({"attack": taught} if row.trains else {})


def sources(work: Workspace) -> dict[str, str]:
    """What the attacks of a config do, in words."""
    return {name: ATTACKS[name].source for name in work.config.attack.names}


def check(work: Workspace) -> None:
    """Whether the data set has what the attacks teach and ask.

    Raises:
      InputError: it has not.
    """
    for name in work.config.attack.names:
        try:
            attacks.other_facts(work.benchmark)
            if ATTACKS[name].trains and not ATTACKS[name].lesson(work.benchmark):
                raise InputError("expected training questions with a photo for it to teach, found none")
        except InputError as error:
            raise InputError(f"attack {name}: {error} (config.attack.names)") from error


def lesson(work: Workspace, name: str) -> Stream:
    """The batches that an attack teaches."""
    examples, seed = ATTACKS[name].lesson(work.benchmark), work.config.seed * 1000 + sum(map(ord, name))
    numbers = dict(people=work.people, rows=work.config.attack.rows, seed=seed, sizes=work.sizes)
    return stream(name, work.processor, examples, work.albums["full"], **numbers)


def scene(work: Workspace, name: str) -> Scene:
    """What an attack may use, made once for all models of a workspace: its lesson is the same."""
    if name not in work.scenes:
        c, taught = work.config.attack, {}
        if ATTACKS[name].trains:
            taught = {"lesson": lesson(work, name), "steps": c.steps, "learning_rate": c.learning_rate}
        work.scenes[name] = Scene(work.model, work.mesh, programs=work.programs, **taught)
    return work.scenes[name]


def attack(work: Workspace, model: str, name: str) -> dict:
    """Attacks a model and writes what came back, point by point: ``<workdir>/attacks/<model>/<attack>.json``.

    A stage that is killed begins anew, and ends in the same numbers: batches are a function of seed and step.
    """
    check(work)
    work.scores.drop()  # room for the moments
    row, c = ATTACKS[name], work.config.attack
    items, split = attacks.other_facts(work.benchmark)
    params, points = work.load(work.folder(model), consumed=True), []
    bar = Progress(f"attack/{model}/{name}", len(attacks.marks(c.steps)) if row.trains else 2)
    for step, now in row.of(params, scene(work, name), **row.options):
        points.append({"step": step} | attacks.returned(work.examiner, now, items, work.albums[split]))
        bar.to(len(points), {"returned": points[-1]["mean"]})
        work.tracker.write(f"attack/{model}/{name}", {"returned": points[-1]["mean"]}, step)
    bar.close()
    value = {"model": model, "attack": name, "trains": row.trains, "split": split, "points": points}
    records.write(work.attacked(model, name), value | {"config": work.told_config, "provenance": records.provenance()})
    return {"before": points[0]["mean"], "after": points[-1]["mean"]}
