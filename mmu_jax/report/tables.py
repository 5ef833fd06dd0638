"""Tables: lists of rows of strings, the first the head; and how they are written out."""

import html
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from mmu_jax import metrics, quality
from mmu_jax.files import read_object
from mmu_jax.metrics import METRICS, Metric
from mmu_jax.report.results import Axis, Results, axes, better_up, cell, family, headline, read, verdict

Table = list[list[str]]
# Of a stage, as its record keeps it.
COST = {"seconds": float, "peak_host_bytes_so_far": float, "peak_device_bytes_so_far?": float}


def _head(results: Results, metric: str) -> list[str]:
    return [f"{axis.title} {arrow(axis, metric)}" for axis in axes(results)]


def arrow(axis: Axis, metric: str) -> str:
    """Which direction of a metric is good on an axis."""
    return "↑" if better_up(axis, metric) else "↓"


def interval(value: dict[str, float] | None, metric: Metric) -> str:
    """A mean with its interval, as the metric is printed."""
    if value is None:
        return "–"
    mean, low, high = (metric.form.format(metric.scale * value[key]) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def summary(workdir: str | pathlib.Path, names: list[str] | None = None) -> str:
    """The four-way table for a terminal: the headline metric / MCQ, per cent; of ``names``, or of all there are."""
    results = read(pathlib.Path(workdir), names)
    metric = headline(results)
    width = max(*map(len, results), len(metric) + 8) + 2
    lines = [f"{metric} / MCQ, %".ljust(width) + "".join(f"{title:>18}" for title in _head(results, metric))]
    for name in results:
        row = name.ljust(width)
        for axis in axes(results):
            found = (cell(results, name, axis.split, axis.task, m) for m in (metric, "mcq"))
            row += " / ".join(f"{100 * value['mean']:.0f}" if value else "–" for value in found).rjust(18)
        flags = results[name]["flags"]
        lines.append(row + (f"  {', '.join(flags)}" if flags else ""))
    return "\n".join(["", *lines, "", *verdict(results), ""])


def four_way(results: Results) -> Table:
    """Rows of models; every cell the headline metric with its interval, then MCQ."""
    metric = headline(results)
    table = [["Model", *_head(results, metric), "Flags"]]
    for name, value in results.items():
        row = [name]
        for axis in axes(results):
            mcq = cell(results, name, axis.split, axis.task, "mcq")
            shown = f" · MCQ {100 * mcq['mean']:.0f}" if mcq else ""
            row.append(interval(cell(results, name, axis.split, axis.task, metric), METRICS[metric]) + shown)
        table.append([*row, ", ".join(value["flags"])])
    return table


def one_metric(results: Results, metric: str) -> Table:
    """One metric over the same axes."""

    def row(name):
        return [interval(cell(results, name, a.split, a.task, metric), METRICS[metric]) for a in axes(results)]

    return [["Model", *_head(results, metric)], *([name, *row(name)] for name in results)]


def further(results: Results, shown: Sequence[str]) -> list[tuple[list[str], Table]]:
    """A table of every metric that is not ``shown`` and was measured; those that say the same of all, to the digit, share one."""
    found: list[tuple[list[str], Table]] = []
    for metric in METRICS:
        there = any(cell(results, "vanilla", a.split, a.task, metric) for a in axes(results))
        if metric in shown or not there:
            continue
        table = one_metric(results, metric)
        if same := [names for names, other in found if other == table]:
            same[0].append(metric)
        else:
            found.append(([metric], table))
    return found


def no_answer_table(results: Results) -> Table | None:
    """The share of free answers that are none of the kind asked for, per cent; None where answers were not looked at."""
    asked = [a for a in axes(results) if cell(results, "vanilla", a.split, a.task, "no_answer")]
    if not asked:
        return None

    def row(name):
        return [interval(cell(results, name, a.split, a.task, "no_answer"), METRICS["exact"]) for a in asked]

    return [["Model", *(f"{a.title} ↓" for a in asked)], *([name, *row(name)] for name in results)]


def _against_gold(results: Results, metric: str = "probability") -> list[Axis]:
    """The axes of forgotten faces on which a metric of every model is known item by item; none without gold."""
    faces = [axis for axis in axes(results) if axis.split in ("forget", "test") and axis.task == "vqa"]
    asked = {a: [cell(results, name, a.split, a.task, metric) or {} for name in results] for a in faces}
    return [a for a, cells in asked.items() if "gold" in results and all("items" in found for found in cells)]


def _items(results: Results, name: str, axis: Axis, metric: str = "probability") -> np.ndarray:
    return np.array(cell(results, name, axis.split, axis.task, metric)["items"])


def distance_table(results: Results) -> Table | None:
    """How far every model is from gold on the forgotten faces; None where there is nothing to compare."""
    if not (forgotten := _against_gold(results)):
        return None

    def row(name):
        cells = []
        for axis in forgotten:
            mine, gold = (cell(results, model, axis.split, axis.task, "probability") for model in (name, "gold"))
            more, (one, other) = mine["mean"] - gold["mean"], (_items(results, m, axis) for m in (name, "gold"))
            where = "within" if gold["low"] <= mine["mean"] <= gold["high"] else "above" if more > 0 else "below"
            cells += [f"{100 * more:+.1f}, {where}", f"{metrics.ks(one, other):.2f}", f"{metrics.js(one, other):.2f}"]
        return [name, *cells]

    head = [title for a in forgotten for title in (f"{a.title}: p minus gold's", f"{a.title}: KS", f"{a.title}: JS")]
    return [["Model", *head], *(row(name) for name in results if name != "gold")]


def quality_table(results: Results) -> Table | None:
    """Model utility, and where gold is there forget quality, of every model; None where neither was measured.

    Forget quality is of truth ratios on axes where there are such, else of p(right answer); the head says which.
    """
    told = dict.fromkeys(_against_gold(results), "probability") | dict.fromkeys(
        _against_gold(results, "truth_share"), "truth_share"
    )
    useful = {name: quality.utility(results[name]["results"]) for name in results}
    known = None not in useful.values()
    if not told and not known:
        return None

    def row(name):
        pairs = [[_items(results, model, a, metric) for model in (name, "gold")] for a, metric in told.items()]
        alike = ["–" if name == "gold" else p_value(quality.forget_quality(*pair)) for pair in pairs]
        return [*alike, _percent(useful[name])] if known else alike

    of = {"probability": "p(right answer)", "truth_share": "truth ratio"}
    head = [f"Forget quality by {of[metric]}, {axis.title} ↑" for axis, metric in told.items()]
    head += ["Model utility ↑"] * known
    return [["Model", *head], *([name, *row(name)] for name in results)]


def _percent(value: dict[str, float]) -> str:
    return interval(value, METRICS["probability"]) if "low" in value else f"{100 * value['mean']:.1f}"


def p_value(p: float) -> str:
    """A p-value as tables have it.

    >>> p_value(0.4321), p_value(1.2e-5)
    ('0.43', '1e-05')
    """
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def mask_table(results: Results) -> Table:
    head = ["Method", "Leaf group", "Entries", "Mask density", "Moved outside (0 is right)", "Moved inside"]
    rows = [
        [name, group, f"{int(g['total']):,}", f"{100 * g['density']:.1f} %", f"{g['outside']:,}", f"{g['inside']:,}"]
        for name, value in results.items()
        for group, g in value["mask_proof"].items()
    ]
    return [head, *rows]


def cost_table(workdir: pathlib.Path) -> Table:
    costs, folder = {}, workdir / "stages"
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        cost = read_object(path, "a stage record", {"cost?": COST}).get("cost")
        if cost and name != "report":
            costs[name] = cost
    places = [place for place in ("host", "device") if any(_peak(place) in cost for cost in costs.values())]
    rows = [
        [name, f"{cost['seconds']:.1f}", *(_gib(cost.get(_peak(place))) for place in places)]
        for name, cost in costs.items()
    ]
    total = sum(cost["seconds"] for cost in costs.values())
    head = ["Stage", "Seconds", *(f"Peak {place} memory so far, GiB" for place in places)]
    return [head, *rows, ["all", f"{total:.0f}", *("" for _ in places)]]


def _peak(place: str) -> str:
    return f"peak_{place}_bytes_so_far"


def _gib(count: float | None) -> str:
    return "–" if count is None else f"{count / 2**30:.2f}"


def markdown(table: Table) -> str:
    head, *rows = table
    lines = [f"| {' | '.join(head)} |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def columns(table: Table, kept: list[int]) -> Table:
    """The first column and those of ``kept`` places."""
    return [[row[i] for i in (0, *kept)] for row in table]


def markup(table: Table, label: str, dots: dict[str, str]) -> str:
    """As HTML: a region of that label, which scrolls; a row has the class and, of ``dots``, the mark of its model."""

    def shown(text):
        value, _, more = html.escape(text).partition(" · ")
        value = re.sub(
            r"( [↑↓])$| (\[.*\])$", lambda m: f"&nbsp;{m[1].strip()}" if m[1] else f" <small>{m[2]}</small>", value
        )
        return value + (f"<br><small>{more}</small>" if more else "")

    def cells(row):
        name = f'<th scope="row">{dots.get(row[0], "")}{shown(row[0])}</th>'
        return name + "".join(f"<td>{shown(cell)}</td>" for cell in row[1:])

    head, *rows = table
    top = "".join(f'<th scope="col">{shown(title)}</th>' for title in head)
    body = "".join(f'<tr class="{family(row[0])}">{cells(row)}</tr>' for row in rows)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(label)}">'
    return f"{region}<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
