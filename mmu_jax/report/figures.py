"""Pictures: forget against retain, answers before and after, mask densities, training curves."""

import base64
import io
import pathlib
import unicodedata
from functools import partial
from typing import Any

import numpy as np

from mmu_jax.data import IMAGE, TEXT, Benchmark, Person, vision
from mmu_jax.data.slices import STREAMS
from mmu_jax.files import read_object
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS, exact
from mmu_jax.objectives import LOSSES
from mmu_jax.report.attacked import Attacked
from mmu_jax.report.results import Results, axes, cell, family, headline, of_family, ours

INK, MUTED, GOOD, BAD, ACCENT, AMBER = "#1c2430", "#6b7685", "#1a7f5a", "#b3402e", "#2f5fd0", "#c98a1b"
ANSWER = {"person": str, "photo": float, "question": str, "answer": str}
PHOTOS = {"forget": "known", "test": "new", "retain": "known", "retain_test": "new"}
COLOURS = {"model": MUTED, "control": AMBER, "baseline": BAD, "projected": ACCENT, "masked": "#7a4fb5"}
COLOURS |= {"variant": "#b39bd6", "ablation": AMBER}


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 10, "axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False}
        | {"text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED, "figure.dpi": 110}
    )
    return plt


def canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches, in the style of the report."""
    return _pyplot().figure(figsize=(width, height), layout="constrained")


def colour(name: str) -> str:
    """Of a model: that of its method's family."""
    return COLOURS[family(name)]


def _marks(names: list[str]) -> dict[str, str]:
    """Name -> the marker that tells a model from the others of its colour, the same in every figure."""
    alike = {name: [other for other in names if colour(other) == colour(name)] for name in names}
    marks = {name: "o^Dv<>PXhdp"[others.index(name) % 11] for name, others in alike.items()}
    return marks | {"vanilla": "s", "gold": "*"}


def _shown(results: Results) -> list[str]:
    """What is drawn: of the variants and ablations only the method itself, and beside a mask a random one."""
    kept = of_family(results, "model", "control", "baseline", "projected", "masked")
    return [name for name in results if name in kept or name == ours(results) or _random(name)]


def _random(name: str) -> bool:
    rule = METHODS[name].mask if name in METHODS else None
    return rule is not None and rule.by == "random" and rule.fraction is None


def trade_off(axis: Any, results: Results) -> None:
    """Forgotten faces (left is good) against kept ones (up is good), new photos if asked; 95 % intervals as crosses."""
    metric, points = headline(results), {}
    if not all(cell(results, "vanilla", s, "vqa", metric) for s in ("forget", "retain")):
        metric = "mcq"  # nothing was generated
    forgotten, kept = (
        new if cell(results, "vanilla", new, "vqa", metric) else known
        for new, known in (("test", "forget"), ("retain_test", "retain"))
    )
    for name in _shown(results):
        x, y = (cell(results, name, s, "vqa", metric) for s in (forgotten, kept))
        if not x or not y:
            continue
        _cross(axis, name, x, y)
        points[name] = (100 * x["mean"], 100 * y["mean"])
    said = METRICS[metric].name
    height = 106.0
    for name in sorted(points, key=lambda n: (-points[n][1], -points[n][0])):  # labels in a column, none on another
        height = min(height, points[name][1] + 6)
        axis.plot([points[name][0], 110], [points[name][1], height], color=colour(name), lw=0.5, alpha=0.6, zorder=1)
        axis.text(111, height, name, fontsize=8.5, va="center", color=colour(name))
        height -= 6
    axis.set(xlim=(-4, 160), ylim=(-10, 110), xlabel=f"forgotten faces, {PHOTOS[forgotten]} photos: {said} (%)  ← good")
    axis.set_xticks(range(0, 101, 20))
    axis.set_ylabel(f"kept faces, {PHOTOS[kept]} photos: {said} (%)  good →")
    axis.set_title("Forget against retain", loc="left", fontsize=11, fontweight="bold")


def _cross(axis: Any, name: str, x: dict[str, float], y: dict[str, float], marker: str = "o") -> None:
    """A model as a point with its intervals, in per cent."""
    axis.plot([100 * x["low"], 100 * x["high"]], [100 * y["mean"]] * 2, color=colour(name), lw=1, alpha=0.5)
    axis.plot([100 * x["mean"]] * 2, [100 * y["low"], 100 * y["high"]], color=colour(name), lw=1, alpha=0.5)
    marker, size = {"gold": ("*", 12), "vanilla": ("s", 7)}.get(name, (marker, 7))
    axis.plot(100 * x["mean"], 100 * y["mean"], marker, color=colour(name), ms=size, zorder=3)


