"""Compares methods at matched forgetting, by the protocol of docs/protocol.md.

    python -m experiments.protocol --config=configs/tiny.py --workdir=runs/protocol

Every part is resumable: vanilla models, gold models, factors and masks (``prepare``); every method at the rates that are written
for it, on the pairs of seed and group that are reported (``measure``); tables (``tell``), which go to ``<workdir>/results.md`` and
``results.json``. How the written rates were chosen is a part of its own: every method at every rate of the grid on the pairs that only
choose (``choose``).
``--only_seeds``, ``--only_groups``, ``--only_settings`` and ``--only_methods`` do a part of ``prepare``, ``choose`` and ``measure``, so
that several processes may share the work, each with pairs of its own; ``tell`` then reads what all of them measured.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments import command, told
from experiments.design import AXES, DESIGNS, GUARDS, Design, Pair, Rates, Setting, descends, label, said
from mmu_jax import InputError, NotFiniteError, attacks, files, metrics
from mmu_jax.methods import METHODS
from mmu_jax.study import attacking, general, scoring, settings, stages, steps, unlearning
from mmu_jax.study.study import Study
from mmu_jax.study.workspace import Workspace
from mmu_jax.trees import Params

DESIGN = flags.DEFINE_enum("design", "tiny", list(DESIGNS), "What is compared on whom (experiments/design.py).")
PARTS = ("prepare", "choose", "measure", "tell")
PART = flags.DEFINE_list("part", ["prepare", "measure", "tell"], f"Parts, in order, of {', '.join(PARTS)}.")
SEEDS = flags.DEFINE_list("only_seeds", [], "Only these seeds.")
GROUPS = flags.DEFINE_list("only_groups", [], "Only these groups.")
SETTINGS = flags.DEFINE_list("only_settings", [], "Only these settings.")
NAMES = flags.DEFINE_list("only_methods", [], "Only these methods.")


def design() -> Design:
    """What the flags say is compared on whom."""
    return DESIGNS[DESIGN.value]


ROW = {"setting": str, "method": str, "rate": float, "retain_rate": float, "axes": dict, "made": str}


@functools.cache
def study_of(seed: int) -> Study:
    """The study that makes the vanilla model of a seed."""
    config = command.CONFIG.value.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.gold, config.attack.names = seed, False, ()
    return Study(config, pathlib.Path(command.WORKDIR.value) / f"seed{seed}", command.given())


@functools.cache
def of_pair(seed: int, group: int) -> Workspace:
    """What a pair of seed and group runs in."""
    work = study_of(seed).work
    return work.of_group(group, work.workdir / f"group{group}")


def configured(work: Workspace, setting: Setting) -> Workspace:
    """The workspace as a setting runs it."""
    with work.config.unlocked():
        work.config.unlearn.replay, work.config.unlearn.methods = setting.replay, tuple(setting.methods)
    return work


def prepare(pairs: list[tuple[int, int]]) -> None:
    """Vanilla models, factors and masks, and for the pairs that are reported gold models, each made once."""
    for seed in dict.fromkeys(seed for seed, _ in pairs):
        study_of(seed).run(["data", "base", "vanilla"])
    for pair in pairs:
        work = of_pair(*pair)
        print(f"seed {pair[0]}, group {pair[1]}", flush=True)
        with stages.alone(work.workdir):
            prepare_pair(work, pair)


def prepare_pair(work: Workspace, pair: tuple[int, int]) -> None:
    """Factors and masks of a pair, and where it is reported its gold model and what that and vanilla know."""
    names = {name for setting in design().settings.values() for name in setting.methods}
    with work.config.unlocked():
        work.config.unlearn.methods = tuple(sorted(names))
    if any(METHODS[name].reads_factors for name in names) and not work.factors.exists():
        scoring.factors(work)
    masked = [name for name in names if METHODS[name].mask and not work.mask(name).exists()]
    for name in sorted(masked, key=lambda name: str(METHODS[name].mask.reads)):
        scoring.mask(work, name)
    if pair in design().reported:
        if not (work.folder("gold") / "config.json").exists():
            steps.fine_tune(work, "gold")
        baselines(pair)


# ---- a run


def known(work: Workspace, params: Params, axes: Sequence[str] = tuple(AXES)) -> dict[str, dict[str, dict[str, float]]]:
    """Axis -> metric -> person -> mean, of a model; with all of them the general benchmarks too."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for axis in axes:
        split, kind = AXES[axis]
        people = [dataclasses.replace(person, cloze=()) for person in getattr(work.benchmark, split)]
        album = work.albums[split if split in work.albums else "full"]
        items, _ = work.examiner.measure(params, people, kind, album, split)
        found[axis] = {name: metrics.by_person(items[name]) for name in ("probability", "exact")}
        if axis == "forget_test":
            found[axis]["items"] = [round(float(p), 5) for p in items["probability"].values]
    return found | {
        name: {"right": general.rights(work, params, name)} for name in (work.general if {*axes} == {*AXES} else ())
    }


