"""Chooses the learning rate of every method: one grid for all, on seeds that are not reported.

    python -m experiments.sweep --config=configs/tiny.py --seeds=1

For each seed a vanilla model and the masks are made as ``experiments.run`` makes them; each method is then run at each rate, with
the passes, batch and everything else of the config. A rate is judged by its *worst axis*, in [0, 1]: the four-way goal
is only as good as the axis that fails. The axes are forget VQA and forget Test VQA (1 at or below the chance level of
the options, 0 where all are still right), forget QA, retain VQA, retain test VQA and retain QA (``config.evaluate.headline``). The best mean over
seeds wins, the smaller rate on a tie; one that ends in NaN or infinity is the worst. What is measured is kept in
``<workdir>/sweep.json``; the same command resumes.

With ``--retain_rates`` the rate of the steps that only descend is chosen too, of the methods that have such steps: the best of all
pairs.
"""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from experiments import command
from mmu_jax import InputError, NotFiniteError, files
from mmu_jax.study import checks, settings, stages, steps, unlearning
from mmu_jax.study.study import Study
from mmu_jax.study.workspace import Workspace

RATES = flags.DEFINE_list("rates", ["3e-5", "1e-4", "2e-4", "3e-4", "5e-4", "8e-4"], "The grid, for every method.")
RETAIN_RATES = flags.DEFINE_list("retain_rates", [], "Grid of config.unlearn.retain_rate.*; default the config's own.")
NAMES = flags.DEFINE_list("methods", [], "Only these methods; default those of the config.")


ROW = {"seed": float, "method": str, "retain_rate": float, "learning_rate": float, "axes": {"*": float}}
FIRST = ("data", "merge", "base", "vanilla", "evaluate/vanilla")  # made once a seed, beside the masks


def axes(results: dict, headline: str = "exact") -> dict[str, float]:
    """The axes that were evaluated, of six; each in [0, 1], up is good.

    Args:
      headline: the metric of generated answers that judges them.
    """

    def unknown(cell):
        choice = cell.get("mcq", {"mean": 0.0, "chance": 0.0})
        known = max(choice["mean"] - choice["chance"], 0.0) / (1 - choice["chance"])
        return 1.0 - max(known, cell[headline]["mean"])

    def known(cell):
        return cell[headline]["mean"]

    table = {
        "forget VQA": ("forget", "vqa", unknown),
        "test VQA": ("test", "vqa", unknown),
        "forget QA": ("forget", "qa", known),
        "retain VQA": ("retain", "vqa", known),
        "retain test VQA": ("retain_test", "vqa", known),
        "retain QA": ("retain", "qa", known),
    }
    cells = {axis: (results.get(split, {}).get(task, {}), judge) for axis, (split, task, judge) in table.items()}
    return {axis: judge(cell) for axis, (cell, judge) in cells.items() if headline in cell}


def measure(work: Workspace, name: str, **rates: float) -> dict[str, dict[str, float] | str]:
    """One method at one pair of rates on one seed: its axes; none, and ``diverged``, where the rates end in no numbers."""
    job = unlearning.prepare(work, name, **rates)
    plan = job.plan
    params = work.load(work.vanilla, consumed=plan.trainable.consumes)
    try:
        state = job.fit(work, params, work.mesh)
        trained = plan.trainable.view(state.params, params, job.limits, plan.method.phases[-1])
        results, _ = steps.question(work, f"{name} at {rates['learning_rate']:g}", trained.whole(trained.part))
    except NotFiniteError as error:
        return {"axes": {}, "diverged": str(error)}
    if not (found := axes(results, work.config.evaluate.headline)):
        raise InputError(
            f"expected questions with answers of which {work.config.evaluate.headline} judges, found none in this data set; "
            "name another config.evaluate.headline"
        )
    return {"axes": found}


