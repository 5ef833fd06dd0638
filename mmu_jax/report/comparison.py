"""Several runs on one page: means over them, paired differences, ranks and the front; beside it a CSV and LaTeX."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from mmu_jax import InputError
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS, Metric
from mmu_jax.report import figures, latex, page, paired, runs, words
from mmu_jax.report.page import Block, Section
from mmu_jax.report.paired import Column, Interval
from mmu_jax.report.results import FLAGS, Results, axes, headline, ours, outcome, placeless
from mmu_jax.report.runs import Merged, Run
from mmu_jax.report.tables import Table

MEANS = (
    "Per cent, mean over runs with a 95 % interval from a bootstrap over seeds, over groups within them and over people within "
    "those; every run and in it every person counts once. Arrows point to the good direction; what is left of the forgotten "
    "faces is good down to gold's level, not below it."
)
DIFFERENCES = (
    "{} minus each, in points, on the same people of the same runs, with a 95 % interval from the same bootstrap; in how many "
    "runs it is above 0; and better or worse where the interval does not hold 0."
)
RANKS = (
    "One more than how many methods are better, by an interval of the paired difference that does not hold 0: methods that "
    "cannot be told apart share a rank. Less is better on the forgotten faces, also below gold."
)
FRONT = (
    "Every axis against what is left of the forgotten faces: up and left is good. Crosses are 95 % intervals{}. The dotted line joins "
    "the methods beside which no other leaves as little and keeps as much, by their means; the dashed line is vanilla."
)
LIMITS = (
    "Intervals come from {runs}: drawn from few seeds they are rather too narrow, and one seed says nothing of another. They are "
    "not widened for how many methods and axes are compared. A model that no longer answers has not been shown to hold nothing."
)
ROUGH = (
    "Result files of an earlier version do not say what is known person by person: {what} by a bootstrap over runs alone. {found} "
    "To have it, delete results/ of such a run and start it again."
)


@dataclasses.dataclass(frozen=True)
class Told:
    """A table: the section it stands in, what is said of that, and the title of the metric that it is of."""

    section: str
    note: str
    metric: str
    table: Table


def _heads(shown: list[Column]) -> list[str]:
    """Axes with the direction that is good; of one that was asked otherwise than most, how."""
    most = shown[0].metric
    named = [c.axis.title if c.metric == most else f"{c.axis.title}, {METRICS[c.metric].name}" for c in shown]
    return [f"{name} {'↑' if c.up else '↓'}" for name, c in zip(named, shown, strict=True)]


def _scaled(by: Interval, metric: Metric, sign: str = "") -> str:
    """A mean with its interval where it has ends, as the metric is printed."""
    form = metric.form.replace("{:", "{:" + sign)
    mean, low, high = (form.format(metric.scale * value) for value in by[:3])
    return f"{mean} [{low}, {high}]" if math.isfinite(by.low) else mean


def means(shown: list[Column], results: Results, count: int) -> Table:
    """Rows of models, a column an axis; and where some are not in all of ``count`` runs, in how many each is."""
    counts = {name: max((len(c.values[name]) for c in shown if name in c.values), default=0) for name in results}
    told = any(found < count for found in counts.values())

    def row(name):
        found = [_scaled(c.mean(name), METRICS[c.metric]) if name in c.values else "–" for c in shown]
        return [name, *found, *([f"{counts[name]} of {count}"] if told else [])]

    return [["Model", *_heads(shown), *(["Runs"] if told else [])], *map(row, results)]


def differences(shown: list[Column], results: Results, mine: str) -> Table:
    """Rows of other models, a column an axis: ``mine`` minus each."""

    def said(column, name):
        if (by := column.minus(mine, name)) is None:
            return "–"
        told = f"{_scaled(by, METRICS[column.metric], '+')} · {by.above} of {by.pairs} above 0"
        better, worse = column.better(mine, name), column.better(name, mine)
        return told + (", better" if better else ", worse" if worse else "")

    others = [name for name in results if name != mine]
    return [["Minus", *_heads(shown)], *([name, *(said(c, name) for c in shown)] for name in others)]


def ranks(shown: list[Column], results: Results) -> Table:
    """Rows of methods, a column an axis."""
    found = [column.ranks() for column in shown]
    methods = [name for name in results if name in METHODS]
    return [["Method", *_heads(shown)], *([name, *(str(r.get(name, "–")) for r in found)] for name in methods)]


def verdict(shown: list[Column], results: Results, mine: str) -> list[str]:
    """Against every other method, in a sentence: on which axes it is better, worse, or neither."""
    lines = []
    for rival in (name for name in results if name in METHODS and name != mine):
        common = [column for column in shown if column.minus(mine, rival) is not None]
        better = [c.axis.title for c in common if c.better(mine, rival)]
        worse = [c.axis.title for c in common if c.better(rival, mine)]
        equal = [c.axis.title for c in common if c.axis.title not in (*better, *worse)]
        lines += [outcome(mine, rival, better, worse, equal)] if common else []
    return lines


def _of(merged: Merged) -> str:
    """``'3 runs (seeds 0, 1, 2; group 0)'``."""
    said = []
    for what, values in (("seed", [s for s, _ in merged]), ("group", [g for _, g in merged])):
        different = [str(value) for value in dict.fromkeys(values)]
        said.append(f"{what}{'s' if len(different) > 1 else ''} {', '.join(different)}")
    return f"{len(merged)} run{'s' if len(merged) > 1 else ''} ({'; '.join(said)})"


def _against(merged: Merged, named: str) -> str:
    """The method that the others are compared with."""
    methods = [name for name in METHODS if any(name in results for results in merged.values())]
    if named and named not in methods:
        raise InputError(
            f"expected --against among {', '.join(methods) or 'methods'}, found {named}; name a method of these runs"
        )
    if not methods:
        raise InputError("expected a method in the runs to compare, found none; run unlearn and evaluate first")
    return named or ours(dict.fromkeys(methods)) or methods[0]


def _listed(found: list[Run]) -> Table:
    rows = [[run.name, *map(str, run.pair), ", ".join(n for n in run.results if n in METHODS)] for run in found]
    return [["Run", "Seed", "Group", "Methods"], *rows]


def flags(merged: Merged) -> list[str]:
    """What must be told of models, and in how many of their runs."""
    raised: dict[str, dict[str, int]] = {}
    count = {
        name: sum(name in results for results in merged.values()) for results in merged.values() for name in results
    }
    for results in merged.values():
        for name, value in results.items():
            for flag in value["flags"]:
                of = raised.setdefault(flag, {})
                of[name] = of.get(name, 0) + 1
    told = {flag: ", ".join(f"{n} in {k} of {count[n]}" for n, k in of.items()) for flag, of in raised.items()}
    return [f"Flag {flag} ({FLAGS[flag]}): {whose}." for flag, whose in told.items()] or ["No flag was raised."]


def _remarks(found: list[Run], merged: Merged, shown: list[Column]) -> list[str]:
    """What a reader must know of the runs: what is missing, what was not made alike, what has no people."""
    there = dict.fromkeys(name for results in merged.values() for name in results)
    lost = {name: sum(name in results for results in merged.values()) for name in there}
    lost = {name: count for name, count in lost.items() if count < len(merged)}
    told = [f"In {count} of {len(merged)} runs alone, and compared over these: {name}." for name, count in lost.items()]
    if odd := runs.settings(found):
        told.append(f"Not made alike: {'; '.join(odd)}.")
    rough = [f"{c.axis.title} by {METRICS[c.metric].name}" for c in shown if not c.by_person]
    if rough:
        what = "all is compared" if len(rough) == len(shown) else f"{', '.join(rough)} are compared"
        signs = f"Of {len(merged)} it tells apart whatever has one sign in all, as chance has once in {2 ** (len(merged) - 1)}."
        told.append(ROUGH.format(what=what, found=signs if len(merged) > 1 else "Of one it tells nothing apart."))
    return told


def _tables(merged: Merged, mine: str, results: Results, by: dict[str, list[Column]]) -> list[Told]:
    """The means, the differences and the ranks, of each metric."""
    told = []
    for metric, shown in by.items():
        title = METRICS[metric].title
        told += [Told("Means over runs", MEANS, title, means(shown, results, len(merged)))]
        told += [Told("Paired differences", DIFFERENCES.format(mine), title, differences(shown, results, mine))]
        told += [Told("Ranks", RANKS, title, ranks(shown, results))]
    return told


def _section(title: str, told: list[Told], further: list[str]) -> Section:
    blocks = [Block("note", told[0].note)]
    for one in told:
        blocks += [Block("note", f"{one.metric}:"), Block("table", one.table, f"{title}, {one.metric}")]
    return Section(title, [*blocks, *(Block("note", line) for line in further)])


def compare(found: list[Run], against: str = "") -> tuple[list[str], list[Section], list[Told], dict[str, str]]:
    """What is to be said in sentences, the whole page in the order in which it is read, its tables, and the mark of every model.

    Args:
      against: the method that the others are compared with; default the first projected or masked one.
    Raises:
      InputError: the runs hold no such method, or two results of one model at one seed and group.
    """
    merged = runs.merge(found)
    mine = _against(merged, against)
    main = headline(next(iter(merged.values())))
    by = {metric: paired.columns(merged, *of) for metric, *of in ((main,), ("probability", "probability"))}
    by = {metric: shown for metric, shown in by.items() if shown}
    every = [column for shown in by.values() for column in shown]
    results = paired.pooled(merged, every)
    told = _tables(merged, mine, results, by)
    methods = [name for name in results if name in METHODS]
    said = [f"{len(methods)} method{'s' if len(methods) > 1 else ''} over {_of(merged)}, compared with {mine}."]
    said += verdict(by[main], results, mine)
    figure = figures.front_figure(results, "probability" if "probability" in by else main, joined=True)
    front = [
        Block("note", FRONT.format(page.BAND if "gold" in results else "")),
        Block("figure", figure, "front", words.of_front(results, list(results), [a for a in axes(results) if a.up])),
    ]
    titles, further = dict.fromkeys(one.section for one in told), {"Means over runs": flags(merged)}
    made = {run.name: run.results["vanilla"]["provenance"] | {"config": placeless(run.config)} for run in found}
    lead = [Block("note" if i else "lead", line) for i, line in enumerate(said)]
    return said, [
        Section("", lead),
        *([Section("Forgetting against every axis", front)] if figure is not None else []),
        *(_section(title, [one for one in told if one.section == title], further.get(title, [])) for title in titles),
        Section("The runs", [Block("table", _listed(found), "The runs"), *(Block("note", r) for r in _remarks(found, merged, every))]),
        Section("What these numbers do not show", [Block("note", LIMITS.format(runs=_of(merged)))]),
        Section("How they were made", [Block("fold", json.dumps(made, indent=1, sort_keys=True), "Configs and versions")]),
    ], told, {name: figures.dot(results, name) for name in results}  # fmt: skip


def write(paths: Sequence[str | pathlib.Path], out: str | pathlib.Path, against: str = "") -> list[str]:
    """Writes ``compare.html`` (self-contained), ``compare.md``, ``compare.csv`` and ``compare.tex`` of workdirs into a folder.

    Returns what they say in sentences, and where the page is.

    Raises:
      InputError: a workdir has no results, or the workdirs cannot be compared (:func:`runs.read`, :func:`runs.merge`).
    """
    out, found = pathlib.Path(out), runs.read(paths)
    said, sections, told, dots = compare(found, against)
    out.mkdir(parents=True, exist_ok=True)
    page.publish(out, "compare", "Comparison of runs", sections, dots)
    runs.write_csv(found, out / "compare.csv")
    floats = [latex.table(one.table, f"{one.section}. {one.metric}. {one.note}") for one in told]
    (out / "compare.tex").write_text("\n\n".join(["% \\usepackage{booktabs}", *floats]) + "\n", encoding="utf-8")
    return [*said, f"comparison: {out / 'compare.html'}"]
