"""CLEAR's own table of the models of a workdir: every number that its code prints beside the corrected one."""

import numpy as np

from mmu_jax import clear_compat
from mmu_jax.clear_compat import GROUPS, TASKS, UTILITY, UTILITY_WITH_FORGET, Name, Numbers
from mmu_jax.metrics import METRICS
from mmu_jax.report.results import Results
from mmu_jax.report.tables import Table, interval, p_value

WHICH = ("published", "corrected")
TITLES = {"probability": "Prob.", "rouge": "ROUGE", "truth_ratio": "Truth ratio"}
WHY = (
    "What CLEAR's code (arXiv 2410.18057) prints of the questions it asks, 300 of a task at most, answered in up to 300 tokens: each number "
    "as published, then corrected, per cent. As published, wrong answers to all questions stand in every truth ratio, answers are "
    "generated without the photo, and JS is of the vectors of truth ratios over questions; corrected, each question has its own wrong "
    "answers, the photo is shown, and JS is of distributions. Prob. has no such fault and is the same. Corrected numbers have a 95 % "
    "interval from a bootstrap over people."
)
SUMS = (
    "Real, Retain, Forget: harmonic means of Prob. and truth ratio of two tasks. Forget mixes a number that falls as a model forgets with "
    "one that rises, and a utility with forgotten people in it is none: these have no corrected counterpart. Model utility: "
    "harmonic mean of all twelve numbers that are not of people to forget. Forget quality is against gold: the p-value of a "
    "Kolmogorov-Smirnov test, which is no per cent, and 1 - JS."
)


def told(results: Results) -> list[tuple[list[str], list[tuple[str, Table]]]]:
    """Notes and labelled tables of the section; empty where it was not asked for."""
    if not all("clear_compat" in value for value in results.values()):
        return []
    counts = ", ".join(f"{TASKS[name].title} {found['n']}" for name, found in _asked(results, "vanilla").items())
    tables = [("CLEAR: harmonic means and forget quality", sums(results))]
    tables += [(f"CLEAR: {title}", one_value(results, value)) for value, title in TITLES.items()]
    return [([WHY, SUMS, f"Items: {counts}."], tables)]


def one_value(results: Results, value: str) -> Table:
    """A value of every task: two columns each, published and corrected."""
    tasks = list(_asked(results, "vanilla"))
    rows = []
    for model in results:
        row = [model]
        for found in (_asked(results, model)[name] for name in tasks):
            row += [_percent(found["published"][value]), interval(found["corrected"][value], METRICS["probability"])]
        rows.append(row)
    head = [f"{TITLES[value]} {TASKS[name].title}, {which} {_arrow(name, value)}" for name in tasks for which in WHICH]
    return [["Model", *head], *rows]


def sums(results: Results) -> Table:
    """The harmonic means and forget quality, published and corrected; – where there is no such number."""
    both: dict[str, tuple[Name, ...]] = {"Real": GROUPS["Real"], "Retain": GROUPS["Retain"], "Model utility": UTILITY}
    alone = {"Forget": GROUPS["Forget"], "Model utility with Forget": UTILITY_WITH_FORGET}
    of_gold = {"p_value": ("Forget quality, p-value", p_value), "one_minus_js": ("Forget quality, 1 - JS", _percent)}
    head = [f"{title}, {which} ↑" for title in both for which in WHICH]
    head += [f"{title}, published" for title in alone]
    head += [f"{title}, {which} ↑" for title, _ in of_gold.values() for which in WHICH]
    rows = []
    for model in results:
        numbers = {which: means(results, model, which) for which in WHICH}
        row = [_percent(clear_compat.mean_of(numbers[which], names)) for names in both.values() for which in WHICH]
        row += [_percent(clear_compat.mean_of(numbers["published"], names)) for names in alone.values()]
        found = {which: _quality(results, model, which) for which in WHICH}
        row += ["–" if found[w] is None else form(found[w][key]) for key, (_, form) in of_gold.items() for w in WHICH]
        rows.append([model, *row])
    return [["Model", *head], *rows]


def means(results: Results, model: str, which: str) -> Numbers:
    """Task -> value -> mean, of a model, ``'published'`` or ``'corrected'``."""
    found = {name: task[which] for name, task in _asked(results, model).items()}
    if which == "published":
        return found
    return {name: {value: cell["mean"] for value, cell in cells.items()} for name, cells in found.items()}


def _quality(results: Results, model: str, which: str) -> dict[str, float] | None:
    """Of a model against gold; None of gold itself, and where there is no gold or no caption in other words."""
    tasks = [_asked(results, name).get("forget") for name in (model, "gold") if name in results]
    if model == "gold" or len(tasks) < 2 or None in tasks:
        return None
    mine, gold = (np.array(task["log_ratios"][which]) for task in tasks)
    return clear_compat.quality_of(mine, gold, published=which == "published")


def _asked(results: Results, model: str) -> dict:
    """The tasks that a model was asked, in CLEAR's order."""
    found = results[model]["clear_compat"]
    return {name: found[name] for name in TASKS if name in found}


def _arrow(name: str, value: str) -> str:
    return "↓" if TASKS[name].forgotten and value != "truth_ratio" else "↑"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