def attacked(work: Workspace, params: Params) -> dict[str, dict[str, float]]:
    """Attack -> person -> what is known of the other facts after relearning; ``params`` are consumed."""
    items, split = attacks.facts.other_facts(work.benchmark)
    found = {}
    for name in ("relearn_own", "relearn_benign"):
        own = jax.tree.map(lambda x: x.copy(), params)
        for _, now in attacks.ATTACKS[name].of(own, attacking.scene(work, name)):
            last = now
        found[name] = metrics.by_person(attacks.facts.knowledge(work.examiner, last, items, work.albums[split]))
    return found


def measure(
    work: Workspace, setting: Setting, name: str, rates: Rates, deep: bool, axes: Sequence[str]
) -> dict[str, Any]:
    """A method at its rates, run to its stop: how long, where it ended, and what is known then, as :func:`known` says."""
    try:
        params, ended = unlearning.forgotten(
            work, name, iterations=setting.iterations, learning_rate=rates[0], retain_rate=rates[1]
        )
        found = {"axes": known(work, params, axes)} | ended
    except NotFiniteError as error:
        return {"axes": {}, "diverged": str(error)}
    return found | ({"attacks": attacked(work, params)} if deep else {})


def rows_of(work: Workspace, setting: str, name: str) -> tuple[pathlib.Path, list[dict]]:
    """Where the measurements of a method on a pair in a setting are kept, and those that are there."""
    path = work.workdir / "measured" / f"{setting}-{name}.json"
    rows = files.read_json(path, "what the protocol has measured") if path.exists() else []
    if odd := files.unlike(rows, [ROW]):
        raise InputError(f"expected what the protocol has measured in {path}, found {odd}; move it away")
    return path, rows


def there(pair: Pair, key: str, name: str, rates: Rates, deep: bool = False) -> tuple[dict, dict | None]:
    """What the row of a method at its rates is known by, and the row, None if it was not measured, or less of it than is asked."""
    setting = design().settings[key]
    stop = of_pair(*pair).config.unlearn.stop.to_dict()
    made = json.dumps([METHODS[name].arithmetic(), setting.iterations, setting.replay, stop], sort_keys=True)
    sought = {"setting": key, "method": name, "rate": rates[0], "retain_rate": rates[1], "made": made}
    rows = [row for row in rows_of(of_pair(*pair), key, name)[1] if sought.items() <= row.items()]
    wanted = {*design().asked(pair, setting), *(["attacks"] if deep else [])}
    return sought, next((row for row in rows if not row["axes"] or wanted <= {*row, *row["axes"]}), None)


def read(pair: tuple[int, int], key: str, name: str, rates: Rates) -> dict:
    """The row of a method at its rates.

    Raises:
      InputError: it was not measured.
    """
    chooses = pair in design().choosing
    row = there(pair, key, name, rates, deep=key in design().deep and not chooses)[1]
    if row is None:
        raise InputError(
            f"expected every method measured on every pair, found no {name} at {rates[0]:g} / {rates[1]:g} of setting {key} on seed "
            f"{pair[0]}, group {pair[1]}; run --part=prepare,{'choose' if chooses else 'measure'} first"
        )
    return row


def measured(pair: tuple[int, int], key: str, name: str, rates: Rates, deep: bool = False) -> dict:
    """The row of a method at its rates, measured if it is not there."""
    sought, row = there(pair, key, name, rates, deep)
    if row is not None:
        return row
    work, setting = configured(of_pair(*pair), design().settings[key]), design().settings[key]
    path = rows_of(work, key, name)[0]
    axes = design().asked(pair, setting)
    row = sought | {"seed": pair[0], "group": pair[1]} | measure(work, setting, name, rates, deep, axes)
    files.write_json(path, [*rows_of(work, key, name)[1], row])  # another process may have measured meanwhile
    told.line(row)
    return row


# ---- rates, tables


def wanted(key: str) -> list[str]:
    """The methods of a setting that the flags ask for."""
    return [name for name in design().settings[key].methods if not NAMES.value or name in NAMES.value]


def choose(keys: list[str], pairs: list[tuple[int, int]]) -> None:
    """Measures the grid on pairs that only choose; where all of these are there, says what is best and what is written."""
    for key in keys:
        for name in wanted(key):
            for pair in pairs:
                for rates in grid(key, name):
                    measured(pair, key, name, rates)
            if tuple(pairs) == design().choosing:
                best, written = chosen(key, name), design().settings[key].methods[name][:1]
                told_too = "".join(f", written {rate:g} / {retain:g}" for rate, retain in written)
                print(f"{key} {name}: best at {best[0]:g} / {best[1]:g}{told_too}", flush=True)


def grid(key: str, name: str) -> list[Rates]:
    """The rates at which a method is tried in a setting."""
    setting = design().settings[key]
    retained = setting.retained if descends(setting, name) else setting.retained[:1]
    rates = setting.rates if METHODS[name].phases else setting.rates[:1]  # an edit has a strength instead
    return [(rate, retain) for retain in retained for rate in rates]


