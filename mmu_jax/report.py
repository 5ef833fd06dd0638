"""Tables, figures and one page a person reads, made from the JSON files of a workdir."""

import base64
import html
import io
import json
import pathlib
from typing import Any

import numpy as np

from mmu_jax import InputError, methods
from mmu_jax.data import IMAGE, TEXT, Benchmark, Person, vision

COLUMNS = (
    ("Forget VQA", "forget", "vqa", "down"),
    ("Forget Test VQA", "test", "vqa", "down"),
    ("Forget QA", "forget", "qa", "up"),
    ("Retain VQA", "retain", "vqa", "up"),
    ("Retain QA", "retain", "qa", "up"),
)
ARROW = {"down": "↓", "up": "↑"}
METRICS = (
    ("cloze_exact", "Cloze, exact", "{:.1f}", 100),
    ("rouge_l", "ROUGE-L", "{:.1f}", 100),
    ("probability", "p(right answer)", "{:.1f}", 100),
    ("truth_ratio", "Truth ratio", "{:.2f}", 1),
)
FLAGS = {
    "not memorised": "the vanilla model did not know the people to forget",
    "collapsed": "it answers everyone alike, or knows almost nothing of the people to keep",
    "over-unlearned": "the right option is chosen far less often than by chance: it is avoided, and so still known",
    "inert mask": "masked steps moved nothing inside the mask",
    "leaking mask": "masked steps moved entries outside the mask (the public code's shared momentum does)",
}
INK, MUTED, GOOD, BAD, ACCENT = "#1c2430", "#6b7685", "#1a7f5a", "#b3402e", "#2f5fd0"

Results = dict[str, dict[str, Any]]


