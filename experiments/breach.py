"""Every attack on every method, on several groups of people to forget: what comes back, and what is left inside.

    python -m experiments.breach --config=configs/tiny.py --workdir=runs/breach [--groups=2,3,4,5,6] [--every_method] [--config.key=value ...]

One vanilla model serves all groups, each of which has a gold model of its own. The methods are those of the config or, with ``--every_method``, all that are to be compared; the attacks all there
are, or those of ``--config.attack.names``. What an attack brings back of a model is kept in ``<workdir>/group<i>/attacks/<model>/<attack>.json``;
a method is run again only where one is missing, and its model is removed when all are there. The same command resumes; with other
methods, groups or attacks it adds them. Several processes may share the work, each with groups of its own; a table is of the groups
named. ``attacks.md`` and ``attacks.json`` have means over groups, with a 95 % interval from a bootstrap over groups and over people
within them.
"""

import pathlib
import shutil

import numpy as np
from absl import app, flags

from experiments import command
from mmu_jax import InputError, NotFiniteError, attacks, files, metrics
from mmu_jax.methods import METHODS
from mmu_jax.report import attacked
from mmu_jax.report.attacked import Attacked
from mmu_jax.report.results import wilson
from mmu_jax.report.tables import markdown
from mmu_jax.study import attacking, records, settings, stages, steps
from mmu_jax.study.study import Study
from mmu_jax.study.workspace import Workspace

GROUPS = flags.DEFINE_list("groups", ["2", "3", "4", "5", "6"], "The groups of people to forget.")
EVERY = flags.DEFINE_bool(
    "every_method", False, "Every method but controls, variants and ablations, instead of those of the config."
)
FREE = ("mesh", "save_every", "save_minutes", "unlearn.methods", "attack.names")  # may be others when it is resumed


def study_of(workdir: pathlib.Path) -> Study:
    """The study of the command line, with every attack unless some are named."""
    config, given = command.CONFIG.value.copy_and_resolve_references(), command.given()
    if found := settings.matching(given, [("data.group|gold", True, "")]):
        raise InputError(f"expected keys that are not chosen here, found config.{found[0][0]}; name groups by --groups")
    with config.unlocked():
        if "attack.names" not in given:
            config.attack.names = (attacks.EVERY,)
        if EVERY.value:
            others = ("control", "variant", "ablation")
            config.unlearn.methods = tuple(name for name, row in METHODS.items() if row.family not in others)
    return Study(config, workdir, given)


def lacking(work: Workspace, model: str) -> list[str]:
    """The attacks on a model that are not made, or were made of another row of a table."""

    def made(name):
        path = work.attacked(model, name)
        return path.exists() and files.read_json(path, "what an attack brought back").get("made") == attacking.made(
            model, name
        )

    return [name for name in attacking.names(work) if not made(name)]


def make(work: Workspace, model: str) -> None:
    """A model of a group, gold or what a method makes of vanilla, and before it the masks and factors that it needs, once each."""
    if model == "vanilla" or model == "gold" and (work.folder(model) / "config.json").exists():
        return
    table = {stage.name: stage for stage in steps.stages(work)}
    stage = table[model if model == "gold" else f"unlearn/{model}"]
    for name in stage.inputs:
        if not all(path.exists() for path in table[name].leaves):  # of models there are none: the study made them
            table[name].make()
    stage.make()


def breach(work: Workspace) -> bool:
    """Makes all attacks on a group that are not made, and says whether there were any; a method that diverges is told of and left out."""
    out = attacking.left_out(work)
    for fault in out.values():
        print(f"  left out: {fault}", flush=True)
    any_made = False
    for model in ("gold", "vanilla", *work.config.unlearn.methods):
        asked = [name for name in lacking(work, model) if name not in out]
        if model not in (*work.names(), *METHODS) or not asked:
            continue
        any_made = True
        print(f"group {work.config.data.group}: {model}, {len(asked)} attacks", flush=True)
        try:
            make(work, model)
            for name in asked:
                attacking.attack(work, model, name)
        except NotFiniteError as error:
            print(f"  {model} is left out: {error}", flush=True)
            continue
        if model in METHODS:
            shutil.rmtree(work.folder(model))
            shutil.rmtree(work.workdir / "checkpoints" / "unlearn" / model, ignore_errors=True)
    return any_made


# ---- what is told


def pooled(groups: dict[int, Attacked], models: list[str], names: list[str]) -> Attacked:
    """Attack -> model -> ``before`` and ``after`` over the groups in which the model was attacked: mean of their means and a nested interval.

    Raises:
      InputError: a file has no numbers by person.
    """
    there = {(name, model): {group: of[name][model] for group, of in groups.items() if model in of.get(name, {})}
             for name in names for model in models}  # fmt: skip
    there = {key: values for key, values in there.items() if values}
    told = {(*key, end): {(0, group): _people(value, end, *key) for group, value in values.items()}
            for key, values in there.items() for end in ("before", "after")}  # fmt: skip
    varied = {(*key, variant): {(0, group): np.array([value["variants"][variant]["mean"]]) for group, value in values.items()}
              for key, values in there.items() for variant in _first(values).get("variants", ())}  # fmt: skip
    inner, outer = intervals(told), intervals(varied)
    found: Attacked = {}
    for (name, model), values in there.items():
        first, ends, variants = _first(values), {}, {}
        for end in ("before", "after"):
            each = told[name, model, end]
            ends[end] = _alike(inner[name, model, end], each, first) | {
                "n": sum(_count(v) for v in values.values()),
                "people": sum(map(len, each.values())),
            }
        for variant in first.get("variants", ()):
            own = [value["variants"][variant] for value in values.values()]
            variants[variant] = outer[name, model, variant] | {"n": sum(value["n"] for value in own)}
            if "tpr" in own[0]:
                variants[variant]["tpr"] = float(np.mean([value["tpr"] for value in own]))
        kept = {key: first[key] for key in ("measures", "split") if key in first}
        kept |= {"variants": variants} if variants else {}
        found.setdefault(name, {})[model] = ends | kept | {"groups": len(values), "trains": first["trains"]}
    return found