def mean(row: dict, axis: str, metric: str) -> float:
    return float(np.mean(list(row["axes"][axis][metric].values())))


def chosen(key: str, name: str, row: Callable[..., dict] | None = None) -> Rates:
    """The rates at which a method keeps most on the choosing pairs, of those at which it reached the level on all.

    ``row`` gives the row of a pair, setting, method and rates; default it is measured where it is not there.

    Rates at which the guards hold go before others.
    """
    axis, metric = design().settings[key].primary
    row = row or measured
    tried = {rates: [row(pair, key, name, rates) for pair in design().choosing] for rates in grid(key, name)}

    def guarded(rates):
        return all(mean(row, *guard) >= 0.97 for row in tried[rates] for guard in GUARDS)

    ended = [rates for rates, rows in tried.items() if all(row["axes"] and row["reached"] for row in rows)]
    worth = {rates: np.mean([mean(row, axis, metric) for row in tried[rates]]) for rates in ended}
    best = max(filter(guarded, ended), key=worth.get, default=None)
    return best or max(ended, key=worth.get, default=grid(key, name)[-1])


def reported(key: str, name: str) -> tuple[Rates, ...]:
    """The rates at which a method is reported: those that are written, or where none are the best on the choosing pairs.

    Raises:
      InputError: it was not tried at all of them there.
    """
    return design().settings[key].methods[name] or (chosen(key, name, read),)


def baselines(pair: tuple[int, int]) -> dict[str, dict]:
    """Vanilla and gold of a pair, asked and attacked as the methods are."""
    work, found = of_pair(*pair), {}
    path = work.workdir / "baselines.json"
    if path.exists():
        return files.read_json(path, "what vanilla and gold know")
    for name in ("vanilla", "gold"):
        params = work.load(work.folder(name), consumed=True)
        found[name] = {"axes": known(work, params)}
        found[name] |= {"attacks": attacked(work, params)} if design().deep else {}
    files.write_json(path, found)
    return found


def numbers(values: list[str], flag: str) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise InputError(f"expected whole numbers in --{flag}, found {','.join(values)!r}; correct it") from error


def only(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those pairs that the flags ask for."""
    seeds, groups = numbers(SEEDS.value, "only_seeds"), numbers(GROUPS.value, "only_groups")
    return [(s, g) for s, g in pairs if (not seeds or s in seeds) and (not groups or g in groups)]


def protocol() -> None:
    command.quiet()
    if not command.WORKDIR.value:
        raise InputError("expected --workdir=DIR, found none; name a place for models and measurements")
    if command.SEEDS.present:
        raise InputError("expected --only_seeds, found --seeds, which the protocol names itself; remove it")
    if strange := [name for name in (*PART.value, *SETTINGS.value) if name not in (*PARTS, *design().settings)]:
        raise InputError(
            f"expected parts among {', '.join(PARTS)} and settings among {', '.join(design().settings)}, found {strange[0]!r}"
        )
    if given := settings.matching(
        command.given(),
        [
            (
                r"seed|gold|data\.group|unlearn\.(methods|replay|learning_rate.*|retain_rate.*|stop\..*)|factors\.path",
                True,
                "",
            )
        ],
    ):
        raise InputError(f"expected keys that the protocol does not set itself, found config.{given[0][0]}; remove it")
    command.same_config(pathlib.Path(command.WORKDIR.value), ("seed", "gold", "mesh", "save_every", "save_minutes"))
    with stages.keeping_compiled(pathlib.Path(command.WORKDIR.value) / "compiled"):
        parts(set(PART.value), SETTINGS.value or list(design().settings))


def parts(asked: set[str], keys: list[str]) -> None:
    """Those of the parts that are asked for, in the settings of ``keys``."""
    if "measure" in asked and "choose" not in asked:
        for key in keys:
            for name in wanted(key):
                reported(key, name)  # whose rates are not written, they were chosen
    if "prepare" in asked:
        choosing = design().choosing if "choose" in asked else ()
        prepare(only((*choosing, *(design().reported if "measure" in asked or not choosing else ()))))
    if "choose" in asked:
        choose(keys, only(design().choosing))
    if "measure" in asked:
        for pair in only(design().reported):
            for key in keys:
                for name in wanted(key):
                    for rates in reported(key, name):
                        measured(pair, key, name, rates, deep=key in design().deep)
    if "tell" in asked:
        tell(keys)


def tell(keys: list[str]) -> None:
    """The tables of all that was measured in the settings of ``keys``."""
    pairs, rates, rows = design().reported, {}, {}
    for key in keys:
        setting = design().settings[key]
        entries = [(name, rate) for name in setting.methods for rate in reported(key, name)]
        rates[key] = {label(setting, *entry): said(setting, *entry) for entry in entries}
        rows |= {(key, label(setting, *entry), pair): read(pair, key, *entry) for entry in entries for pair in pairs}
    told.write(pathlib.Path(command.WORKDIR.value), rates, rows, {p: baselines(p) for p in pairs}, design().deep)


def main(argv: list[str]) -> None:
    del argv
    command.spoken(protocol)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
