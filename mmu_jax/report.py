"""Tables, figures and one page a person reads, made from the JSON files of a workdir."""

import base64
import html
import io
import json
import pathlib
import unicodedata
from functools import partial
from typing import Any

import numpy as np

from mmu_jax import InputError, methods, metrics
from mmu_jax.data import IMAGE, TEXT, Benchmark, Person, vision
from mmu_jax.files import read_object

COLUMNS = (
    ("Forget VQA", "forget", "vqa", "down"),
    ("Forget Test VQA", "test", "vqa", "down"),
    ("Forget QA", "forget", "qa", "up"),
    ("Retain VQA", "retain", "vqa", "up"),
    ("Retain QA", "retain", "qa", "up"),
)
ARROW = {"down": "↓", "up": "↑"}
SAYS = {"exact": "exact answers", "rouge_l": "ROUGE-L"}
METRICS = (
    ("exact", "Exact answers", "{:.1f}", 100),
    ("cloze", "Cloze, the truth is part of the answer", "{:.1f}", 100),
    ("cloze_exact", "Cloze, exact", "{:.1f}", 100),
    ("rouge_l", "ROUGE-L", "{:.1f}", 100),
    ("letter", "MCQ, a letter that stands alone", "{:.1f}", 100),
    ("letter_published", "MCQ, the published letter parser", "{:.1f}", 100),
    ("probability", "p(right answer)", "{:.1f}", 100),
    ("right_share", "Share of the right option among all options", "{:.1f}", 100),
)
FLAGS = {
    "collapsed": "it answers everyone alike, or knows almost nothing of the people to keep",
    "over-unlearned": "the right option is chosen far less often than by chance: it is avoided, and so still known",
    "inert mask": "masked steps moved nothing inside the mask",
    "lost in rounding": "under 1 % of the trained entries changed in the files, whose dtype swallows smaller steps",
    "leaking mask": "masked steps moved entries outside the mask (the public code's shared momentum does)",
}
PROOF = (
    "Counted on device in every masked step. With LoRA it is the merged update that is counted, and the mask is a factor of "
    "it: nothing can move outside, and what moved inside shows that it acts."
)
INK, MUTED, GOOD, BAD, ACCENT = "#1c2430", "#6b7685", "#1a7f5a", "#b3402e", "#2f5fd0"

Results = dict[str, dict[str, Any]]


def read(workdir: pathlib.Path, names: list[str] | None = None) -> Results:
    """The result files by model name, vanilla and gold first."""
    found = {path.stem: read_object(path, "results") for path in sorted((workdir / "results").glob("*.json"))}
    if "vanilla" not in found:
        raise InputError(
            f"expected results of the vanilla model in {workdir}, found none; run the evaluate stage first"
        )
    order = names or ["vanilla", "gold", *methods.METHODS]
    return {name: found[name] for name in order if name in found}


def cell(results: Results, model: str, split: str, task: str, metric: str) -> dict[str, float] | None:
    return results[model]["results"].get(split, {}).get(task, {}).get(metric)


def headline(results: Results) -> str:
    """The metric of generated answers that tables and verdicts speak of: ``config.evaluate.headline``."""
    return results["vanilla"]["config"]["evaluate"]["headline"]


def columns(results: Results) -> list[tuple[str, str, str, str]]:
    """The axes that were evaluated: those of the four-way table, and the celebrities of the published benchmarks."""
    every = (*COLUMNS, ("Celebrity VQA", "celebrity", "vqa", "up"), ("Celebrity QA", "celebrity", "qa", "up"))
    return [c for c in every if cell(results, "vanilla", c[1], c[2], headline(results))]


def _apart(a: dict[str, float], b: dict[str, float]) -> bool:
    return a["low"] > b["high"] or b["low"] > a["high"]


def ours(results: Results) -> str | None:
    """The row that is the method itself: mmunlearner, or it with the mask on one side."""
    return next(
        (name for name in ("mmunlearner", *results) if name in results and name.startswith("mmunlearner")), None
    )


