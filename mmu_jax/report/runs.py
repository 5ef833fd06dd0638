"""Several workdirs read as one: which can be compared, what each pair of seed and group has, and a tidy table of all numbers."""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmu_jax import InputError
from mmu_jax.files import flat, read_object, unlike
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS
from mmu_jax.report import results
from mmu_jax.report.results import Results

Pair = tuple[int, int]  # of seed and group of people to forget
Merged = dict[Pair, Results]
MADE = {"seed": float, "data": dict, "model": dict, "unlearn": dict, "evaluate": {"prompts?": dict, "headline": str}}
HEAD = ("run", "seed", "group", "model", "split", "task", "metric", "mean", "low", "high", "n")
# Keys in which runs may differ and be told of as alike: whom, which methods, and what no number depends on.
FREE = (
    r"seed|gold|track|save_every|save_minutes|(memory|mesh|attack)\..*|data\.(group|tokens|patches|source|path)|vanilla\.path"
    r"|show_people|general\..*|unlearn\.methods|evaluate\.(rows|samples)|factors\.(path|blocks)"
)
RATE = r"unlearn\.(?:learning|retain)_rate\.(.*)"  # of one method, and of no concern to the others


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir.

    Attributes:
      path: as it was given.
      name: what pages and tables call it: the end of its path that no other run's has.
      results: by the name of a model.
    """

    path: str
    name: str
    results: Results

    @property
    def config(self) -> dict[str, Any]:
        return self.results["vanilla"]["config"]

    @property
    def pair(self) -> Pair:
        return int(self.config["seed"]), int(self.config["data"].get("group", 0))


def read(paths: Sequence[str | pathlib.Path]) -> list[Run]:
    """The workdirs, each with what was evaluated in it.

    Raises:
      InputError: there is none; one is named twice, or has no results; or they cannot be compared: they are of other data,
        another model, another headline metric or other questions. All that differs is said at once.
    """
    named = names([str(path) for path in paths])
    found = [Run(str(path), named[str(path)], results.read(pathlib.Path(path))) for path in paths]
    if not found:
        raise InputError("expected workdirs with results, found none; name at least one")
    for run in found:
        for name, value in run.results.items():
            if odd := unlike(value["config"], MADE, "config"):
                raise InputError(
                    f"expected results with the config of their run, found {odd} in {run.path}/results/{name}.json"
                )
    same = [run.path for run in found if sum(pathlib.Path(run.path).samefile(other.path) for other in found) > 1]
    if same:
        raise InputError(f"expected every workdir once, found {same[0]} again; name it once")
    if odd := differing((run.path, _identity(run)) for run in found):
        raise InputError(
            f"expected runs that can be compared, found others: {'; '.join(odd)}; leave out those that are not alike"
        )
    return found


def names(paths: Sequence[str]) -> dict[str, str]:
    """Path -> the shortest end of it that tells the paths apart, as long for all.

    >>> names(["/home/ada/one/seed-0", "/home/ada/two/seed-0"])
    {'/home/ada/one/seed-0': 'one/seed-0', '/home/ada/two/seed-0': 'two/seed-0'}
    """
    parts = {path: pathlib.Path(path).resolve().parts[1:] for path in paths}
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        found = {path: "/".join(of[-length:]) for path, of in parts.items()}
        if len(set(found.values())) == len(set(parts.values())):
            return found
    return {path: path for path in paths}


def _identity(run: Run) -> dict[str, Any]:
    """What runs must have in common: the data set, the model, and what is asked; a folder is known by what is in it."""
    record, data = pathlib.Path(run.path) / "stages" / "data.json", run.config["data"]
    known = {key: data.get(key) for key in ("name", "source", "path", "forget", "retain")}
    if record.exists():
        known = read_object(record, "a stage record", {"reads": {"data": dict}})["reads"]["data"]
    known = {"others": data.get("others", True)} | known  # of a run that knew nothing of it everybody was trained on
    asked = {key: run.config["evaluate"].get(key) for key in ("headline", "prompts", "new_tokens")}
    asked["shots"] = run.config["evaluate"].get("shots", 0)
    return {"data": known | {"max_pixels": data.get("max_pixels")}, "model": run.config["model"], "evaluate": asked}


def differing(values: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """``'model.path = a (run 1), b (run 2)'`` for every dotted key whose value is not the same in all."""
    flats = [(path, flat(value)) for path, value in values]
    keys, said = dict.fromkeys(key for _, value in flats for key in value), []
    for key in keys:
        whose: dict[str, list[str]] = {}
        for path, value in flats:
            whose.setdefault(repr(value.get(key)), []).append(path)
        if len(whose) > 1:
            said.append(f"{key} = " + ", ".join(f"{v} ({', '.join(dict.fromkeys(who))})" for v, who in whose.items()))
    return said


def merge(found: list[Run]) -> Merged:
    """Pair of seed and group -> the models of all its workdirs, vanilla and gold first, in order of the pairs.

    Raises:
      InputError: a model of a pair is in two workdirs with other results: which is meant is not for us to choose.
    """
    merged: dict[Pair, dict[str, tuple[Run, dict]]] = {}
    twice = []
    for run in found:
        models = merged.setdefault(run.pair, {})
        for name, value in run.results.items():
            first, known = models.setdefault(name, (run, value))
            if _means(known) != _means(value):
                twice.append(f"{name} at seed {run.pair[0]}, group {run.pair[1]} ({first.path}, {run.path})")
    if twice:
        raise InputError(
            f"expected one result of every model at a seed and group, found others of {'; '.join(twice)}; runs of one seed and group "
            "begin with the same vanilla model and have other methods: leave one out"
        )
    order = ["vanilla", "gold", *METHODS]
    return {
        pair: {name: models[name][1] for name in sorted(models, key=order.index)}
        for pair, models in sorted(merged.items())
    }


def _means(value: dict[str, Any]) -> dict[tuple, float]:
    return {place: cell["mean"] for *place, cell in _cells(value) for place in [tuple(place)]}


def _cells(value: dict[str, Any]) -> Iterable[tuple[str, str, str, dict]]:
    """Split, task, metric and what was measured, of every metric of the table."""
    for split, tasks in value["results"].items():
        for task, cells in tasks.items():
            yield from ((split, task, name, cell) for name, cell in cells.items() if name in METRICS)


def settings(found: list[Run]) -> list[str]:
    """In which keys of their configs models were not made alike, beside seed, group and methods; in words."""

    def relevant(name, config):
        kept = {}
        for key, value in flat(config).items():
            of = re.fullmatch(RATE, key)
            if not re.fullmatch(FREE, key) and (of is None or of[1] == name):
                kept[key] = value
        return kept

    models = [(run.name, relevant(name, value["config"])) for run in found for name, value in run.results.items()]
    keys = dict.fromkeys(key for _, kept in models for key in kept)
    by_key = {key: [(path, {key: kept[key]}) for path, kept in models if key in kept] for key in keys}
    return [line for values in by_key.values() for line in differing(values)]


def write_csv(found: list[Run], path: pathlib.Path) -> None:
    """Every number of every run, one a line, as its result file has it: fractions of 1, ``n`` questions; columns :data:`HEAD`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(HEAD)
        for run in found:
            for name, value in run.results.items():
                for *place, cell in _cells(value):
                    rows.writerow([run.name, *run.pair, name, *place, *(cell[key] for key in HEAD[-4:])])