def choose(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """Rows of a sweep -> the best learning rate of every method and its best rate of the steps that only descend.

    A row without axes diverged and is worse than any other; a method all of whose rows did has no rates.
    """
    seeds: dict[tuple[str, float, float], list[float]] = {}
    for row in rows:
        key = (row["method"], row["learning_rate"], row["retain_rate"])
        seeds.setdefault(key, []).append(min(row["axes"].values(), default=-1.0))
    best: dict[str, tuple[float, tuple[float, float]]] = {}
    for (name, *rates), worth in sorted(seeds.items()):  # in rising order: the first of equals stays
        if name not in best or np.mean(worth) > best[name][0]:
            best[name] = (float(np.mean(worth)), tuple(rates))
    alive = {row["method"] for row in rows if row["axes"]}
    return {name: rates for name, (_, rates) in best.items() if name in alive}


def measured(path: pathlib.Path) -> list[dict]:
    """What an earlier sweep in this workdir has measured."""
    rows = files.read_json(path, "what a sweep has measured") if path.exists() else []
    if odd := files.unlike(rows, [ROW]):
        raise InputError(f"expected what a sweep has measured in {path}, found {odd}; move it away")
    return rows


def made(study: Study, name: str) -> str:
    """A hash of all that a measurement of a method depends on beside the two rates."""
    stage, inputs = study.stages.table[f"unlearn/{name}"], study.stages.table[f"unlearn/{name}"].inputs
    how = {key: value for key, value in stage.reads["unlearn"].items() if key not in ("learning_rate", "retain_rate")}
    reads = [stage.reads | {"unlearn": how}, [study.stages.fingerprint(i) for i in inputs]]
    reads += [study.stages.fingerprint("evaluate/vanilla")]
    return hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest()[:16]


def check_given(given: dict[str, Any]) -> None:
    """Refuses keys of the command line that a sweep chooses itself."""
    table = [
        ("seed", True, "--seeds names them"),
        ("gold", True, "a sweep makes none"),
        (r"unlearn\.learning_rate\..*", True, "--rates is the grid of every method"),
        (r"unlearn\.retain_rate\..*", RETAIN_RATES.value, "--retain_rates is the grid of every method"),
        (r"unlearn\.methods", NAMES.value, "--methods names them"),
    ]
    if found := [f"config.{key} ({reason})" for key, reason in settings.matching(given, table)]:
        raise InputError(
            f"expected keys that a sweep reads, found {', '.join(found)}; remove {'it' if len(found) == 1 else 'them'}"
        )


def has_own_rate(config: ConfigDict, name: str) -> bool:
    """Whether a method, as a config runs it, has steps that only descend at a rate of their own."""
    return checks.method(config, name).has_own_rate


def _is_rate(value: float) -> bool:
    return 0 < value < 1e6


def study_of(workdir: pathlib.Path, seed: int, retained: list[float]) -> Study:
    """The study of a seed, of which nothing is made yet.

    Raises:
      InputError: its config cannot work, or there is no step that ``retained`` are rates of.
    """
    config = command.CONFIG.value.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.gold = seed, False
        config.unlearn.methods = tuple(NAMES.value) or config.unlearn.methods
    study = Study(config, workdir / f"seed{seed}", command.given())
    if retained and not any(has_own_rate(config, name) for name in config.unlearn.methods):
        raise InputError(
            "expected no --retain_rates where no step of these methods only descends, found some; remove them"
        )
    return study


def walk(kept: pathlib.Path, seeds: list[int], rates: list[float], retained: list[float]) -> list[dict]:
    """The rows that were asked for; those that ``kept`` does not hold yet are measured."""
    asked, rows = [], measured(kept)
    for seed in seeds:
        study = study_of(kept.parent, seed, retained)
        config = study.work.config
        study.run(
            [name for name in study.stages.table if name in FIRST or name.startswith("saliency/") or name == "factors"]
        )
        grid = [
            (name, retain_rate, rate)
            for name in config.unlearn.methods
            for retain_rate in (has_own_rate(config, name) and retained) or [config.unlearn.retain_rate[name]]
            for rate in rates
        ]
        for name, retain_rate, rate in grid:
            key = {"seed": seed, "method": name, "retain_rate": retain_rate, "learning_rate": rate}
            key["made"] = made(study, name)
            row = next((row for row in rows if key.items() <= row.items()), None)
            if row is None:
                row = key | measure(study.work, name, learning_rate=rate, retain_rate=retain_rate)
                rows.append(row)
                files.write_json(kept, rows)
            asked.append(row)
            shown = "  ".join(f"{axis} {100 * v:.0f}" for axis, v in row["axes"].items()) or "diverged"
            print(f"{name} at {rate:g}, retain rate {retain_rate:g}, seed {seed}: {shown}", flush=True)
    return asked


def sweep() -> None:
    """Measures what is not measured yet, then prints the rates chosen."""
    command.quiet()
    workdir = pathlib.Path(command.WORKDIR.value or "runs/sweep")
    check_given(command.given())
    seeds = command.seeds(["1"])
    rates, retained = (command.numbers(f.value, f.name, float, _is_rate) for f in (RATES, RETAIN_RATES))
    if not seeds or not rates:
        raise InputError("expected a seed and a rate at least, found none in --seeds or --rates; name one")
    measured(workdir / "sweep.json")
    config = [study_of(workdir, seed, retained).work.config for seed in seeds][-1]  # refused before anything is written
    with stages.alone(workdir):
        asked = walk(workdir / "sweep.json", seeds, rates, retained)
    best = choose(asked)
    for name in dict.fromkeys(row["method"] for row in asked):
        if name not in best:
            print(
                f"config.unlearn.learning_rate.{name}: none found, it diverged at every rate; give smaller ones in --rates"
            )
            continue
        print(f"config.unlearn.learning_rate.{name} = {best[name][0]:g}")
        if has_own_rate(config, name):
            print(f"config.unlearn.retain_rate.{name} = {best[name][1]:g}")


def main(argv: list[str]) -> None:
    del argv
    command.spoken(sweep)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
