"""The tables of ``experiments.protocol``: means over pairs, paired differences with nested intervals, where runs landed."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmu_jax import files, metrics
from mmu_jax.report import figures
from mmu_jax.report.tables import markdown

Pair = tuple[int, int]
Column = tuple[str, str, str]  # title, axis, metric
COLUMNS: tuple[Column, ...] = (
    ("Forget Test p ↓", "forget_test", "probability"),
    ("Forget Test exact ↓", "forget_test", "exact"),
    ("Retain Test p ↑", "retain_test", "probability"),
    ("Retain Test exact ↑", "retain_test", "exact"),
    ("Retain VQA exact ↑", "retain", "exact"),
    ("Forget QA exact ↑", "forget_qa", "exact"),
    ("Retain QA exact ↑", "retain_qa", "exact"),
    ("Everyday ↑", "everyday", "right"),  # of models that were asked
)
ATTACKS = (("Relearned, own photos ↓", "relearn_own"), ("Relearned, others' photos ↓", "relearn_benign"))
# Setting -> the method that the others are compared with, and the column that decides.
AGAINST = {
    "none": ("projected", COLUMNS[2]),
    "little": ("projected_retain", COLUMNS[2]),
    "all": ("projected_retain", COLUMNS[2]),
    "text": ("text_ranks", COLUMNS[5]),
}
TITLES = {
    "none": "Nothing replayed",
    "little": "One in a hundred retain questions replayed",
    "all": "All retain questions replayed",
    "text": "Text under threat: the language side alone, nothing replayed, a fifth of every layer",
}


def columns(axes: dict[str, Any]) -> list[Column]:
    """The columns of which something was measured, by the ``axes`` of a row."""
    return [column for column in COLUMNS if column[1] in axes]


def head(axes: dict[str, Any]) -> list[str]:
    """The titles of the table of a setting."""
    titles = ["Method", "Rate", *(column[0] for column in columns(axes)), "KS to gold", "JS to gold"]
    return [*titles, *(attack[0] for attack in ATTACKS), "Iterations", "Level reached"]


def _alive(rows: list[dict]) -> dict[str, Any]:
    """The axes of the first row that ended in numbers."""
    return next((row["axes"] for row in rows if row["axes"]), {})


def line(row: dict[str, Any]) -> None:
    """A run in a line."""
    lead = f"seed {row['seed']} group {row['group']} {row['setting']} {row['method']} at {row['rate']:g} / {row['retain_rate']:g}:"
    if not row["axes"]:
        print(lead, "diverged", flush=True)
        return
    means = "  ".join(f"{axis} {100 * _mean(row, axis, metric):.1f}" for _, axis, metric in columns(row["axes"]))
    print(lead, f"{row['iterations']} iterations, {'reached' if row['reached'] else 'NOT reached'};", means, flush=True)


def _mean(row: dict, axis: str, metric: str) -> float:
    return float(np.mean(list(row["axes"][axis][metric].values())))


def _per_cent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f}" if values else "–"


def _row(name: str, rate: str, rows: list[dict], golds: list[dict]) -> list[str]:
    """A method over the pairs on which it ended in numbers."""
    alive = [(row, gold) for row, gold in zip(rows, golds, strict=True) if row["axes"]]
    cells = [_per_cent([_mean(row, axis, metric) for row, _ in alive]) for _, axis, metric in columns(golds[0]["axes"])]
    items = [(row["axes"]["forget_test"]["items"], gold["axes"]["forget_test"]["items"]) for row, gold in alive]
    for distance in (metrics.ks, metrics.js):
        found = [distance(np.array(a), np.array(b)) for a, b in items]
        cells.append(f"{np.mean(found):.2f}" if found else "–")
    cells += [
        _per_cent([float(np.mean(list(row["attacks"][a].values()))) for row, _ in alive if "attacks" in row])
        for _, a in ATTACKS
    ]
    ended = [row["iterations"] for row, _ in alive if "iterations" in row]
    reached = sum(row.get("reached", True) for row, _ in alive)
    return [
        name,
        rate,
        *cells,
        f"{np.median(ended):.0f}" if ended else "–",
        f"{reached} of {len(rows)}" if ended else "–",
    ]


def difference(
    first: list[dict], second: list[dict], pairs: list[Pair], axis: str, metric: str
) -> dict[str, float] | None:
    """Paired, person by person, with a nested interval, over the pairs on which neither diverged; None where there is none.

    Of ``axis`` ``'attacks'`` ``metric`` names one.
    """

    def of(row):
        return row.get("attacks", {}).get(metric) if axis == "attacks" else row["axes"].get(axis, {}).get(metric)

    both = {pair: (of(a), of(b)) for pair, a, b in zip(pairs, first, second, strict=True)}
    table = {pair: np.array([a[person] - b[person] for person in a]) for pair, (a, b) in both.items() if a and b}
    return metrics.nested(table) if table else None


def said(d: dict[str, float] | None) -> str:
    if d is None:
        return "–"
    return f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}], {d['above']} of {d['pairs']}"


def landed(row: dict, gold: dict) -> bool:
    """Whether the mean on new photos of the forgotten lies in the 95 % interval (over people) of gold's."""
    values = np.array(list(gold["axes"]["forget_test"]["probability"].values()))
    interval = metrics.summary(values, np.arange(len(values)))
    return bool(row["axes"]) and interval["low"] <= _mean(row, "forget_test", "probability") <= interval["high"]