def _first(values: dict[int, dict]) -> dict:
    return next(iter(values.values()))


def intervals(found: dict[tuple, dict[tuple, np.ndarray]]) -> dict[tuple, dict[str, float]]:
    """Key -> ``mean``, ``low`` and ``high`` of its pairs, as ``metrics.nested`` has them; those of as many people are drawn at once.

    >>> intervals({('ga',): {(0, 2): np.array([1., 3.]), (0, 3): np.array([2., 2.])}})[('ga',)]['mean']
    2.0
    """
    alike: dict[tuple, list[tuple]] = {}
    for key, pairs in found.items():
        alike.setdefault(tuple((pair, len(values)) for pair, values in pairs.items()), []).append(key)
    made = {}
    for keys in alike.values():
        columns = {pair: np.stack([found[key][pair] for key in keys], axis=1) for pair in found[keys[0]]}
        means = np.mean([values.mean(axis=0) for values in columns.values()], axis=0)
        ends = np.percentile(metrics.nested_draws(columns), [2.5, 97.5], axis=0)
        for key, mean, low, high in zip(keys, means, *ends, strict=True):
            made[key] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return {key: made[key] for key in found}


def _alike(interval: dict[str, float], each: dict[tuple, np.ndarray], value: dict) -> dict[str, float]:
    """An interval; of shares that are all alike that of Wilson over people."""
    everybody = np.concatenate(list(each.values()))
    if value.get("measures") in ("identity", "read") and np.ptp(everybody) == 0:
        return interval | dict(zip(("low", "high"), wilson(interval["mean"], len(everybody)), strict=True))
    return dict(interval)


def _people(value: dict, end: str, name: str, model: str) -> np.ndarray:
    """What was measured person by person."""
    try:
        return np.array(list(value["each"][end].values()), float)
    except KeyError as error:
        raise InputError(
            f"expected numbers by person of {name} on {model}, found none; delete its file, and the same command makes it again"
        ) from error


def _count(value: dict) -> int:
    return int(attacked.ends(value)[1]["n"])


def tell(work: Workspace, groups: dict[int, Attacked]) -> str:
    """``attacks.md`` and ``attacks.json``; returns the text."""
    names, sources = list(attacking.names(work)), attacking.sources(work)
    models = ["vanilla", "gold", *[m for m in METHODS if any(m in by for of in groups.values() for by in of.values())]]
    found = pooled(groups, models, names)
    parts = [
        f"# Attacks on {len(groups)} groups of people to forget, seed {work.config.seed}",
        "Means over groups, with a 95 % interval from a bootstrap over groups and over people within them; of scores of membership over members "
        "alone, since those never seen are the same in every group.",
    ]
    for label, said, table in attacked.told(found, models):
        parts += [f"## {label}", *said, markdown(table)]
    few = {m: v["groups"] for by in found.values() for m, v in by.items() if v["groups"] < len(groups)}
    parts += [f"In fewer groups, where a run diverged or is not made yet: {few}."] if few else []
    several = attacked.variants(found, models)
    parts += ["## Variant by variant", "Intervals over groups alone.", markdown(several)] if len(several) > 1 else []
    parts += attacked.notes(found, sources)
    about = {"seed": work.config.seed, "groups": list(groups), "provenance": records.provenance()}
    files.write_json(work.workdir / "attacks.json", about | {"attacks": found})
    text = "\n\n".join(parts) + "\n"
    (work.workdir / "attacks.md").write_text(text, encoding="utf-8")
    return text


def run() -> None:
    """Makes what is missing of the command line, then tells what there is."""
    command.quiet()
    workdir = command.workdir() if command.WORKDIR.value else pathlib.Path("runs/breach")
    groups = command.numbers(GROUPS.value, "groups", int, lambda group: group >= 0)
    if not groups:
        raise InputError("expected a group at least, found none in --groups; name one")
    study = study_of(workdir)
    command.same_config(workdir, FREE)
    study.run([name for name in study.stages.table if name in ("data", "merge", "base", "vanilla")])
    found, work = {}, study.work
    with stages.keeping_compiled(workdir / "compiled"):
        for group in groups:
            one = work.of_group(group, workdir / f"group{group}")
            with stages.alone(one.workdir):
                any_made = breach(one)
            models = ["vanilla", "gold", *METHODS]
            found[group] = attacked.read(one.workdir, models, list(attacking.names(work)))
            if any_made and group != groups[-1]:
                tell(work, found)
    print(tell(work, found), flush=True)


def main(argv: list[str]) -> None:
    del argv
    command.spoken(run)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
