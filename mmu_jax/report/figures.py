"""Pictures: forget against retain, before and after, mask densities, training curves, what comes back."""

import base64
import io
import pathlib
from typing import Any

import numpy as np

from mmu_jax.data.slices import STREAMS
from mmu_jax.files import read_object
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS
from mmu_jax.objectives import LOSSES
from mmu_jax.report.attacked import Attacked
from mmu_jax.report.results import AXES, Axis, Results, axes, cell, family, headline, of_family, ours
from mmu_jax.train_state import WATCHED

INK, MUTED, GOOD, BAD, ACCENT, AMBER = "#1c2430", "#5a6472", "#1a7f5a", "#b3402e", "#2f5fd0", "#c98a1b"
UNSURE = "#946200"  # of an answer that is none
PHOTOS = {"forget": "known", "test": "new", "retain": "known", "retain_test": "new"}
COLOURS = {"model": MUTED, "control": AMBER, "baseline": BAD, "projected": ACCENT, "masked": "#7a4fb5"}
FIXED, SIZES = {"vanilla": "s", "gold": "*"}, {"vanilla": 7, "gold": 12}  # markers
COLOURS |= {"variant": "#b39bd6", "ablation": AMBER}


def canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches, in the style of the report; it is nobody's but the caller's."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {"font.size": 10, "axes.edgecolor": MUTED, "axes.spines.top": False, "axes.spines.right": False}
        | {"text.color": INK, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED}
    )
    return Figure(figsize=(width, height), layout="constrained")


def colour(name: str) -> str:
    """Of a model: that of its method's family."""
    return COLOURS[family(name)]


def marks_of(results: Results) -> dict[str, str]:
    """Name -> the marker of a model, the same in every figure and table."""
    others = [name for name in results if name not in FIXED]
    return FIXED | {name: "o^Dv<>PXhdp"[i % 11] for i, name in enumerate(others)}


def drawn(results: Results) -> list[str]:
    """What is drawn: of the variants and ablations only the method itself, and beside a mask a random one."""
    kept = of_family(results, "model", "control", "baseline", "projected", "masked")
    return [name for name in results if name in kept or name == ours(results) or _random(name)]


def _random(name: str) -> bool:
    rule = METHODS[name].mask if name in METHODS else None
    return rule is not None and rule.by == "random" and rule.fraction is None


def traded(results: Results) -> tuple[Axis, Axis, str]:
    """The two axes of the trade-off, of new photos where these were asked, and the metric they are shown by."""
    metric = headline(results)
    if not all(cell(results, "vanilla", s, "vqa", metric) for s in ("forget", "retain")):
        metric = "mcq"  # nothing was generated
    first, second = (
        new if cell(results, "vanilla", new, "vqa", metric) else known
        for new, known in (("test", "forget"), ("retain_test", "retain"))
    )
    by_split = {axis.split: axis for axis in AXES if axis.task == "vqa"}
    return by_split[first], by_split[second], metric


