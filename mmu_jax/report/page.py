"""The report as a person reads it: sections in order, written as Markdown and as one self-contained page."""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mmu_jax.data import Benchmark, Person
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS
from mmu_jax.report import answers, attacked, bars, clear, faces, figures, general, tables, words
from mmu_jax.report.attacked import Attacked
from mmu_jax.report.results import (
    FLAGS,
    Results,
    alike,
    axes,
    cell,
    headline,
    in_order,
    judged_by,
    ours,
    placeless,
    read,
    verdict,
)

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
    "Counted on device in the first two masked steps and every eighth. Leaves of which a mask selects nothing take no part in them where "
    "that is known beforehand: they stand with 0. With LoRA it is the merged update that is counted, and the mask is a factor of it: nothing "
    "can move outside, and what moved inside shows that it acts."
)
ROWS = (
    "Rows: vanilla, the model before; gold, which was never trained on the people to forget; the method that this report "
    "speaks of; then the others by the worst of their columns, best first."
)
NO_ANSWER = (
    "No answer: the share of free answers of which most words occur in no answer to that question about anybody (a town where "
    "an occupation was asked for, a word again and again), with 95 % interval. Lower is better everywhere: gibberish is no "
    "forgetting."
)
FIGURES = ("faces", "trade_off", "change", "front", "density", "curves", "attacks", "main")  # that were ever written
PIXELS = 88  # of an inch of a figure on the page, so that its text is as large as that around it
WIDE = 7.0  # inches: a figure that is wider is scrolled on a small screen, not shrunk


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of a section.

    Attributes:
      kind: ``'lead'`` or ``'note'`` (a paragraph, ``name`` its first words), ``'list'`` (of sentences, behind ``name``),
        ``'table'``, ``'figure'``, ``'row'`` (of figure blocks, side by side where there is room) or ``'fold'`` (JSON, behind
        ``name``).
      content: text, texts, a table, a figure, blocks.
      name: of a figure its file; of a table what a screen reader calls it.
      alt: what a figure shows, in words.
      alike: places of the columns of a table in which its rows do not differ: they are folded away.
    """

    kind: str
    content: Any
    name: str = ""
    alt: str = ""
    alike: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """Blocks under a title, ``folded`` away where only some look."""

    title: str
    blocks: list[Block]
    folded: bool = False


def _notes(*texts: str) -> list[Block]:
    return [Block("note", text) for text in texts]


def _table(results: Results, table: tables.Table, name: str, *metrics: str) -> Block:
    """A table whose columns are the axes; folded are those on which no two models differ by any of ``metrics``."""
    same = alike(results, metrics)
    return Block("table", table, name, alike=tuple(i for i, axis in enumerate(axes(results), 1) if axis in same))


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
    blocks = []
    if (table := tables.no_answer_table(results)) is not None:
        blocks += [*_notes(NO_ANSWER), Block("table", table, "No answer")]
    for names, table in tables.further(results, (headlined, "mcq")):
        first, *others = (METRICS[name].title for name in names)
        told = [f"{first}, with 95 % interval."] + [METRICS[names[0]].note] * bool(METRICS[names[0]].note)
        told += [f"The same, to the digit: {', '.join(others)}."] * bool(others)
        blocks += [*_notes(" ".join(told)), _table(results, table, first, names[0])]
    return blocks


def _gold(results: Results) -> list[Section]:
    """How far each model is from gold, and what was paid for it on every axis, where probabilities were asked for."""
    blocks = []
    if (figure := figures.front_figure(results)) is not None:
        others = [axis for axis in axes(results) if axis.up]
        alt = words.of_front(results, figures.drawn(results), others)
        blocks += [*_notes(FRONT.format(BAND if "gold" in results else "")), Block("figure", figure, "front", alt)]
    if (table := tables.distance_table(results)) is not None:
        blocks += [*_notes(DISTANCE), Block("table", table, "Distance from gold")]
    if (table := tables.quality_table(results)) is not None:
        blocks += [*_notes(words.QUALITY), Block("table", table, "Forget quality and model utility")]
    return [Section("Forgetting against every axis", blocks)] if blocks else []


def _attacks(results: Results, found: Attacked, sources: dict[str, str], left: list[str]) -> list[Section]:
    """What came back, where attacks were made, and which were ``left`` out."""
    if not found:
        return [Section("Does it come back?", _notes(*left))] if left else []
    told = attacked.told(found, list(results))
    blocks = [b for label, notes, table in told for b in (*_notes(*notes), Block("table", table, label))]
    blocks += _notes(*attacked.notes(found, sources), *left)
    if (figure := figures.attacks_figure(found, results)) is not None:
        blocks.append(Block("figure", figure, "attacks", words.of_attacks(found)))
    several = attacked.variants(found, list(results))
    more = [Section("What came back, variant by variant", [Block("table", several, "Variants")], folded=True)]
    return [Section("Does it come back?", blocks), *more[: len(several) - 1]]


def _pictures(workdir: pathlib.Path, results: Results, benchmark: Benchmark, show_people: bool) -> Block:
    """What a reader sees first: people, where they may be shown, the trade-off, and every axis before and after."""
    model, blocks = ours(results) or list(results)[-1], []
    if show_people:
        sheet = faces.sheet(workdir, benchmark, model, headline(results))
        blocks.append(Block("figure", sheet, "faces", faces.told(benchmark, model)))
    if (figure := figures.trade_off_figure(results)) is not None:
        alt = words.of_points(results, figures.drawn(results), *figures.traded(results))
        blocks.append(Block("figure", figure, "trade_off", alt))
    blocks.append(Block("figure", bars.change(results, model), "change", words.of_change(results, model)))
    return Block("row", blocks)


def _made(workdir: pathlib.Path, results: Results) -> list[Block]:
    """The mask and the course of the runs, in pictures."""
    drawn = {
        "density": (
            figures.density_figure(workdir, results),
            "Share of entries of every kind of weight and layer that the mask lets move.",
        ),
        "curves": (figures.curves_figure(workdir, results), words.of_curves(results, figures.drawn(results))),
    }
    return [Block("figure", figure, name, alt) for name, (figure, alt) in drawn.items() if figure is not None]


def _general(workdir: pathlib.Path, models: list[str], benchmarks: Sequence[str]) -> list[Section]:
    """What is left of what the models can do besides, where they were asked."""
    if not (asked := general.read(workdir, models, benchmarks)):
        return []
    found = general.differences(asked)
    lead, *others = general.notes(found, asked)
    table = Block("table", general.table(found, models), "General ability")
    return [Section("General ability", [*_notes(lead), table, *_notes(*others)])]


def sections(
    workdir: pathlib.Path,
    results: Results,
    benchmark: Benchmark,
    attacks: dict[str, str],
    benchmarks: Sequence[str],
    show_people: bool,
) -> list[Section]:
    """The report, in the order in which it is read."""
    metric, vanilla = headline(results), results["vanilla"]
    about = [f"{name}: {METHODS[name].source}" for name in results if name in METHODS]
    made = {"provenance": vanilla["provenance"], "config": placeless(vanilla["config"])}
    found = attacked.read(workdir, list(results), list(attacks))
    four_way = _table(results, tables.four_way(results), "The four-way table", metric, "mcq")
    lead, *others = words.head(results, len(benchmark.forget), found, attacks)
    return [
        Section("", [
            Block("lead", lead[1]),
            *(Block("note", text, label) for label, text in others),
            _pictures(workdir, results, benchmark, show_people),
        ]),
        Section("The four-way table", [
            *_notes(_legend(results, metric), ROWS),
            four_way,
            *_notes(_flags(results)),
            Block("list", verdict(results), "Method against method, column by column"),
            Block("list", about, "What the methods are"),
        ]),
        *_gold(results),
        *(
            Section("CLEAR's own table", [*_notes(*notes), *(Block("table", t, label) for label, t in found)])
            for notes, found in clear.told(results)
        ),
        *_general(workdir, list(results), benchmarks),
        *_attacks(results, found, attacks, attacked.left_out(workdir, list(results), list(attacks))),
        Section("What these numbers do not show", _notes(words.LIMITS.format(_count(benchmark.forget)))),
        Section("How it went", _made(workdir, results)),
        Section("Proof that the masks act", [*_notes(PROOF), Block("table", tables.mask_table(results), "Masks")], folded=True),
        Section("More metrics", _more(results, metric), folded=True),
        Section("Cost", [Block("table", tables.cost_table(workdir), "Cost")], folded=True),
        Section("How it was made", [Block("fold", json.dumps(made, indent=1, sort_keys=True), "Config and versions")]),
    ]  # fmt: skip


def _count(people: Sequence[Person]) -> str:
    return f"{len(people)} people" if len(people) > 1 else "one person, by the questions about them"


# ---- out of sections a page


def _markdown(block: Block) -> str:
    if block.kind == "figure":
        return f"![{block.alt or block.name}](figures/{block.name}.png)"
    if block.kind == "row":
        return "\n\n".join(map(_markdown, block.content))
    if block.kind == "table":
        return tables.markdown(block.content)
    if block.kind == "list":
        return "\n".join([f"{block.name}:", "", *(f"- {text}" for text in block.content)])
    if block.kind == "fold":
        return f"```json\n{block.content}\n```"
    return f"**{block.name}**: {block.content}" if block.name else block.content


def _html(block: Block, folder: pathlib.Path | None, dots: dict[str, str]) -> dict[str, Any]:
    """A block as the template takes it; a figure is written on the way."""
    from markupsafe import Markup

    shown = {"kind": block.kind, "name": block.name, "alt": block.alt, "content": block.content}
    if block.kind == "figure":
        shown["wide"] = block.content.get_figwidth() > WIDE
        shown["width"], shown["height"] = (round(PIXELS * inches) for inches in block.content.get_size_inches())
        shown["content"] = figures.png(block.content, folder / f"{block.name}.png")
    elif block.kind == "row":
        shown["content"] = [_html(inner, folder, dots) for inner in block.content]
    elif block.kind == "table":
        differing = [i for i in range(1, len(block.content[0])) if i not in block.alike]
        parts = {"content": differing, "same": list(block.alike)}
        shown |= {
            key: Markup(tables.markup(tables.columns(block.content, kept), block.name, dots)) if kept else ""
            for key, kept in parts.items()
        }
        shown["titles"] = [block.content[0][i] for i in block.alike]
    return shown


def publish(folder: pathlib.Path, stem: str, title: str, found: list[Section], dots: dict[str, str]) -> None:
    """Writes sections as ``<stem>.md``, as a self-contained ``<stem>.html`` and their figures as ``figures/*.png``.

    A picture that no section has is taken out of ``figures/``: what an earlier report showed may not be shown now.

    Args:
      dots: model -> its mark, as SVG, shown beside its name in tables (``figures.dot``).
    """
    md = [f"# {title}"]
    for section in found:
        md += [f"## {section.title}"] if section.title else []
        md += [_markdown(block) for block in section.blocks]
    for old in FIGURES:
        (folder / "figures" / f"{old}.png").unlink(missing_ok=True)
    (folder / f"{stem}.md").write_text("\n\n".join(md) + "\n", encoding="utf-8")
    (folder / f"{stem}.html").write_text(render(title, found, dots, folder / "figures"), encoding="utf-8")


def render(
    title: str, found: list[Section], dots: dict[str, str] | None = None, folder: pathlib.Path | None = None
) -> str:
    """Sections as one self-contained page; ``folder`` is where figures, if there are any, are written to."""
    import jinja2

    shown = [
        {"title": s.title, "folded": s.folded, "blocks": [_html(block, folder, dots or {}) for block in s.blocks]}
        for s in found
    ]
    template = importlib.resources.files("mmu_jax.report").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(title=title, sections=shown)


def write(
    workdir: str | pathlib.Path,
    names: list[str],
    benchmark: Benchmark,
    attacks: dict[str, str] | None = None,
    benchmarks: Sequence[str] = (),
    *,
    show_people: bool = False,
) -> None:
    """Writes ``report.md``, a self-contained ``report.html`` and ``figures/*.png`` into the workdir.

    Args:
      names: the models, in the order in which they are told of.
      attacks: name -> what it does, of the attacks that are told of.
      benchmarks: the general benchmarks that are told of.
      show_people: whether faces, names and answers are shown; if not, no file that is written holds any.
    Raises:
      InputError: the vanilla model was not evaluated, or a file of the workdir is damaged.
    """
    workdir = pathlib.Path(workdir)
    results = in_order(answers.marked(workdir, read(workdir, names), benchmark))
    found = sections(workdir, results, benchmark, attacks or {}, benchmarks, show_people)
    publish(workdir, "report", "Unlearning report", found, {name: figures.dot(results, name) for name in results})
