"""Before and after a method, axis by axis, in counts."""

import textwrap
from typing import Any

from mmu_jax.metrics import METRICS
from mmu_jax.report.figures import INK, canvas, colour
from mmu_jax.report.results import Axis, Results, axes, cell, headline, judged_by

BEFORE = "#c3cad4"


def change(results: Results, name: str) -> Any:
    """A pair of bars an axis, with 95 % intervals, gold's level as a stroke, and how many answers are right."""
    shown, metric = axes(results)[::-1], headline(results)
    figure = canvas(6.2, 0.56 * len(shown) + 0.9)
    axis = figure.subplots()
    for place, asked in enumerate(shown):
        of = judged_by(results, asked)
        values = {n: cell(results, n, asked.split, asked.task, of) for n in ("vanilla", name, "gold") if n in results}
        for n, at, shade in (("vanilla", place + 0.17, BEFORE), (name, place - 0.17, colour(name))):
            mean, *ends = (100 * values[n][key] for key in ("mean", "low", "high"))
            axis.barh(at, mean, 0.32, color=shade)
            axis.plot(ends, [at, at], color=INK, lw=1, alpha=0.7, clip_on=False)
        if gold := values.get("gold"):
            axis.plot([100 * gold["mean"]] * 2, [place - 0.38, place + 0.38], color=INK, lw=1.6, clip_on=False)
        before, after = (f"{values[n]['mean'] * values[n]['n']:.0f}" for n in ("vanilla", name))
        axis.text(104, place, f"{before} → {after}\nof {values[name]['n']:.0f}", va="center", fontsize=8.5)
    axis.set_yticks(range(len(shown)), [_titled(results, asked) for asked in shown])
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.set(xlim=(0, 100), ylim=(-0.5, len(shown) - 0.5), xlabel=f"{METRICS[metric].name} (%)")
    axis.set_title(f"Before and after {name}", loc="left", fontsize=11, fontweight="bold")
    keys = [axis.barh(0, 0, color=shade, label=n) for n, shade in (("vanilla, before", BEFORE), (name, colour(name)))]
    keys += axis.plot([], [], color=INK, lw=1.6, label="gold, never trained on them") if "gold" in results else []
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _titled(results: Results, axis: Axis) -> str:
    """What an axis is about, in words, and its good direction."""
    about = axis.about.replace("them", "the forgotten") + (" (MCQ)" if judged_by(results, axis) == "mcq" else "")
    return "\n".join(textwrap.wrap(f"{about}\N{NO-BREAK SPACE}{'↑' if axis.up else '↓'}", 24))