# Two methods go by the name of NPO.
ALSO = {"npo": " (no retain term)", "npo_retain": " (what other libraries call NPO)"}


def verdict(results: Results) -> list[str]:
    """What happened, in sentences that claim nothing the 95 % intervals do not support."""
    mine, metric, axes = ours(results), headline(results), columns(results)
    if mine is None:
        return [f"{len(results)} models were evaluated; mmunlearner is not among them."]

    def score(model, split, task):
        return f"{100 * cell(results, model, split, task, metric)['mean']:.0f} %"

    told = "; ".join(f"{t} from {score('vanilla', s, k)} to {score(mine, s, k)}" for t, s, k, _ in axes)
    lines = [f"{mine} took {SAYS.get(metric, metric)} on {told}."]
    for rival in ("ga", "npo", "npo_retain", "kl", "grad_diff", "grad_diff_alternate"):
        if rival not in results:
            continue
        known = f"{rival}{ALSO.get(rival, '')}"
        better, worse, equal = [], [], []
        for title, split, task, good in axes:
            first, second = (cell(results, m, split, task, metric) for m in (mine, rival))
            wins = (first["mean"] > second["mean"]) == (good == "up")
            (equal if not _apart(first, second) else better if wins else worse).append(title)
        if not better and not worse:
            lines.append(f"{known} equals {mine} within the 95 % interval on every axis.")
        else:
            parts = [f"better than {known} on {', '.join(better)}"] if better else []
            parts += [f"worse on {', '.join(worse)}" if better else f"worse than {known} on {', '.join(worse)}"] * bool(
                worse
            )
            parts += [f"equal within the interval on {', '.join(equal)}"] if equal else []
            lines.append(f"{mine} is {', '.join(parts)}.")
    return lines


def summary(workdir: str | pathlib.Path) -> str:
    """The four-way table for a terminal: the headline metric / MCQ, per cent."""
    results = read(pathlib.Path(workdir))
    metric, axes = headline(results), columns(results)
    width = max(*map(len, results), len(metric) + 8) + 2
    lines = [f"{metric} / MCQ, %".ljust(width) + "".join(f"{t + ' ' + ARROW[g]:>18}" for t, _, _, g in axes)]
    for name in results:
        row = name.ljust(width)
        for _, split, task, _ in axes:
            found = (cell(results, name, split, task, m) for m in (metric, "mcq"))
            row += " / ".join(f"{100 * value['mean']:.0f}" if value else "–" for value in found).rjust(18)
        flags = results[name]["flags"]
        lines.append(row + (f"  {', '.join(flags)}" if flags else ""))
    return "\n".join(["", *lines, "", *verdict(results), ""])


# ---- figures


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 10, "axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False}
        | {"text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED, "figure.dpi": 110}
    )
    return plt


def _colour(name: str) -> str:
    if name in ("vanilla", "gold"):
        return MUTED
    return ACCENT if name.startswith("mmunlearner") else BAD if name in ("ga", "npo", "npo_retain", "kl") else "#c98a1b"