def read(workdir: pathlib.Path, names: list[str] | None = None) -> Results:
    """The result files by model name, vanilla and gold first."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((workdir / "results").glob("*.json"))}
    if "vanilla" not in found:
        raise InputError(
            f"expected results of the vanilla model in {workdir}, found none; run the evaluate stage first"
        )
    order = names or ["vanilla", "gold", *methods.METHODS]
    return {name: found[name] for name in order if name in found}


def cell(results: Results, model: str, split: str, task: str, metric: str) -> dict[str, float] | None:
    return results[model]["results"].get(split, {}).get(task, {}).get(metric)


def _apart(a: dict[str, float], b: dict[str, float]) -> bool:
    return a["low"] > b["high"] or b["low"] > a["high"]


def verdict(results: Results) -> list[str]:
    """What happened, in sentences that claim nothing the 95 % intervals do not support."""
    if "mmunlearner" not in results:
        return [f"{len(results)} models were evaluated; mmunlearner is not among them."]

    def exact(model, split, task):
        return f"{100 * cell(results, model, split, task, 'exact')['mean']:.0f} %"

    axes = [(title, split, task) for title, split, task, _ in COLUMNS]
    told = "; ".join(f"{t} from {exact('vanilla', s, k)} to {exact('mmunlearner', s, k)}" for t, s, k in axes)
    lines = [f"mmunlearner took exact answers on {told}."]
    for rival in ("ga", "npo", "kl", "grad_diff", "grad_diff_alternate"):
        if rival not in results:
            continue
        better, worse, equal = [], [], []
        for title, split, task, good in COLUMNS:
            ours, theirs = (cell(results, m, split, task, "exact") for m in ("mmunlearner", rival))
            wins = (ours["mean"] > theirs["mean"]) == (good == "up")
            (equal if not _apart(ours, theirs) else better if wins else worse).append(title)
        if not better and not worse:
            lines.append(f"{rival} equals mmunlearner within the 95 % interval on every axis.")
        else:
            parts = [f"better than {rival} on {', '.join(better)}"] if better else []
            parts += [f"worse on {', '.join(worse)}" if better else f"worse than {rival} on {', '.join(worse)}"] * bool(
                worse
            )
            parts += [f"equal within the interval on {', '.join(equal)}"] if equal else []
            lines.append(f"mmunlearner is {', '.join(parts)}.")
    return lines


def summary(workdir: str | pathlib.Path) -> str:
    """The four-way table for a terminal: exact answers / four-option MCQ, per cent."""
    results = read(pathlib.Path(workdir))
    width = max(map(len, results)) + 2
    lines = ["exact / MCQ, %".ljust(width) + "".join(f"{t + ' ' + ARROW[g]:>18}" for t, _, _, g in COLUMNS)]
    for name in results:
        row = name.ljust(width)
        for _, split, task, _ in COLUMNS:
            exact, mcq = (cell(results, name, split, task, m)["mean"] for m in ("exact", "mcq"))
            row += f"{100 * exact:.0f} / {100 * mcq:.0f}".rjust(18)
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
    return ACCENT if name.startswith("mmunlearner") else BAD if name in ("ga", "npo", "kl") else "#c98a1b"


def trade_off(axis: Any, results: Results) -> None:
    """Forget Test VQA (left is good) against retain VQA (up is good), 95 % intervals as crosses."""
    shown = [
        n for n in results if n not in ("mmunlearner_vision", "mmunlearner_language") and not n.startswith("mask_")
    ]
    points = {}
    for name in shown:
        x, y = (cell(results, name, s, "vqa", "exact") for s in ("test", "retain"))
        axis.plot([100 * x["low"], 100 * x["high"]], [100 * y["mean"]] * 2, color=_colour(name), lw=1, alpha=0.5)
        axis.plot([100 * x["mean"]] * 2, [100 * y["low"], 100 * y["high"]], color=_colour(name), lw=1, alpha=0.5)
        marker = "*" if name == "gold" else "s" if name == "vanilla" else "o"
        axis.plot(
            100 * x["mean"], 100 * y["mean"], marker, color=_colour(name), ms=12 if name == "gold" else 7, zorder=3
        )
        points[name] = (100 * x["mean"], 100 * y["mean"])
    height = 106.0
    for name in sorted(points, key=lambda n: (-points[n][1], -points[n][0])):  # labels in a column, none on another
        height = min(height, points[name][1] + 6)
        axis.plot([points[name][0], 110], [points[name][1], height], color=_colour(name), lw=0.5, alpha=0.6, zorder=1)
        axis.text(111, height, name, fontsize=8.5, va="center", color=_colour(name))
        height -= 6
    axis.set(xlim=(-4, 160), ylim=(-10, 110), xlabel="forgotten faces still answered, unseen photos (%)  ← good")
    axis.set_xticks(range(0, 101, 20))
    axis.set_ylabel("kept faces still answered (%)  good →")
    axis.set_title("Forget against retain", loc="left", fontsize=11, fontweight="bold")


def _answers(workdir: pathlib.Path, model: str) -> dict[tuple, dict]:
    path = workdir / "answers" / f"{model}.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    return {
        (split, task, row["person"], row["question"]): row
        for split, tasks in table.items()
        for task, rows in tasks.items()
        for row in rows
    }


def faces_sheet(figure: Any, workdir: pathlib.Path, benchmark: Benchmark, model: str, people: int = 3) -> None:
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
        axis.text(1.25, 0.92, f"{person.name}  ·  {tag}", fontsize=9.5, fontweight="bold", color=colour, va="center")
        y = 0.68
        for kind, task in ((IMAGE, "vqa"), (TEXT, "qa")):
            for item in _two(person, kind):
                key = (split, task, person.id, item.question)
                was, now = before.get(key, {}).get("answer", ""), after.get(key, {}).get("answer", "")
                lost = now.lower() != item.answer.lower()
                good = lost == (split == "forget" and kind == IMAGE)
                source = "face" if kind == IMAGE else "name"
                axis.text(1.25, y, f"by {source}:", fontsize=8, color=MUTED, va="center")
                axis.text(2.05, y, item.question, fontsize=8, va="center")
                axis.text(6.1, y, was, fontsize=8, va="center", color=MUTED)
                axis.text(7.8, y, "→  " + (now or "(nothing)"), fontsize=8, va="center", color=GOOD if good else BAD)
                y -= 0.2
    axes[0].text(6.1, 1.08, "before", fontsize=8, color=MUTED)
    axes[0].text(7.8, 1.08, f"after {model}", fontsize=8, color=MUTED)


def _two(person: Person, kind: str) -> list:
    """One or two questions of a kind that fit the sheet: two by face, two by name."""
    items = [item for item in person.generation if item.kind == kind]
    return items[:2]


def main_figure(workdir: pathlib.Path, results: Results, benchmark: Benchmark) -> Any:
    plt = _pyplot()
    figure = plt.figure(figsize=(13.5, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.45, 1])
    model = "mmunlearner" if "mmunlearner" in results else list(results)[-1]
    faces_sheet(left, workdir, benchmark, model)
    left.suptitle("Answers by face and by name, before and after", x=0.01, ha="left", fontsize=11, fontweight="bold")
    trade_off(right.subplots(), results)
    return figure


def density_figure(workdir: pathlib.Path) -> Any | None:
    """Mask density per layer (columns) and kind of weight (rows) of mmunlearner's mask."""
    path = workdir / "masks" / "mmunlearner.json"
    leaves = json.loads(path.read_text())["layers"] if path.exists() else {}
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
    axis.set_title("Entries the forget step may move, % (mmunlearner)", loc="left", fontsize=11, fontweight="bold")
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
        for curve, values in json.loads(path.read_text()).items():
            y = np.array([np.nan if v is None else v for v in values])
            axis = axes[0] if curve.startswith("forget") else axes[1]
            if curve.endswith("/npo") or curve.endswith("/kl"):
                continue
            y = -y if curve.endswith("ascent") else y
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
    """Rows of models; every cell the exact answers with their interval, then MCQ."""
    table = [["Model", *(f"{title} {ARROW[good]}" for title, _, _, good in COLUMNS), "Flags"]]
    for name, value in results.items():
        row = [name]
        for _, split, task, _ in COLUMNS:
            mcq = cell(results, name, split, task, "mcq")
            row.append(f"{_interval(cell(results, name, split, task, 'exact'))} · MCQ {100 * mcq['mean']:.0f}")
        table.append([*row, ", ".join(value["flags"])])
    return table