def undominated(points: dict[str, tuple[float, float]]) -> list[str]:
    """Of name -> (forgotten, kept) those beside which no other leaves as little and keeps as much, in order of what they leave.

    >>> undominated({"a": (0.1, 0.5), "b": (0.2, 0.9), "c": (0.2, 0.8)})
    ['a', 'b']
    """
    beaten = {
        n for n, (x, y) in points.items() if any(u <= x and v >= y and (u, v) != (x, y) for u, v in points.values())
    }
    return sorted(points.keys() - beaten, key=lambda name: (points[name], name))


def front_figure(results: Results, metric: str = "probability", joined: bool = False) -> Any | None:
    """Every axis against what is left of the forgotten faces, by a metric; None where that was not asked for.

    ``joined``: of all methods, closer to see, and a line joins those that no other beats at both; vanilla is a line.
    """
    asked = [a for a in axes(results) if cell(results, "vanilla", a.split, a.task, metric)]
    left = [a for a in asked if a.task == "vqa" and not a.up]
    others = [a for a in asked if a.up]
    if not left or not others:
        return None
    forgotten, shown = left[-1], list(results) if joined else _shown(results)  # on new photos where there are any
    by = "p" if metric == "probability" else METRICS[metric].name
    marks = _marks(shown)
    width = 2 if len(others) in (2, 4) else min(len(others), 3)
    rows = -(-len(others) // width)
    figure = canvas(4.4 * width, 3.4 * rows + 0.5)
    panels = figure.subplots(rows, width, squeeze=False, sharex=True).ravel()
    for panel, kept in zip(panels, others, strict=False):
        points, most = {}, 0.0
        for name in shown:
            x, y = (cell(results, name, a.split, a.task, metric) for a in (forgotten, kept))
            if not x or not y:
                continue
            if joined and name == "vanilla":
                panel.axhline(100 * y["mean"], color=MUTED, lw=0.8, ls="--", zorder=1)
                continue
            most = max(most, 100 * x["high"])
            _cross(panel, name, x, y, marks[name])
            points |= {name: (100 * x["mean"], 100 * y["mean"])} if name in METHODS else {}
        if joined:
            panel.plot(
                *zip(*(points[n] for n in undominated(points)), strict=True), color=MUTED, lw=1.2, ls=":", zorder=2
            )
        if "gold" in results:
            at = cell(results, "gold", forgotten.split, forgotten.task, metric)
            panel.axvspan(100 * at["low"], 100 * at["high"], color=MUTED, alpha=0.12, lw=0)
        panel.set_title(kept.title, loc="left", fontsize=10.5, fontweight="bold")
        panel.set_ylabel(f"{'p of the right answer' if by == 'p' else by} (%)  good →", fontsize=8.5)
        panel.set_xlabel(f"{forgotten.title}: {by} (%)", fontsize=8.5)
        panel.set_xlim(-2, most + 3 if joined else 102)
        panel.set_ylim(min(panel.get_ylim()[0], 80), 102)  # what is a point apart shall not look far
        panel.xaxis.set_tick_params(labelbottom=True)
    for panel in panels[len(others) :]:
        panel.axis("off")
    marks |= {"vanilla": "--"} if joined else {}
    keys = [panels[0].plot([], [], marks[name], color=colour(name), label=name)[0] for name in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(shown), 6), frameon=False, fontsize=9)
    return figure


def _answers(workdir: pathlib.Path, model: str) -> dict[tuple, dict]:
    path = workdir / "answers" / f"{model}.json"
    table = read_object(path, "answers", {"*": {"*": [ANSWER]}}) if path.exists() else {}
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
    axes, judge = figure.subplots(len(rows), 1), _judge(metric)
    for axis, (split, person) in zip(axes, rows, strict=True):
        axis.set(xlim=(0, 10), ylim=(0, 1))
        axis.axis("off")
        inset = axis.inset_axes([0.0, 0.02, 0.115, 0.96])
        inset.imshow(vision.decode(person.photos[0], person.id), interpolation="bicubic")
        inset.axis("off")
        tag, shade = ("to forget", BAD) if split == "forget" else ("to keep", GOOD)
        write = partial(axis.text, fontsize=8, va="center", parse_math=False)
        write(1.25, 0.92, f"{_line(person.name, 30)}  ·  {tag}", fontsize=9.5, fontweight="bold", color=shade)
        y = 0.68
        for kind, task in ((IMAGE, "vqa"), (TEXT, "qa")):
            for item in _two(person, kind):
                key = (split, task, person.id, item.photo or 0, item.question)
                was, now = before.get(key, {}).get("answer", ""), after.get(key, {}).get("answer", "")
                good = judge(now, item.answer) != (split == "forget" and kind == IMAGE)
                source = "face" if kind == IMAGE else "name"
                write(1.25, y, f"by {source}:", color=MUTED)
                write(2.05, y, _line(item.question, 48))
                write(6.1, y, _line(was, 20), color=MUTED)
                write(7.8, y, "→  " + (_line(now, 24) or "(nothing)"), color=GOOD if good else BAD)
                y -= 0.2
    axes[0].text(6.1, 1.08, "before", fontsize=8, color=MUTED)
    axes[0].text(7.8, 1.08, f"after {model}", fontsize=8, color=MUTED)