def trade_off(axis: Any, results: Results) -> None:
    """Forget Test VQA (left is good) against retain VQA (up is good), 95 % intervals as crosses."""
    shown = [
        n for n in results if n not in ("mmunlearner_vision", "mmunlearner_language") and not n.startswith("mask_")
    ]
    points, split = {}, "test" if cell(results, "vanilla", "test", "vqa", headline(results)) else "forget"
    for name in shown:
        x, y = (cell(results, name, s, "vqa", headline(results)) for s in (split, "retain"))
        axis.plot([100 * x["low"], 100 * x["high"]], [100 * y["mean"]] * 2, color=_colour(name), lw=1, alpha=0.5)
        axis.plot([100 * x["mean"]] * 2, [100 * y["low"], 100 * y["high"]], color=_colour(name), lw=1, alpha=0.5)
        marker = "*" if name == "gold" else "s" if name == "vanilla" else "o"
        axis.plot(
            100 * x["mean"], 100 * y["mean"], marker, color=_colour(name), ms=12 if name == "gold" else 7, zorder=3
        )
        points[name] = (100 * x["mean"], 100 * y["mean"])
    said = SAYS.get(headline(results), headline(results))
    photos, height = "new photos" if split == "test" else "known photos", 106.0
    for name in sorted(points, key=lambda n: (-points[n][1], -points[n][0])):  # labels in a column, none on another
        height = min(height, points[name][1] + 6)
        axis.plot([points[name][0], 110], [points[name][1], height], color=_colour(name), lw=0.5, alpha=0.6, zorder=1)
        axis.text(111, height, name, fontsize=8.5, va="center", color=_colour(name))
        height -= 6
    axis.set(xlim=(-4, 160), ylim=(-10, 110), xlabel=f"forgotten faces, {photos}: {said} (%)  ← good")
    axis.set_xticks(range(0, 101, 20))
    axis.set_ylabel(f"kept faces: {said} (%)  good →")
    axis.set_title("Forget against retain", loc="left", fontsize=11, fontweight="bold")


def _answers(workdir: pathlib.Path, model: str) -> dict[tuple, dict]:
    path = workdir / "answers" / f"{model}.json"
    table = read_object(path, "answers") if path.exists() else {}
    return {
        (split, task, row["person"], row["photo"], row["question"]): row
        for split, tasks in table.items()
        for task, rows in tasks.items()
        for row in rows
    }


def _line(text: str, longest: int) -> str:
    """One line that fits its place: control characters and scripts the font lacks become boxes, the rest is cut."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" and ord(c) < 0x2E80 else "□" for c in " ".join(text.split()))
    return shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"


def faces_sheet(
    figure: Any, workdir: pathlib.Path, benchmark: Benchmark, model: str, metric: str, people: int = 3
) -> None:
    """Photos of people to forget and to keep, each with a question by face and by name, before and after."""
    before, after = _answers(workdir, "vanilla"), _answers(workdir, model)
    rows = [("forget", p) for p in benchmark.forget[:people]] + [("retain", p) for p in benchmark.retain[: people - 1]]
    axes = figure.subplots(len(rows), 1)
    for axis, (split, person) in zip(axes, rows, strict=True):
        axis.set(xlim=(0, 10), ylim=(0, 1))
        axis.axis("off")
        inset = axis.inset_axes([0.0, 0.02, 0.115, 0.96])
        inset.imshow(vision.decode(person.photos[0], person.id), interpolation="bicubic")
        inset.axis("off")
        tag, colour = ("to forget", BAD) if split == "forget" else ("to keep", GOOD)
        write = partial(axis.text, fontsize=8, va="center", parse_math=False)
        write(1.25, 0.92, f"{_line(person.name, 30)}  ·  {tag}", fontsize=9.5, fontweight="bold", color=colour)
        y = 0.68
        for kind, task in ((IMAGE, "vqa"), (TEXT, "qa")):
            for item in _two(person, kind):
                key = (split, task, person.id, item.photo or 0, item.question)
                was, now = before.get(key, {}).get("answer", ""), after.get(key, {}).get("answer", "")
                # A sentence is kept where half of it is; a name or a place where it is the same.
                lost = (
                    metrics.rouge_l(now, item.answer) < 0.5
                    if metric == "rouge_l"
                    else not metrics.exact(now, item.answer)
                )
                good = lost == (split == "forget" and kind == IMAGE)
                source = "face" if kind == IMAGE else "name"
                write(1.25, y, f"by {source}:", color=MUTED)
                write(2.05, y, _line(item.question, 48))
                write(6.1, y, _line(was, 20), color=MUTED)
                write(7.8, y, "→  " + (_line(now, 24) or "(nothing)"), color=GOOD if good else BAD)
                y -= 0.2
    axes[0].text(6.1, 1.08, "before", fontsize=8, color=MUTED)
    axes[0].text(7.8, 1.08, f"after {model}", fontsize=8, color=MUTED)


def _two(person: Person, kind: str) -> list:
    """One or two questions of a kind that fit the sheet, by face about the photo that is shown."""
    items = [item for item in person.generation if item.kind == kind and not item.photo]
    return items[:2]


def main_figure(workdir: pathlib.Path, results: Results, benchmark: Benchmark) -> Any:
    plt = _pyplot()
    figure = plt.figure(figsize=(13.5, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1])
    model = ours(results) or list(results)[-1]
    faces_sheet(left, workdir, benchmark, model, headline(results))
    left.suptitle("Answers by face and by name, before and after", x=0.01, ha="left", fontsize=11, fontweight="bold")
    trade_off(right.subplots(), results)
    return figure


def density_figure(workdir: pathlib.Path, results: Results) -> Any | None:
    """Mask density per layer (columns) and kind of weight (rows) of the method's own mask."""
    path = workdir / "masks" / f"{ours(results)}.json"
    leaves = read_object(path, "densities of a mask")["layers"] if path.exists() else {}
    if not leaves:
        return None
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 0.32 * len(leaves) + 1.2), layout="constrained")
    wide = max(map(len, leaves.values()))
    grid = np.full((len(leaves), wide), np.nan)
    for row, values in enumerate(leaves.values()):
        grid[row, : len(values)] = np.asarray(values) * 100
    image = axis.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                      color="white" if value > 55 else INK)  # fmt: skip
    names = [n.removesuffix("/weight").replace("/encoder/layers", "").replace("/layers", "") for n in leaves]
    axis.set_yticks(range(len(leaves)), names, fontsize=8)
    axis.set_xticks(range(wide), [f"layer {i}" for i in range(wide)], fontsize=8)
    axis.set_title(f"Entries the forget step may move, % ({ours(results)})", loc="left", fontsize=11, fontweight="bold")
    figure.colorbar(image, shrink=0.6)
    return figure


