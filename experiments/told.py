"""The tables of ``experiments.protocol``: means over pairs, paired differences with nested intervals, where runs landed."""

import pathlib
from typing import Any

import numpy as np

from mmu_jax import files, metrics
from mmu_jax.report.tables import markdown

Pair = tuple[int, int]
SHOWN = (  # column, axis, metric
    ("Forget Test p ↓", "forget_test", "probability"),
    ("Forget Test exact ↓", "forget_test", "exact"),
    ("Retain Test p ↑", "retain_test", "probability"),
    ("Retain Test exact ↑", "retain_test", "exact"),
    ("Retain VQA exact ↑", "retain", "exact"),
    ("Forget QA exact ↑", "forget_qa", "exact"),
    ("Retain QA exact ↑", "retain_qa", "exact"),
)
ATTACKS = (("Relearned, own photos ↓", "relearn_own"), ("Relearned, others' photos ↓", "relearn_benign"))
# Setting -> the method that the others are compared with, and on what.
AGAINST = {
    "none": ("projected", ("retain_test", "probability")),
    "little": ("projected_retain", ("retain_test", "probability")),
    "all": ("projected_retain", ("retain_test", "probability")),
    "text": ("text_own", ("forget_qa", "exact")),
}
TITLES = {
    "none": "Nothing replayed",
    "little": "One in a hundred retain questions replayed",
    "all": "All retain questions replayed",
    "text": "Text under threat: the language side alone, nothing replayed, a fifth of every layer",
}


def line(row: dict[str, Any]) -> None:
    """A run in a line."""
    head = f"seed {row['seed']} group {row['group']} {row['setting']} {row['method']} at {row['rate']:g} / {row['retain_rate']:g}:"
    if not row["axes"]:
        print(head, "diverged", flush=True)
        return
    means = "  ".join(f"{axis} {100 * _mean(row, axis, metric):.1f}" for _, axis, metric in SHOWN)
    print(head, f"{row['iterations']} iterations, {'reached' if row['reached'] else 'NOT reached'};", means, flush=True)


def _mean(row: dict, axis: str, metric: str) -> float:
    return float(np.mean(list(row["axes"][axis][metric].values())))


def _per_cent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f}" if values else "–"


def _row(name: str, rate: str, rows: list[dict], golds: list[dict]) -> list[str]:
    """A method over the pairs on which it ended in numbers."""
    alive = [(row, gold) for row, gold in zip(rows, golds, strict=True) if row["axes"]]
    cells = [_per_cent([_mean(row, axis, metric) for row, _ in alive]) for _, axis, metric in SHOWN]
    items = [(row["axes"]["forget_test"]["items"], gold["axes"]["forget_test"]["items"]) for row, gold in alive]
    cells += [
        f"{np.mean([distance(np.array(a), np.array(b)) for a, b in items]):.2f}"
        for distance in (metrics.ks, metrics.js)
    ]
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


def difference(first: list[dict], second: list[dict], pairs: list[Pair], axis: str, metric: str) -> dict[str, float]:
    """Paired, person by person, with a nested interval."""
    table = {}
    for pair, a, b in zip(pairs, first, second, strict=True):
        if a["axes"] and b["axes"]:
            mine, theirs = a["axes"][axis][metric], b["axes"][axis][metric]
            table[pair] = np.array([mine[person] - theirs[person] for person in mine])
    return metrics.nested(table)


def again(first: list[dict], second: list[dict], pairs: list[Pair], attack: str) -> dict[str, float]:
    """How much more comes back of the first than of the second."""
    table = {}
    for pair, a, b in zip(pairs, first, second, strict=True):
        if "attacks" in a and "attacks" in b:
            mine, theirs = a["attacks"][attack], b["attacks"][attack]
            table[pair] = np.array([mine[person] - theirs[person] for person in mine])
    return metrics.nested(table)


def said(d: dict[str, float]) -> str:
    return f"{100 * d['mean']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}], {d['above']} of {d['pairs']}"


def landed(row: dict, gold: dict) -> bool:
    """Whether the mean on new photos of the forgotten lies in the 95 % interval (over people) of gold's."""
    values = np.array(list(gold["axes"]["forget_test"]["probability"].values()))
    interval = metrics.summary(values, np.arange(len(values)))
    return bool(row["axes"]) and interval["low"] <= _mean(row, "forget_test", "probability") <= interval["high"]


def write(workdir: pathlib.Path, rates: dict, rows: dict, known: dict[Pair, dict]) -> None:
    """``results.md`` and ``results.json`` of all that was measured; the first is printed too."""
    pairs, parts, kept = list(known), [], {}
    golds = [known[pair]["gold"] for pair in pairs]
    head = [
        "Method",
        "Rate",
        *(s[0] for s in SHOWN),
        "KS to gold",
        "JS to gold",
        *(a[0] for a in ATTACKS),
        "Iterations",
        "Level reached",
    ]
    for key, found in rates.items():
        table = [head, *(_row(name, "", [known[p][name] for p in pairs], golds) for name in ("vanilla", "gold"))]
        of = {name: [rows[key, name, pair] for pair in pairs] for name in found}
        table += [_row(name, " / ".join(f"{rate:g}" for rate in found[name]), of[name], golds) for name in found]
        best, (axis, metric) = AGAINST[key]
        axes = [(axis, metric), *((a, m) for _, a, m in SHOWN if (a, m) != (axis, metric))]
        columns = [next(s[0] for s in SHOWN if s[1:] == pair) for pair in axes] + [a[0] for a in ATTACKS]
        others = [name for name in found if name != best]
        against = {name: [difference(of[best], of[name], pairs, *a) for a in axes] for name in others}
        columns = columns if any("attacks" in row for row in of[best]) else columns[: len(axes)]
        for name in others if len(columns) > len(axes) else ():
            against[name] += [again(of[best], of[name], pairs, attack) for _, attack in ATTACKS]
        parts += [
            f"## {TITLES[key]}",
            markdown(table),
            f"{best} minus each, per cent, with a 95 % interval and how many pairs are above 0:",
        ]
        parts += [markdown([["Minus", *columns], *([name, *map(said, against[name])] for name in others)])]
        ends = {name: sum(landed(row, gold) for row, gold in zip(of[name], golds, strict=True)) for name in found}
        parts += [
            "Landed within the interval of gold on new photos: "
            + ", ".join(f"{n} {k} of {len(pairs)}" for n, k in ends.items())
            + "."
        ]
        kept[key] = {"rates": found, "table": table, "minus": dict(zip(others, (dict(zip(columns, against[n], strict=True)) for n in others), strict=True)), "landed": ends}  # fmt: skip
    files.write_json(workdir / "results.json", kept)
    text = "\n\n".join(parts) + "\n"
    (workdir / "results.md").write_text(text)
    print(text, flush=True)