def trade_off(axis: Any, results: Results) -> None:
    """Forgotten faces (left is good) against kept ones (up is good); 95 % intervals as crosses.

    What was before is far to the right: where it is out of view, a line shows its height.
    """
    from matplotlib.ticker import MaxNLocator

    forgotten, kept, metric = traded(results)
    marks, points = marks_of(results), {}
    for name in drawn(results):
        x, y = (cell(results, name, a.split, "vqa", metric) for a in (forgotten, kept))
        if x and y:
            points[name] = (x, y)
    near = {name: point for name, point in points.items() if name != "vanilla"} or points
    right, bottom = max(100 * x["high"] for x, _ in near.values()), min(100 * y["low"] for _, y in near.values())
    top = max(100 * y["high"] for _, y in points.values())
    wide, high = max(right, 5.0), max(top - bottom, 5.0)
    low, limit = bottom - 0.06 * high, top + 0.14 * high
    axis.set(xlim=(-0.06 * wide, 1.06 * wide), ylim=(low, limit))
    for name in sorted(points, key=lambda name: name == ours(results)):  # on top of what is at the same place
        x, y = points[name]
        if name not in near and 100 * x["mean"] > 1.06 * wide:
            axis.axhline(100 * y["mean"], color=colour(name), lw=1, ls="--", zorder=0)
            said = f"before: {100 * y['mean']:.0f} %, and {100 * x['mean']:.0f} % of the forgotten  →"
            place = (0.99, top + 0.09 * high)
            axis.text(*place, said, transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)
        _cross(axis, name, x, y, marks[name], SIZES.get(name, 5.5 if name == ours(results) else 8.5))
    named = sorted(near, key=lambda n: (-points[n][1]["mean"], -points[n][0]["mean"]))
    places = _apart([100 * points[n][1]["mean"] for n in named], 0.062 * high, low, limit)
    for name, place in zip(named, places, strict=True):
        line = {"arrowstyle": "-", "color": colour(name), "lw": 0.8, "ls": ":"}
        at, where = [100 * value["mean"] for value in points[name]], (1.04, place)
        said = {"textcoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 9, "color": colour(name)}
        axis.annotate(name, at, where, arrowprops=line, annotation_clip=False, **said)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    said = METRICS[metric].name
    axis.set(xlabel=f"forgotten faces, {PHOTOS[forgotten.split]} photos: {said} (%)  ← good")
    axis.set_ylabel(f"kept faces, {PHOTOS[kept.split]} photos: {said} (%)  good →")
    axis.set_title("Forget against retain", loc="left", fontsize=11, fontweight="bold")


def trade_off_figure(results: Results) -> Any | None:
    """:func:`trade_off` alone; None where one of its two axes was not asked."""
    first, second, metric = traded(results)
    if not all(cell(results, "vanilla", axis.split, "vqa", metric) for axis in (first, second)):
        return None
    figure = canvas(6.2, 4.6)
    trade_off(figure.subplots(), results)
    return figure


def _apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels, from the top down, as near to where they are ``wanted`` as a ``gap`` between any two lets them be."""
    places: list[float] = []
    for place in wanted:
        places.append(min(place, places[-1] - gap) if places else min(place, high))
    over = low - places[-1] if places else 0.0
    if over > 0:  # up again from the bottom
        for i in reversed(range(len(places))):
            places[i] = max(places[i], low + gap * (len(places) - 1 - i))
    return places


def _cross(axis: Any, name: str, x: dict[str, float], y: dict[str, float], marker: str, size: float) -> None:
    """A model as a point with its intervals, in per cent."""
    axis.plot([100 * x["low"], 100 * x["high"]], [100 * y["mean"]] * 2, color=colour(name), lw=1, alpha=0.5)
    axis.plot([100 * x["mean"]] * 2, [100 * y["low"], 100 * y["high"]], color=colour(name), lw=1, alpha=0.5)
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
    left = [a for a in asked if a.task == "vqa" and not a.up and a.split != "before"]
    others = [a for a in asked if a.up]
    if not left or not others:
        return None
    forgotten, names = left[-1], list(results) if joined else drawn(results)  # on new photos where there are any
    by, marks = "p" if metric == "probability" else METRICS[metric].name, marks_of(results)
    width = 2 if len(others) in (2, 4) else min(len(others), 3)
    rows = -(-len(others) // width)
    figure = canvas(4.4 * width, 3.4 * rows + 0.5)
    panels = figure.subplots(rows, width, squeeze=False, sharex=True).ravel()
    for panel, kept in zip(panels, others, strict=False):
        points, most = {}, 0.0
        for name in names:
            x, y = (cell(results, name, a.split, a.task, metric) for a in (forgotten, kept))
            if not x or not y:
                continue
            if joined and name == "vanilla":
                panel.axhline(100 * y["mean"], color=MUTED, lw=0.8, ls="--", zorder=1)
                continue
            most = max(most, 100 * x["high"])
            _cross(panel, name, x, y, marks[name], SIZES.get(name, 7))
            points |= {name: (100 * x["mean"], 100 * y["mean"])} if name in METHODS else {}
        if joined and points:
            line = zip(*(points[name] for name in undominated(points)), strict=True)
            panel.plot(*line, color=MUTED, lw=1.2, ls=":", zorder=2)
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
    keys = [panels[0].plot([], [], marks[name], color=colour(name), label=name)[0] for name in names]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(names), 5), frameon=False, fontsize=9)
    return figure


def density_figure(workdir: pathlib.Path, results: Results) -> Any | None:
    """Mask density per layer (columns) and kind of weight (rows) of the method's own mask."""
    name = ours(results, "masked", "variant")
    path = workdir / "masks" / f"{name}.json"
    leaves = read_object(path, "densities of a mask", {"layers": {"*": [float]}})["layers"] if path.exists() else {}
    if not leaves:
        return None
    figure = canvas(7.0, 0.32 * len(leaves) + 1.2)
    axis = figure.subplots()
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
    """What is left of the forgotten faces while unlearning, as it was watched, and cross-entropy on retain batches.

    Losses are means over a twentieth of the run. Where nobody watched, the first panel is the cross-entropy on forget batches, of the methods whose loss is one.
    """
    curves = {}
    for name in drawn(results):
        path = workdir / "training" / "unlearn" / f"{name}.json"
        if path.exists():
            found = read_object(path, "training curves", {"*": [(float, type(None))]})
            curves[name] = {key: np.array([np.nan if v is None else v for v in found[key]]) for key in found}
    watched, marks = any(WATCHED in found for found in curves.values()), marks_of(results)
    figure = canvas(11, 3.8)
    panels = dict(zip((STREAMS["forget"], STREAMS["retain"]), figure.subplots(1, 2, sharex=True), strict=True))
    first, second = panels.values()
    for name, found in curves.items():
        for curve, values in found.items():
            stream, _, taken = curve.partition("/")
            loss, panel = LOSSES.get(taken), panels.get(STREAMS.get(stream))
            if curve == WATCHED:
                panel, values, label = first, 100 * values, name
            elif loss is None or not loss.sign or panel is None or (watched and panel is first):
                continue  # no cross-entropy of what is shown
            else:
                values, label = loss.sign * values, name if loss.reads == "answers" else f"{name} (over all tokens)"
            keep = ~np.isnan(values)
            x, y = (
                _smooth(part[keep], 1 if curve == WATCHED else keep.sum() // 20) for part in (_turns(values), values)
            )
            style = {"lw": 1.4 if name == ours(results) else 0.8, "alpha": 0.9, "color": colour(name)}
            style |= {"marker": marks[name], "ms": 4, "markevery": max(len(x) // 8, 1)}
            panel.plot(x, y, "-" if label == name else "--", label=label, **style)
    level = next((v["stopped"]["level"] for v in results.values() if v.get("stopped", {}).get("level")), None)
    if watched and level:
        first.axhline(100 * level, color=INK, lw=1, ls=":", label="where to stop")
    left = (
        "forget VQA: p of the right answers, % (falls)" if watched else "forget VQA: cross-entropy of answers (rises)"
    )
    for axis, title in zip((first, second), (left, "retain VQA: cross-entropy of answers (stays low)"), strict=True):
        axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
        axis.set_xlabel("part of the run; of losses the mean over a twentieth of it")
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7.5, frameon=False)
    return figure


def _turns(values: np.ndarray) -> np.ndarray:
    """Of every iteration the part of the run that is over with it."""
    return np.arange(1, len(values) + 1) / len(values)


def _smooth(values: np.ndarray, over: int) -> np.ndarray:
    """The mean of every ``over`` values that follow one another."""
    return np.convolve(values, np.ones(over) / over, "valid") if over > 1 else values


def attacks_figure(attacked: Attacked, results: Results) -> Any | None:
    """Returned knowledge over the steps of every attack that trains, gold dashed, intervals shaded; None without one."""
    trained = {attack: models for attack, models in attacked.items() if any(v["trains"] for v in models.values())}
    if not trained:
        return None
    figure = canvas(5.5 * len(trained), 3.6)
    axes = figure.subplots(1, len(trained), sharey=True, squeeze=False)
    marks = marks_of(results)
    for axis, (attack, models) in zip(axes[0], trained.items(), strict=True):
        for name in (name for name in drawn(results) if name in models):
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


def squeezed(image: Any) -> bytes:
    """A picture of PIL as a PNG of 256 colours, chosen so that a rare one, that of a mark, stays what it is."""
    from PIL import Image

    few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(buffer := io.BytesIO(), format="png", optimize=True)
    return buffer.getvalue()


def png(figure: Any, path: pathlib.Path) -> str:
    """Writes a figure (the same bytes for the same data) and returns it as a data URI."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    figure.savefig(buffer := io.BytesIO(), format="png", facecolor="white", dpi=150)
    found = squeezed(Image.open(buffer))
    path.write_bytes(found)
    return "data:image/png;base64," + base64.b64encode(found).decode()


PEN = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # codes of a matplotlib path, as SVG has them


def dot(results: Results, name: str) -> str:
    """The mark of a model in its colour, as SVG for a line of text."""
    from matplotlib.markers import MarkerStyle

    marker = MarkerStyle(marks_of(results)[name])
    path = marker.get_path().transformed(marker.get_transform())
    line = ""
    for points, code in path.iter_segments(simplify=False):
        line += PEN[code] + " ".join(f"{x:.3g} {-y:.3g}" for x, y in points.reshape(-1, 2) if PEN[code] != "Z")
    return (
        f'<svg class="dot" viewBox="-.7 -.7 1.4 1.4" aria-hidden="true"><path d="{line}" fill="{colour(name)}"/></svg>'
    )