def curves_figure(workdir: pathlib.Path, results: Results) -> Any:
    """Cross-entropy on forget and retain batches while unlearning."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharex=True)
    for name in results:
        path = workdir / "training" / "unlearn" / f"{name}.json"
        if not path.exists() or name.startswith("mask_") or name in ("mmunlearner_vision", "mmunlearner_language"):
            continue
        for curve, values in read_object(path, "training curves").items():
            y = np.array([np.nan if v is None else v for v in values])
            axis = axes[0] if curve.startswith("forget") else axes[1]
            if curve.endswith("/npo") or curve.endswith("/kl"):
                continue
            y = -y if "/ascent" in curve else y
            keep = ~np.isnan(y)
            x = np.arange(1, len(y) + 1)[keep] / len(y)
            style = {"lw": 2.2 if name == "mmunlearner" else 1.1, "alpha": 0.9}
            axis.plot(x, y[keep], label=name, **style)
    for axis, title in zip(
        axes, ("forget VQA: cross-entropy (rises)", "retain VQA: cross-entropy (stays low)"), strict=True
    ):
        axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        axis.set_xlabel("part of the run")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7.5, frameon=False)
    return figure


def _png(figure: Any, path: pathlib.Path) -> str:
    """Writes a figure (the same bytes for the same data) and returns it as a data URI."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, facecolor="white", dpi=130)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---- tables: lists of rows of strings, the first the head


def _interval(value: dict[str, float] | None, scale: float = 100, form: str = "{:.1f}") -> str:
    if value is None:
        return "–"
    low, high = (form.format(scale * value[k]) for k in ("low", "high"))
    return f"{form.format(scale * value['mean'])} [{low}, {high}]"


def four_way(results: Results) -> list[list[str]]:
    """Rows of models; every cell the headline metric with its interval, then MCQ."""
    axes, metric = columns(results), headline(results)
    table = [["Model", *(f"{title} {ARROW[good]}" for title, _, _, good in axes), "Flags"]]
    for name, value in results.items():
        row = [name]
        for _, split, task, _ in axes:
            mcq = cell(results, name, split, task, "mcq")
            shown = f" · MCQ {100 * mcq['mean']:.0f}" if mcq else ""
            row.append(_interval(cell(results, name, split, task, metric)) + shown)
        table.append([*row, ", ".join(value["flags"])])
    return table