def more_metrics(results: Results, metric: str, form: str, scale: float) -> list[list[str]]:
    """One metric over the same axes; a truth ratio is good in the other direction."""
    flip = {"up": "down", "down": "up"} if metric == "truth_ratio" else {"up": "up", "down": "down"}
    head = ["Model", *(f"{title} {ARROW[flip[good]]}" for title, _, _, good in COLUMNS)]
    rows = [
        [name, *(_interval(cell(results, name, s, t, metric), scale, form) for _, s, t, _ in COLUMNS)]
        for name in results
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
        name, cost = path.relative_to(folder).with_suffix("").as_posix(), json.loads(path.read_text()).get("cost")
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
    vanilla = results["vanilla"]
    control = cell(results, "vanilla", "unseen", "vqa", "exact")
    chance = "Chance of four-option MCQ is 25. "
    if control:
        mcq = cell(results, "vanilla", "unseen", "vqa", "mcq")
        chance += (
            f"On faces nobody was trained on, vanilla scores {_interval(control)} exact and {_interval(mcq)} MCQ: "
        )
        chance += "that is what not knowing a face looks like. "
    legend = (
        "Per cent: exact answers with a 95 % interval from a bootstrap over people, then four-option MCQ (options ranked "
        "by likelihood). Arrows point to the good direction. " + chance
    )
    n = {title: cell(results, "vanilla", s, t, "exact")["n"] for title, s, t, _ in COLUMNS}
    legend += "Items: " + ", ".join(f"{title} {count}" for title, count in n.items()) + "."
    told = sorted({flag for value in results.values() for flag in value["flags"]})
    meaning = "Flags: " + "; ".join(f"{flag}: {FLAGS[flag]}" for flag in told) + "." if told else "No flag was raised."
    about = "; ".join(f"{name}: {methods.METHODS[name].source}" for name in results if name in methods.METHODS)
    figures = [("density", density_figure(workdir)), ("curves", curves_figure(workdir, results))]
    more = [block for metric, title, form, scale in METRICS
            for block in (f"{title}, with 95 % interval.", more_metrics(results, metric, form, scale))]  # fmt: skip
    made = {"provenance": vanilla["provenance"], "config": vanilla["config"]}
    return [
        ("", [*verdict(results), ("main", main_figure(workdir, results, benchmark))]),
        ("The four-way table", [legend, four_way(results), meaning, f"Methods. {about}."]),
        ("How it went", [figure for figure in figures if figure[1] is not None]),
        ("Proof that the masks act", ["Counted on device in every masked step.", mask_table(results)]),
        ("More metrics", more),
        ("Cost", [cost_table(workdir)]),
        (
            "What these numbers do not show",
            [
                "A model that no longer answers has not been shown to hold nothing: forgetting is measured by behaviour. "
                "The embedded default is a small model and ten invented lives; intervals over ten people are wide."
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