def minus(best: list[dict], others: dict[str, list[dict]], pairs: list[Pair], first: Column) -> dict[str, dict]:
    """Other -> column -> difference; the ``first`` column is the one that decides."""
    found = [first, *(column for column in columns(_alive(best)) if column[1:] != first[1:])]
    deep = all("attacks" in row for rows in (best, *others.values()) for row in rows)
    found += [(title, "attacks", attack) for title, attack in ATTACKS] if deep else []
    return {
        name: {title: difference(best, rows, pairs, axis, metric) for title, axis, metric in found}
        for name, rows in others.items()
    }


def told(title: str, best: str, found: dict[str, dict]) -> list[str]:
    """A table of differences."""
    titles = list(next(iter(found.values())))
    rows = [[name, *(said(row[title]) for title in titles)] for name, row in found.items()]
    lead = f"{best} minus each, per cent, with a 95 % interval and how many pairs are above 0{title}:"
    return [lead, markdown([["Minus", *titles], *rows])]


def picture(rows: dict, rates: dict, known: dict[Pair, dict], keys: Sequence[str]) -> Any | None:
    """Retain Test VQA of every method in the settings ``keys``, None where there are none of these.

    Pairs are dots, hollow where a run did not reach the level, their mean a bar.
    """
    keys = [key for key in keys if key in rates]
    if not keys:
        return None
    heights = [len(rates[key]) for key in keys]
    figure = figures.canvas(8.6, 0.34 * sum(heights) + 0.75 * len(keys) + 0.6)
    panels = figure.subplots(len(keys), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    (axis, metric), lowest = COLUMNS[2][1:], 50.0
    for key, panel in zip(keys, panels, strict=True):
        lines = {
            name: 100 * np.mean([_mean(row[name], axis, metric) for row in known.values()])
            for name in ("gold", "vanilla")
        }
        for name, at in lines.items():
            panel.axvline(at, color=figures.MUTED, lw=1, ls="-" if name == "vanilla" else ":", zorder=0)
            side = dict(ha="left", x=at + 0.6) if at == max(lines.values()) else dict(ha="right", x=at - 0.6)
            if key == keys[0]:
                panel.text(
                    y=1.02, s=name, transform=panel.get_xaxis_transform(), fontsize=8, color=figures.MUTED, **side
                )
        for place, name in enumerate(reversed(rates[key])):
            ended = [row for row in (rows[key, name, pair] for pair in known) if row["axes"]]
            values = [100 * _mean(row, axis, metric) for row in ended]
            lowest = min([lowest, *values])
            shade = figures.colour(name.split(" at ")[0])
            for row, value in zip(ended, values, strict=True):
                inside = shade if row["reached"] else "none"
                panel.plot(value, place, "o", mfc=inside, mec=shade, ms=4, alpha=0.4, mew=0 if row["reached"] else 1)
            if values:
                panel.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color=shade, lw=2.5)
            text = _per_cent([_mean(row, *COLUMNS[5][1:]) for row in ended])
            panel.text(103, place, text, va="center", fontsize=9)
        panel.set_yticks(range(len(rates[key])), list(reversed(rates[key])), fontsize=9)
        panel.set(xlim=(lowest - 3, 101), ylim=(-0.6, len(rates[key]) - 0.4))
        panel.set_title(TITLES[key], loc="left", fontsize=10.5, fontweight="bold", pad=14)
    panels[0].text(
        103, 1.02, "Forget QA,\nexact, %", transform=panels[0].get_xaxis_transform(), fontsize=8, color=figures.MUTED
    )
    panels[-1].set_xlabel("kept faces, new photos: probability of the right answer (%), at matched forgetting   good →")
    return figure


def write(workdir: pathlib.Path, rates: dict, rows: dict, known: dict[Pair, dict], drawn: Sequence[str]) -> None:
    """``results.md``, ``results.json`` and, of the settings ``drawn``, ``results.png`` of all that was measured; the first is printed too."""
    pairs, parts, kept = list(known), [], {}
    golds = [known[pair]["gold"] for pair in pairs]
    for key, found in rates.items():
        of = {name: [rows[key, name, pair] for pair in pairs] for name in found}
        table = [
            head(golds[0]["axes"]),
            *(_row(name, "", [known[p][name] for p in pairs], golds) for name in ("vanilla", "gold")),
        ]
        table += [_row(name, found[name], of[name], golds) for name in found]
        best, decides = AGAINST[key]
        rivals = {name: of[name] for name in found if name != best} | {"vanilla": [known[p]["vanilla"] for p in pairs]}
        against = minus(of[best], rivals, pairs, decides)
        ends = {name: sum(map(landed, of[name], golds)) for name in found}
        parts += [f"## {TITLES[key]}", markdown(table), *told("", best, against)]
        shown = ", ".join(f"{name} {count} of {len(pairs)}" for name, count in ends.items())
        parts += [f"Landed within the interval of gold on new photos: {shown}."]
        kept[key] = {"rates": found, "table": table, "minus": against, "landed": ends}
    if {"none", "all"} <= rates.keys():
        mine = [rows["none", "projected", pair] for pair in pairs]
        others = {name: [rows["all", name, pair] for pair in pairs] for name in rates["all"]}
        kept["across"] = minus(mine, others, pairs, AGAINST["none"][1])
        parts += ["## Nothing replayed against all of it"]
        parts += told(" (projected without replay, the others with all retain questions)", "projected", kept["across"])
    files.write_json(workdir / "results.json", kept)
    if (figure := picture(rows, rates, known, drawn)) is not None:
        figures.png(figure, workdir / "results.png")
    text = "\n\n".join(parts) + "\n"
    (workdir / "results.md").write_text(text, encoding="utf-8")
    print(text, flush=True)