def more_metrics(results: Results, metric: str, form: str, scale: float) -> list[list[str]]:
    """One metric over the same axes: each is higher where more is known, so the arrows are those of the axis."""
    axes = columns(results)
    head = ["Model", *(f"{title} {ARROW[good]}" for title, _, _, good in axes)]
    rows = [
        [name, *(_interval(cell(results, name, s, t, metric), scale, form) for _, s, t, _ in axes)] for name in results
    ]
    return [head, *rows]


def mask_table(results: Results) -> list[list[str]]:
    head = ["Method", "Leaf group", "Entries", "Mask density", "Moved outside (0 is right)", "Moved inside"]
    rows = [
        [name, group, f"{int(g['total']):,}", f"{100 * g['density']:.1f} %", f"{g['outside']:,}", f"{g['inside']:,}"]
        for name, value in results.items()
        for group, g in value["mask_proof"].items()
    ]
    return [head, *rows]


def cost_table(workdir: pathlib.Path) -> list[list[str]]:
    rows = []
    folder = workdir / "stages"
    for path in sorted(folder.rglob("*.json")):
        name, cost = (
            path.relative_to(folder).with_suffix("").as_posix(),
            read_object(path, "a stage record").get("cost"),
        )
        if cost and name != "report":
            rows.append([name, f"{cost['seconds']:.1f}", f"{cost['peak_host_bytes_so_far'] / 2**30:.2f}"])
    total = sum(float(row[1]) for row in rows)
    return [["Stage", "Seconds", "Peak host memory so far, GiB"], *rows, ["all", f"{total:.0f}", ""]]


