"""The report as a person reads it: sections in order, written as Markdown and as one self-contained page."""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mmu_jax.data import Benchmark
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS
from mmu_jax.report import attacked, figures, general, tables
from mmu_jax.report.results import FLAGS, Results, axes, cell, headline, judged_by, read, verdict

FRONT = (
    "Every axis against what is left of the forgotten, by the probability of the right answer; crosses are 95 % intervals{}. Where methods "
    "end at one level, they differ in height alone: in what it cost."
)
BAND = ", the grey band is gold's: what was never taught is neither to be exceeded nor undercut"
DISTANCE = (
    "Probability of the right answers about the forgotten, in points above gold's or below it, and whether that is within gold's 95 % "
    "interval: above is forgotten too little, below too much. KS and JS are distances between the distributions of the items' "
    "probabilities, from 0 (as gold) to 1; JS in bins of a tenth."
)
PROOF = (
    "Counted on device in every masked step. With LoRA it is the merged update that is counted, and the mask is a factor of "
    "it: nothing can move outside, and what moved inside shows that it acts."
)
LIMITS = (
    "A model that no longer answers has not been shown to hold nothing: forgetting is measured by behaviour. Intervals come "
    "from {} people to forget: they are as wide as that is few."
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a section: ``kind`` is ``'lead'`` or ``'note'`` (a paragraph), ``'table'``, ``'figure'`` or ``'fold'``."""

    kind: str
    content: Any
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block]


def _notes(*texts: str) -> list[Block]:
    return [Block("note", text) for text in texts]


def _chance(results: Results, metric: str) -> str:
    """What guessing gives, and what not knowing a face looks like."""
    asked = {axis.title: cell(results, "vanilla", axis.split, axis.task, "mcq") for axis in axes(results)}
    chances = {title: f"{100 * mcq['chance']:.0f}" for title, mcq in asked.items() if mcq}
    alike = len(set(chances.values())) == 1
    shown = next(iter(chances.values())) if alike else ", ".join(f"{t} {value}" for t, value in chances.items())
    said = f"Chance in MCQ: {shown}. " if chances else ""
    if control := cell(results, "vanilla", "unseen", "vqa", metric):
        mcq = tables.interval(cell(results, "vanilla", "unseen", "vqa", "mcq"), METRICS["mcq"])
        said += (
            f"On faces nobody was trained on, vanilla scores {tables.interval(control, METRICS[metric])} {metric} and {mcq} "
            "MCQ: that is what not knowing a face looks like. "
        )
    return said


def _legend(results: Results, metric: str) -> str:
    counts = [
        f"{a.title} {cell(results, 'vanilla', a.split, a.task, judged_by(results, a))['n']}" for a in axes(results)
    ]
    return (
        f"Per cent: {METRICS[metric].name} with a 95 % interval from a bootstrap over people, then MCQ (options ranked by "
        f"likelihood). Arrows point to the good direction. {_chance(results, metric)}Items: {', '.join(counts)}."
    )


def _flags(results: Results) -> str:
    told = sorted({flag for value in results.values() for flag in value["flags"]})
    return "Flags: " + "; ".join(f"{flag}: {FLAGS[flag]}" for flag in told) + "." if told else "No flag was raised."


def _more(results: Results, headlined: str) -> list[Block]:
    """The metrics that the four-way table does not show, where there is anything to show."""
    there = [
        name
        for name in METRICS
        if name not in (headlined, "mcq")
        and any(cell(results, "vanilla", a.split, a.task, name) for a in axes(results))
    ]
    return [
        block
        for name in there
        for block in (
            Block("note", f"{METRICS[name].title}, with 95 % interval."),
            Block("table", tables.one_metric(results, name)),
        )
    ]


def _gold(results: Results) -> list[Section]:
    """How far each model is from gold, and what was paid for it on every axis, where probabilities were asked for."""
    blocks = []
    if (figure := figures.front_figure(results)) is not None:
        blocks += [*_notes(FRONT.format(BAND if "gold" in results else "")), Block("figure", figure, "front")]
    if (table := tables.distance_table(results)) is not None:
        blocks += [*_notes(DISTANCE), Block("table", table)]
    return [Section("Forgetting against every axis", blocks)] if blocks else []


def _attacks(workdir: pathlib.Path, results: Results, sources: dict[str, str]) -> list[Section]:
    """What came back, where attacks were made."""
    models = list(results)
    found = attacked.read(workdir, models, list(sources))
    if not found:
        return []
    lead, *others = attacked.notes(found, sources)
    blocks = [*_notes(lead), Block("table", attacked.table(found, models)), *_notes(*others)]
    if (figure := figures.attacks_figure(found, results)) is not None:
        blocks.append(Block("figure", figure, "attacks"))
    return [Section("Does it come back?", blocks)]


def _general(workdir: pathlib.Path, models: list[str], benchmarks: Sequence[str]) -> list[Section]:
    """What is left of what the models can do besides, where they were asked."""
    if not (asked := general.read(workdir, models, benchmarks)):
        return []
    found = general.differences(asked)
    lead, *others = general.notes(found, asked)
    return [Section("General ability", [*_notes(lead), Block("table", general.table(found, models)), *_notes(*others)])]


def sections(
    workdir: pathlib.Path,
    results: Results,
    benchmark: Benchmark,
    attacks: dict[str, str],
    benchmarks: Sequence[str] = (),
) -> list[Section]:
    """The report, in the order in which it is read."""
    metric, vanilla = headline(results), results["vanilla"]
    about = "; ".join(f"{name}: {METHODS[name].source}" for name in results if name in METHODS)
    made = {"provenance": vanilla["provenance"], "config": vanilla["config"]}
    said = verdict(results)
    drawn = {"density": figures.density_figure(workdir, results), "curves": figures.curves_figure(workdir, results)}
    return [
        Section("", [
            *(Block("note" if i else "lead", line) for i, line in enumerate(said)),
            Block("figure", figures.main_figure(workdir, results, benchmark), "main"),
        ]),
        Section("The four-way table", [
            *_notes(_legend(results, metric)),
            Block("table", tables.four_way(results)),
            *_notes(_flags(results), f"Methods. {about}."),
        ]),
        *_gold(results),
        *_general(workdir, list(results), benchmarks),
        *_attacks(workdir, results, attacks),
        Section("How it went", [Block("figure", figure, name) for name, figure in drawn.items() if figure is not None]),
        Section("Proof that the masks act", [*_notes(PROOF), Block("table", tables.mask_table(results))]),
        Section("More metrics", _more(results, metric)),
        Section("Cost", [Block("table", tables.cost_table(workdir))]),
        Section("What these numbers do not show", _notes(LIMITS.format(len(benchmark.forget)))),
        Section("How it was made", [Block("fold", json.dumps(made, indent=1, sort_keys=True), "Config and versions")]),
    ]  # fmt: skip


def _markdown(block: Block) -> str:
    if block.kind == "figure":
        return f"![{block.name}](figures/{block.name}.png)"
    if block.kind == "table":
        return tables.markdown(block.content)
    return f"```json\n{block.content}\n```" if block.kind == "fold" else block.content


def _html(block: Block) -> dict[str, Any]:
    """A block as the template takes it."""
    from markupsafe import Markup

    shown = Markup(tables.markup(block.content)) if block.kind == "table" else block.content
    return {"kind": block.kind, "name": block.name, "content": shown}


def write(
    workdir: str | pathlib.Path,
    names: list[str],
    benchmark: Benchmark,
    attacks: dict[str, str] | None = None,
    benchmarks: Sequence[str] = (),
) -> None:
    """Writes ``report.md``, a self-contained ``report.html`` and ``figures/*.png`` into the workdir.

    Args:
      names: the models, in the order in which they are told of.
      attacks: name -> what it does, of the attacks that are told of.
      benchmarks: the general benchmarks that are told of.
    Raises:
      InputError: the vanilla model was not evaluated, or a file of the workdir is damaged.
    """
    import jinja2

    workdir = pathlib.Path(workdir)
    found = sections(workdir, read(workdir, names), benchmark, attacks or {}, benchmarks)
    md = ["# Unlearning report"]
    for section in found:
        md += [f"## {section.title}"] if section.title else []
        md += [_markdown(block) for block in section.blocks]
    shown = [Section(s.title, [_html(block) for block in s.blocks]) for s in found]
    for block in (block for section in shown for block in section.blocks if block["kind"] == "figure"):
        block["content"] = figures.png(block["content"], workdir / "figures" / f"{block['name']}.png")
    template = importlib.resources.files("mmu_jax.report").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    (workdir / "report.md").write_text("\n\n".join(md) + "\n")
    (workdir / "report.html").write_text(environment.from_string(template).render(sections=shown))
