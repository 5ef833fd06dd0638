"""Prints docs/methods.md from the tables METHODS and LOSSES.

python docs/make_methods.py > docs/methods.md
"""

import dataclasses
import html
import re
from collections.abc import Callable

from mmu_jax.methods import METHODS
from mmu_jax.objectives import LOSSES
from mmu_jax.phases import FAMILIES, Method, Phase
from mmu_jax.trainable import states

HEAD = """\
# Methods

<!-- Made by `python docs/make_methods.py > docs/methods.md`; edit mmu_jax/methods.py and objectives.py, not this page. -->

A method is a row of `mmu_jax.methods.METHODS`: the optimizer steps of one iteration, each a sum of losses on streams of
batches, and what may move in them. The loop that runs a row is the same for all. You choose rows with
`config.unlearn.methods`; [Add a method](add-a-method.md) says how to write one.

How to read the tables:

- **Steps** are numbered in the order in which one iteration takes them; `loss(stream)`, or `loss(stream, other)` where row by
  row it takes another stream beside, joined by + where one step takes several, each after its weight where that is not 1. *Spread*: taken only every `len(retain) // len(forget)` iterations, once for each forget batch. *Masked*: only
  entries in the mask move. *Projected*: nothing moves along the directions that carry what is kept, nor any leaf that is no
  linear weight (`mmu_jax.curvature`). *With look-ahead*: a second gradient is taken beside the path. *Not clipped*: the norm of its gradient is not bounded.
- **Mask** is the [rule](api/masks.md#mmu_jax.rules.Rule) by which scores become a mask; what it does not state has the default. The default
  is `1[(F_f + eps) / (F_p + eps) >= tau]`, F the mean of squared per-example gradients: on forget VQA, and on retain VQA
  for the vision side, retain VQA and the text QA of everyone for the language side.
- **Moves** is the pattern of the leaves that train; `W + sin(D)`: bounded, no entry further than 1 from where it was.
- **Needs** is what must stand beside params and batches: *teacher*, the frozen vanilla model; *reference*, its
  log-probability of every answer of the stream.
- **Passes** are over batches in an iteration: forth and back through the model that trains, then forth through the teacher. *n
  spread*: only where a spread step is taken. A reference costs one pass over its streams before the first step.
- **Holds**, beside params, a gradient and activations: *moments*, two numbers for every entry that trains, once for each
  optimizer state; *teacher*, the params once more; *mask*, a byte an entry; *factors*, up to the size of the linear weights.
"""
TITLES = {
    "control": "Controls",
    "baseline": "Baselines",
    "projected": "Projected methods",
    "masked": "Masked methods",
    "variant": "Variants",
    "ablation": "Ablations of the mask",
}
ELSEWHERE = ("phases", "mask", "scope", "bounded", "family", "source", "note")  # in columns of their own
FALLS = {1: "lowered", -1: "raised", 0: "neither"}
LOSSES_HEAD = """\
Equations and papers stand in the docstrings of [`mmu_jax.losses`](api/losses.md) and [`mmu_jax.distillation`](api/losses.md#mmu_jax.distillation). *Cross-entropy* says what a loss does to
the cross-entropy of its stream; a step whose losses all lower it has the learning rate `config.unlearn.retain_rate.<method>`,
unless the row says `one_rate`. A stream is a row of `mmu_jax.data.slices.STREAMS`: photo or text questions, whose they are, and
which answers are taught. *Reads* is what of the model a loss is taken of: the logits that predict answers, all logits, what a decoder
layer says (no layer above it runs), or what images are to the language model (which then does not run at all).
"""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(text: str) -> str:
    """As code; a bar would end the cell of a table, and stars within a tag are Markdown."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text, quote=False).translate({ord(c): f'&#{ord(c)};' for c in '|*_'})}</code>"


def stated(row: object, without: tuple[str, ...] = ()) -> str:
    """The fields of a dataclass that are not its defaults, as keyword arguments."""
    kept = [field for field in dataclasses.fields(row) if field.name not in without]
    fields = [(field.name, getattr(row, field.name), default(field)) for field in kept]
    return ", ".join(f"{name}={value!r}" for name, value, usual in fields if value != usual)


def default(field: dataclasses.Field) -> object:
    """What a field is where a row does not state it."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def linked(source: str) -> str:
    """A source with its arXiv number as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def step(phase: Phase) -> str:
    """One kind of step: losses on streams, and how it is taken."""
    options = {name: ", ".join(f"{k}={v!r}" for k, v in given.items()) for name, given in phase.options.items()}
    taken = [
        f"{phase.weights.get(s, '')} `{n}({', '.join((s, *LOSSES[n].beside, *filter(None, [options.get(n)])))})`".strip()
        for s, n in phase.losses.items()
    ]
    marks = (("spread", phase.spread), ("masked", phase.masked), ("projected", phase.projected))
    how = [word for word, yes in marks if yes]
    how += [f"with look-ahead {phase.lookahead:g}"] * bool(phase.lookahead) + ["not clipped"] * (not phase.clip)
    return " + ".join(taken) + (f" {', '.join(how)}" if how else "")


def steps(method: Method) -> str:
    """The steps of an iteration, numbered where there are several."""
    shown = [step(phase) for phase in method.phases]
    return "<br>".join(f"{i}. {text}" for i, text in enumerate(shown, 1)) if len(shown) > 1 else shown[0]


def mask(method: Method) -> str:
    """The rule of the mask, and what else the row states."""
    others = stated(method, ELSEWHERE)
    rule = "none" if method.mask is None else code(f"Rule({stated(method.mask)})")
    return rule + (f"<br>{code(others)}" if others else "")


def moves(method: Method) -> str:
    """What trains."""
    if method.bounded:
        return f"{code(method.bounded)} as `W + sin(D)`"
    return "all" if method.scope == ".*" else code(method.scope)


def counted(method: Method, of: Callable[[Phase], int]) -> str:
    """A number of every iteration and, where there are any, of those with a spread step."""
    own, spread = (sum(of(phase) for phase in method.phases if phase.spread == rare) for rare in (False, True))
    return " + ".join([f"{own}"] * bool(own or not spread) + [f"{spread} spread"] * bool(spread))


def passes(method: Method) -> str:
    """How often an iteration goes through the models."""
    trained = counted(method, lambda phase: len(phase.streams) * (3 if phase.lookahead else 1))
    taught = counted(method, lambda phase: sum("teacher" in LOSSES[name].needs for name in phase.losses.values()))
    return trained if taught == "0" else f"{trained}, teacher {taught}"


def holds(method: Method) -> str:
    """What is kept on the devices for it."""
    sets = states(method)
    parts = ["moments" if sets == 1 else f"{sets} x moments"]
    parts += ["teacher"] * ("teacher" in method.needs and method.trains().consumes)
    return ", ".join(parts + ["mask"] * (method.mask is not None) + ["factors"] * method.projects)


def told(method: Method) -> str:
    """Source and note."""
    note = f" ({method.note})" if method.note else ""
    return linked(method.source) + note


def needs(row: object) -> str:
    return ", ".join(sorted(row.needs)) or "nothing"


def options(name: str) -> str:
    """The options of a loss with their defaults."""
    return ", ".join(f"`{option}={value!r}`" for option, value in LOSSES[name].options.items()) or "none"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for family in FAMILIES:
        rows = {name: method for name, method in METHODS.items() if method.family == family}
        cells = [
            (code(name), steps(m), mask(m), moves(m), needs(m), passes(m), holds(m), told(m))
            for name, m in rows.items()
        ]
        heads = ("Name", "Steps", "Mask", "Moves", "Needs", "Passes", "Holds", "Source")
        parts += [f"## {TITLES[family]}\n", table(heads, cells), ""]
    rows = [
        (
            f"`{name}`",
            FALLS[loss.sign],
            loss.reads,
            needs(loss),
            options(name),
            ", ".join(f"`{m}`" for m in users(name)) or "none",
        )
        for name, loss in LOSSES.items()
    ]
    parts += ["## Losses\n"]
    parts += [LOSSES_HEAD]
    parts += [table(("Name", "Cross-entropy", "Reads", "Needs", "Options", "Methods"), rows)]
    return "\n".join(parts)


def users(loss: str) -> list[str]:
    """The methods that take a loss."""
    return [name for name, m in METHODS.items() if any(loss in phase.losses.values() for phase in m.phases)]


if __name__ == "__main__":
    print(page())
