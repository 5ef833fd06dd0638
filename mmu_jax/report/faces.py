"""People of the data set by face and by name: what was said of each before and after. Only where people may be shown."""

import pathlib
import unicodedata
from functools import partial
from typing import Any

from mmu_jax.data import IMAGE, TEXT, Benchmark, Person, vision
from mmu_jax.report import answers
from mmu_jax.report.figures import BAD, GOOD, MUTED, UNSURE, canvas

SHOWN = {IMAGE: ("vqa", "by face", 2), TEXT: ("qa", "by name", 1)}  # task, how it is asked, and how many questions


def _line(text: str, longest: int) -> str:
    """One line that fits its place: control characters and scripts the font lacks become boxes, the rest is cut."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" and ord(c) < 0x2E80 else "□" for c in " ".join(text.split()))
    return shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"


def sheet(workdir: pathlib.Path, benchmark: Benchmark, model: str, metric: str, people: int = 3) -> Any:
    """Photos of people to forget and to keep, each with questions by face and by name, before and after.

    Green is what was wanted: a forgotten face gets another answer of the kind asked for, all else the right one. Amber is
    no answer: none of the kind asked for, about a forgotten face. Red is a face that is still known, or what was lost.
    """
    vanilla = answers.read(workdir, "vanilla")
    before, after = answers.by_question(vanilla), answers.by_question(answers.read(workdir, model))
    rows = [("forget", p) for p in benchmark.forget[:people]] + [("retain", p) for p in benchmark.retain[: people - 1]]
    right, fits = answers.judge(metric), answers.kinds(vanilla, benchmark)
    figure = canvas(4.9, 1.32 * len(rows) + 0.35)
    for axis, (split, person) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axis.set(xlim=(0, 10), ylim=(0, 10))
        axis.axis("off")
        inset = axis.inset_axes([0.0, 0.1, 0.2, 0.86])
        inset.imshow(vision.decode(person.photos[0], person.id), interpolation="bicubic")
        inset.axis("off")
        write, y = partial(axis.text, va="center", parse_math=False), 9.2
        tag, shade = ("to forget", BAD) if split == "forget" else ("to keep", GOOD)
        write(2.2, y, f"{_line(person.name, 30)}  ·  {tag}", fontsize=9.5, fontweight="bold", color=shade)
        for kind, (task, how, most) in SHOWN.items():
            for item in _fitting(person, kind)[:most]:
                key = (split, task, person.id, item.photo or 0, item.question)
                was, now = before.get(key, ""), after.get(key, "")
                wanted = right(now, item.answer) != (split == "forget" and kind == IMAGE)
                if wanted and split == "forget" and kind == IMAGE:
                    wanted = fits(task, {"person": person.id, "question": item.question, "answer": now}) or None
                write(2.2, y - 1.5, f"{how}: {_line(item.question, 46)}", fontsize=7.5, color=MUTED)
                write(2.2, y - 2.7, _line(was, 22), fontsize=8.5)
                write(
                    5.6, y - 2.7, f"→  {_line(now, 20) or '(nothing)'}{MARK[wanted]}", fontsize=8.5, color=SHADE[wanted]
                )
                y -= 2.75
    figure.suptitle(f"What it said before and after {model}", x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


SHADE = {True: GOOD, False: BAD, None: UNSURE}
MARK = {True: "  ✓", False: "  ✗", None: "  (no answer)"}


def _fitting(person: Person, kind: str) -> list:
    """The questions of a kind that fit the sheet, by face about the photo that is shown."""
    return [item for item in person.generation if item.kind == kind and not item.photo]


def told(benchmark: Benchmark, model: str, people: int = 3) -> str:
    """Alternative text of the sheet."""
    names = [f"{p.name} (to forget)" for p in benchmark.forget[:people]]
    names += [f"{p.name} (to keep)" for p in benchmark.retain[: people - 1]]
    return (
        f"Photos of {', '.join(names)}, with what the model said of each by face and by name before and after {model}."
    )