def _judge(metric: str) -> Any:
    """``(said, truth) -> `` whether an answer counts as right, as the tables count it."""
    row = METRICS[metric]
    if row.asks != "generation":
        return lambda said, truth: bool(exact(said, truth))
    return lambda said, truth: row.of(said, truth) >= row.right


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
    name = ours(results, "masked", "variant")
    path = workdir / "masks" / f"{name}.json"
    leaves = read_object(path, "densities of a mask", {"layers": {"*": [float]}})["layers"] if path.exists() else {}
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
    axis.set_title(f"Entries the forget step may move, % ({name})", loc="left", fontsize=11, fontweight="bold")
    figure.colorbar(image, shrink=0.6)
    return figure


def curves_figure(workdir: pathlib.Path, results: Results) -> Any:
    """Cross-entropy on forget and retain batches while unlearning."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharex=True)
    panels = dict(zip((STREAMS["forget"], STREAMS["retain"]), axes, strict=True))
    marks = _marks(_shown(results))
    for name in marks:
        path = workdir / "training" / "unlearn" / f"{name}.json"
        if not path.exists():
            continue
        for curve, values in read_object(path, "training curves", {"*": [(float, type(None))]}).items():
            y = np.array([np.nan if v is None else v for v in values])
            stream, _, taken = curve.partition("/")
            loss, part = LOSSES.get(taken), STREAMS.get(stream)
            if loss is None or not loss.sign or part not in panels:  # no cross-entropy of what is shown
                continue
            axis = panels[part]
            y, keep = loss.sign * y, ~np.isnan(y)
            x = np.arange(1, len(y) + 1)[keep] / len(y)
            style = {"lw": 1.4 if name == ours(results) else 0.8, "alpha": 0.9, "color": colour(name)}
            style |= {"marker": marks[name], "ms": 4, "markevery": max(len(x) // 8, 1)}
            of_answers = loss.over == "answers"
            label = name if of_answers else f"{name} (over {loss.over})"
            axis.plot(x, y[keep], "-" if of_answers else "--", label=label, **style)
    for axis, title in zip(
        axes,
        ("forget VQA: cross-entropy of answers (rises)", "retain VQA: cross-entropy of answers (stays low)"),
        strict=True,
    ):
        axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        axis.set_xlabel("part of the run")
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7.5, frameon=False)
    return figure


def attacks_figure(attacked: Attacked, results: Results) -> Any | None:
    """Returned knowledge over the steps of every attack that trains, gold dashed, intervals shaded; None without one."""
    trained = {attack: models for attack, models in attacked.items() if any(v["trains"] for v in models.values())}
    if not trained:
        return None
    plt = _pyplot()
    figure, axes = plt.subplots(
        1, len(trained), figsize=(5.5 * len(trained), 3.6), layout="constrained", sharey=True, squeeze=False
    )
    marks = _marks(_shown(results))
    for axis, (attack, models) in zip(axes[0], trained.items(), strict=True):
        for name in (name for name in marks if name in models):
            value = models[name]
            x = [point["step"] for point in value["points"]]
            mean, low, high = ([100 * point[key] for point in value["points"]] for key in ("mean", "low", "high"))
            style = {"lw": 1.6, "ms": 9 if name == "gold" else 5.5, "marker": marks[name], "color": colour(name)}
            axis.plot(x, mean, "--" if name == "gold" else "-", label=name, **style)
            axis.fill_between(x, low, high, color=colour(name), alpha=0.08, lw=0)
        axis.set_title(f"{attack}: lower is better", loc="left", fontsize=10.5, fontweight="bold")
        axis.set(xlabel="steps of relearning", ylim=(0, 105), xticks=x)
    axes[0][0].set_ylabel("facts of the forgotten it was not\ntaught again: p(right answer) (%)")
    axes[0][-1].legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def png(figure: Any, path: pathlib.Path) -> str:
    """Writes a figure (the same bytes for the same data) and returns it as a data URI."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, facecolor="white", dpi=130)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