def markdown_table(table: list[list[str]]) -> str:
    head, *rows = table
    lines = [f"| {' | '.join(head)} |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def html_table(table: list[list[str]]) -> str:
    def cells(row, tag):
        return "".join(f"<{tag}>{html.escape(c).replace(' · ', '<br><small>')}</{tag}>" for c in row)

    head, *rows = table
    body = "".join(f'<tr class="{html.escape(row[0])}">{cells(row, "td")}</tr>' for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


CSS = """
:root{color-scheme:light}body{font:16px/1.55 system-ui,sans-serif;color:#1c2430;background:#fff;margin:0}
main{max-width:1120px;margin:0 auto;padding:40px 24px 80px}h1{font-size:30px;margin:0 0 4px}h2{font-size:20px;margin:44px 0 10px}
p.lead{font-size:18px;margin:10px 0}p.note{color:#6b7685;font-size:14px}img{max-width:100%;display:block;margin:14px 0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;width:100%;font-variant-numeric:tabular-nums}
th{text-align:right;border-bottom:2px solid #1c2430;padding:6px 10px;white-space:nowrap}th:first-child,td:first-child{text-align:left}
td{text-align:right;padding:5px 10px;border-bottom:1px solid #e4e8ee;white-space:nowrap}td small{color:#6b7685}
tr.vanilla td,tr.gold td{color:#6b7685}tr.mmunlearner td{background:#eef3ff;font-weight:600}
td:last-child{white-space:normal}pre{background:#f5f7fa;padding:14px;overflow-x:auto;font-size:12.5px}
summary{cursor:pointer;color:#2f5fd0;margin:8px 0}
"""


def sections(workdir: pathlib.Path, results: Results, benchmark: Benchmark) -> list[tuple[str, list[Any]]]:
    """The report as (title, blocks); a block is a string, a table, or (figure name, figure)."""
    vanilla, metric, axes = results["vanilla"], headline(results), columns(results)
    control = cell(results, "vanilla", "unseen", "vqa", metric)
    asked = {t: cell(results, "vanilla", s, k, "mcq") for t, s, k, _ in axes}
    chances = {title: f"{100 * mcq['chance']:.0f}" for title, mcq in asked.items() if mcq}
    alike = len(set(chances.values())) == 1
    shown = next(iter(chances.values())) if alike else ", ".join(f"{t} {value}" for t, value in chances.items())
    chance = f"Chance in MCQ: {shown}. " if chances else ""
    if control:
        mcq = cell(results, "vanilla", "unseen", "vqa", "mcq")
        chance += (
            f"On faces nobody was trained on, vanilla scores {_interval(control)} {metric} and {_interval(mcq)} MCQ: "
        )
        chance += "that is what not knowing a face looks like. "
    legend = (
        f"Per cent: {SAYS.get(metric, metric)} with a 95 % interval from a bootstrap over people, then MCQ (options ranked "
        "by likelihood). Arrows point to the good direction. " + chance
    )
    n = {title: cell(results, "vanilla", s, t, metric)["n"] for title, s, t, _ in axes}
    legend += "Items: " + ", ".join(f"{title} {count}" for title, count in n.items()) + "."
    told = sorted({flag for value in results.values() for flag in value["flags"]})
    meaning = "Flags: " + "; ".join(f"{flag}: {FLAGS[flag]}" for flag in told) + "." if told else "No flag was raised."
    about = "; ".join(f"{name}: {methods.METHODS[name].source}" for name in results if name in methods.METHODS)
    figures = [("density", density_figure(workdir, results)), ("curves", curves_figure(workdir, results))]
    there = [m for m in METRICS if m[0] != metric and any(cell(results, "vanilla", s, t, m[0]) for _, s, t, _ in axes)]
    more = [block for name, title, form, scale in there
            for block in (f"{title}, with 95 % interval.", more_metrics(results, name, form, scale))]  # fmt: skip
    made = {"provenance": vanilla["provenance"], "config": vanilla["config"]}
    return [
        ("", [*verdict(results), ("main", main_figure(workdir, results, benchmark))]),
        ("The four-way table", [legend, four_way(results), meaning, f"Methods. {about}."]),
        ("How it went", [figure for figure in figures if figure[1] is not None]),
        ("Proof that the masks act", [PROOF, mask_table(results)]),
        ("More metrics", more),
        ("Cost", [cost_table(workdir)]),
        (
            "What these numbers do not show",
            [
                "A model that no longer answers has not been shown to hold nothing: forgetting is measured by behaviour. "
                f"Intervals come from {len(benchmark.forget)} people to forget: they are as wide as that is few."
            ],
        ),
        ("How it was made", [json.dumps(made, indent=1, sort_keys=True)]),
    ]


def write(workdir: str | pathlib.Path, names: list[str], benchmark: Benchmark) -> None:
    """Writes ``report.md``, a self-contained ``report.html`` and ``figures/*.png`` into the workdir."""
    workdir = pathlib.Path(workdir)
    md, page = ["# Unlearning report"], ["<h1>Unlearning report</h1>"]
    for title, blocks in sections(workdir, read(workdir, names), benchmark):
        if title:
            md.append(f"## {title}")
            page.append(f"<h2>{html.escape(title)}</h2>")
        for block in blocks:
            if isinstance(block, tuple):
                uri = _png(block[1], workdir / "figures" / f"{block[0]}.png")
                md.append(f"![{block[0]}](figures/{block[0]}.png)")
                page.append(f'<img alt="{block[0]}" src="{uri}">')
            elif isinstance(block, list):
                md.append(markdown_table(block))
                page.append(html_table(block))
            elif block.startswith("{"):
                md.append(f"```json\n{block}\n```")
                page.append(f"<details><summary>Config and versions</summary><pre>{html.escape(block)}</pre></details>")
            else:
                md.append(block)
                page.append(f'<p class="{"lead" if len(page) == 1 else "note"}">{html.escape(block)}</p>')
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Unlearning report</title><style>{CSS}</style>'
    (workdir / "report.md").write_text("\n\n".join(md) + "\n")
    (workdir / "report.html").write_text(f"{head}<body><main>{''.join(page)}</main></body></html>\n")
