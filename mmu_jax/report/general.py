"""What is left of what the models of a workdir could do besides: differences to vanilla, in a table and in sentences."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmu_jax import InputError, metrics
from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.files import read_object
from mmu_jax.report.tables import Table

Asked = dict[str, dict[str, dict[str, Any]]]  # benchmark -> model -> what its file says, with the arrays of NUMBERS
Differences = dict[str, dict[str, dict[str, float]]]  # column -> model -> mean, low, high, n, in points
NUMBERS = ("right", "asked", "image")  # of every item
SHAPE = {name: str for name in (*NUMBERS, "items")} | {"config": {"seed": float, "evaluate": {"samples": float}}}
SHAPE |= {"results": {"*": {"low": float, "one_answer": float}}}
WHY = (
    "General ability, as the difference to vanilla in points: the same questions, put in the same words to both, item by item, with a "
    "95 % interval from a bootstrap over images (each with all its questions), then the number of items. Higher is better; 0 is as "
    "good as vanilla. Absolute values are not shown: prompts and parsers differ from paper to paper, and differences do not. They are "
    "in `general/<model>/<benchmark>.json`."
)
HOW = (
    "Put as LLaVA-1.5 is asked (arXiv 2310.03744), answered greedily. MMBench, circular: right with the options in every rotation, "
    "letters read without another model's help. MME: share of an image's two questions; acc+: both right."
)


def read(workdir: pathlib.Path, models: Sequence[str], benchmarks: Sequence[str]) -> Asked:
    """What is in ``general/<model>/<benchmark>.json``; a benchmark that vanilla was not asked is left out.

    Raises:
      InputError: a file is damaged, or a model was asked other items than vanilla.
    """
    found: Asked = {}
    for name in benchmarks:
        paths = {model: workdir / "general" / model / f"{name}.json" for model in models}
        values = {model: _read(path) for model, path in paths.items() if path.exists()}
        if "vanilla" in values:
            found[name] = values
        for model in values if name in found else ():
            if any(values[model][key] != values["vanilla"][key] for key in ("items", "asked", "image")):
                raise InputError(
                    f"expected the same items of {name} asked of every model, found others than of vanilla in {paths[model]}; "
                    "delete it, and the same command makes it again"
                )
    return found


def _read(path: pathlib.Path) -> dict[str, Any]:
    value = read_object(path, "what a model can do", SHAPE)
    rows = [value[name].split() for name in NUMBERS]
    if not rows[0] or len(set(map(len, rows))) > 1 or not all(n.isdecimal() for row in rows for n in row):
        raise InputError(
            f"expected a whole number an item in {', '.join(NUMBERS)}, as many in each, found otherwise in {path}; delete it, and "
            "the same command makes it again"
        )
    return value


def differences(asked: Asked) -> Differences:
    """What every model but vanilla is above vanilla (below, if negative), paired by item, in points."""
    found: Differences = {}
    for name, values in asked.items():
        counts, images = (_array(values["vanilla"][key]) for key in ("asked", "image"))
        right = {model: _array(value["right"]) for model, value in values.items()}
        c = values["vanilla"]["config"]
        numbers = {"samples": int(c["evaluate"]["samples"]), "seed": int(c["seed"])}
        for title, measure in GENERAL[name].measures.items():
            value = {model: 100 * measure(row, counts) for model, row in right.items()}
            found[title] = {
                model: metrics.summary(mine - value["vanilla"], images, **numbers)
                for model, mine in value.items()
                if model != "vanilla"
            }
    return found


def _array(numbers: str) -> np.ndarray:
    return np.array(numbers.split(), int)


def table(found: Differences, models: Sequence[str]) -> Table:
    """Rows of models but vanilla, a column a measure: ``-0.4 [-1.2, +0.5], n 500``."""

    def cell(value):
        if value is None:
            return "–"
        return f"{value['mean']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}], n {value['n']}"

    head = ["Model", *(f"{title} ↑" for title in found)]
    rows = [[model, *(cell(by_model.get(model)) for by_model in found.values())] for model in models]
    return [head, *(row for row in rows if row[0] != "vanilla")]


def notes(found: Differences, asked: Asked) -> list[str]:
    """What the table shows and why so, how it was asked, and what lies below vanilla."""
    sources = "; ".join(f"{name}: {GENERAL[name].source}" for name in asked)
    below = {title: [m for m, value in by_model.items() if value["high"] < 0] for title, by_model in found.items()}
    said = "; ".join(f"{title} {', '.join(models) or 'none'}" for title, models in below.items())
    idle = [
        title
        for values in asked.values()
        for title, value in values["vanilla"]["results"].items()
        if value["low"] <= value["one_answer"]
    ]
    told = [f"Below vanilla, by intervals that do not hold 0: {said}."]
    if idle:
        told += [
            f"Vanilla itself is no better, within its interval, than one answer to every question on {', '.join(idle)}: it has "
            "nothing to lose there, and a difference near 0 says nothing."
        ]
    return [WHY, f"{HOW} Sources. {sources}.", *told]
