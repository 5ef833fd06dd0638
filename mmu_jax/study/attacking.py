"""What comes back of a model that was made to forget: the stages ``attack/<model>/<attack>``."""

import dataclasses
import json
from typing import Any

from mmu_jax import InputError, attacks
from mmu_jax.attacks import ATTACKS, Ground, facts, models, scores
from mmu_jax.data.streams import Stream, stream
from mmu_jax.methods import METHODS
from mmu_jax.metrics import by_person
from mmu_jax.report.attacked import ends
from mmu_jax.study import records
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trees import Params


def names(work: Workspace) -> tuple[str, ...]:
    """The attacks that a config asks for."""
    return attacks.named(work.config.attack.names)


def reads(work: Workspace, name: str) -> dict[str, Any]:
    """The part of the config that the result of an attack depends on."""
    c, row = work.config, ATTACKS[name]
    asked = {"rows": c.evaluate.rows, "samples": c.evaluate.samples, "generation": c.evaluate.prompts.generation}
    if row.kind == "question":
        asked["generation_text"] = c.evaluate.prompts.generation_text
    found = {"arithmetic": row.arithmetic(), "evaluate": asked, "seed": c.seed}
    taught = {key: c.attack[key] for key in ("steps", "rows", "learning_rate")}
    return found | ({"attack": taught} if row.trains else {"rows": c.attack.rows} if row.backward else {})


def sources(work: Workspace) -> dict[str, str]:
    """What the attacks of a config do, in words."""
    return {name: ATTACKS[name].source for name in names(work)}


def left_out(work: Workspace) -> dict[str, str]:
    """Attack -> why the data set has not what it teaches or asks, of those that no user named (``work.given``).

    Raises:
      InputError: it has not what an attack needs that ``config.attack.names`` was given; which attacks are left is said.
    """
    faults = {}
    for name in names(work):
        try:
            attacks.KINDS[ATTACKS[name].kind].check(work.benchmark)
            if ATTACKS[name].trains and not ATTACKS[name].lesson(work.benchmark):
                raise InputError("expected training questions with a photo for it to teach, found none")
        except InputError as error:
            faults[name] = f"attack {name}: {error}"
    if faults and "attack.names" in work.given:
        left = tuple(name for name in names(work) if name not in faults)
        raise InputError(f"{'; '.join(faults.values())} (config.attack.names={left!r} asks for what is left)")
    return faults


def against_gold(work: Workspace, name: str) -> bool:
    """Whether the result of an attack depends on what gold says: its answers are a reference for scores of membership."""
    return ATTACKS[name].of is scores.likelihoods and "gold" in work.names()


def ground(work: Workspace, name: str) -> Ground:
    """What an attack is made on."""
    c = work.config
    found = Ground(work.benchmark, work.albums, c.data.max_pixels, c.seed, c.attack.rows)
    if not against_gold(work, name):
        return found
    if "gold" not in work.scenes:
        gold = work.load(work.folder("gold"))
        work.scenes["gold"] = tuple(side.told(gold, work.examiner) for side in scores.sides(found))
    return dataclasses.replace(found, reference=work.scenes["gold"])


def lesson(work: Workspace, name: str) -> Stream:
    """The batches that an attack teaches."""
    examples, seed = ATTACKS[name].lesson(work.benchmark), work.config.seed * 1000 + sum(map(ord, name))
    numbers = dict(people=work.people, rows=work.config.attack.rows, seed=seed, sizes=work.sizes)
    return stream(name, work.processor, examples, work.albums["full"], **numbers)


def scene(work: Workspace, name: str) -> models.Scene:
    """What a model from a model may use, made once for all models of a workspace: its lesson is the same."""
    if name not in work.scenes:
        c, taught = work.config.attack, {}
        if ATTACKS[name].trains:
            taught = {"lesson": lesson(work, name), "steps": c.steps, "learning_rate": c.learning_rate}
        work.scenes[name] = models.Scene(work.model, work.mesh, programs=work.programs, **taught)
    return work.scenes[name]


def measure(work: Workspace, params: Params, name: str, label: str, on: Ground) -> dict[str, Any]:
    """What an attack brings back of ``params``, which it consumes where it makes a model of a model.

    Args:
      label: for who watches.
      on: of :func:`ground`, which may load gold and so comes before the params.

    Returns:
      ``kind``, what it ``measures``, ``trains``, ``each`` (``before`` and ``after``, person -> mean), and of a model from a model
      ``split``, whose photos are asked about, and ``points``, a summary at each, else what :meth:`Attack.measure` says.
    """
    row = ATTACKS[name]
    head = {"kind": row.kind, "measures": attacks.KINDS[row.kind].measures, "trains": row.trains}
    if row.kind != "model":
        found = row.measure(params, work.examiner, on)
        work.tracker.write(label, {head["measures"]: found["after"]["mean"]}, 0)
        return head | found
    items, split = facts.other_facts(work.benchmark)
    points, each = [], {}
    bar = Progress(label, len(models.marks(work.config.attack.steps)) if row.trains else 2)
    for step, now in row.of(params, scene(work, name), **row.options):
        known = facts.knowledge(work.examiner, now, items, work.albums[split])
        points.append({"step": step} | facts.summary(work.examiner, known))
        each = {"before": each.get("before") or by_person(known), "after": by_person(known)}
        bar.to(len(points), {"returned": points[-1]["mean"]})
        work.tracker.write(label, {"returned": points[-1]["mean"]}, step)
    bar.close()
    return head | {"split": split, "points": points, "each": each}


def made(model: str, name: str) -> str:
    """What of the tables a result of an attack on a model was made by, in JSON."""
    method = METHODS[model].arithmetic() if model in METHODS else None
    return json.dumps([method, ATTACKS[name].arithmetic()], sort_keys=True)


def attack(work: Workspace, model: str, name: str) -> dict:
    """Attacks a model and writes what came back: ``<workdir>/attacks/<model>/<attack>.json``.

    A stage that is killed begins anew, and ends in the same numbers: batches are a function of seed and step. Of an attack that
    is left out the file says why.
    """
    head = {"model": model, "attack": name, "made": made(model, name)}
    if why := left_out(work).get(name):
        records.write(work.attacked(model, name), head | {"trains": ATTACKS[name].trains, "left_out": why})
        return {"left_out": why}
    work.scores.drop()  # room for the moments
    consumed = ATTACKS[name].kind == "model"
    on = ground(work, name)
    params = work.load(work.folder(model), consumed=consumed)
    value = head | measure(work, params, name, f"attack/{model}/{name}", on)
    records.write(work.attacked(model, name), value | {"config": work.told_config, "provenance": records.provenance()})
    before, after = ends(value)
    return {"before": before["mean"], "after": after["mean"]}
