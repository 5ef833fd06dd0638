"""What came back of the models of a workdir: read, put into tables and into sentences."""

import pathlib
from typing import Any

from mmu_jax import InputError, membership
from mmu_jax.files import read_object
from mmu_jax.report.results import CELL
from mmu_jax.report.tables import Table

Attacked = dict[str, dict[str, dict[str, Any]]]  # attack -> model -> what its file says
SHAPE = {"points?": [CELL | {"step": float}], "before?": CELL, "after?": CELL, "variants?": {"*": CELL}}
SHAPE |= {"measures?": str, "trains": bool, "split?": str, "left_out?": str}
KNOWLEDGE = "knowledge"
# Beside the name of an attack, by what it measures: the unit, and where it is good.
HEADS = {KNOWLEDGE: " ↓", "auc": " (AUC), like gold's", "identity": " (identified) ↓", "read": " (read out) ↓"}
ABOVE, BELOW = "▲", "▼"  # gold; below it is a fault of an area alone
REFERENCE = "reference"  # the score that is taken against gold
NOTES = {
    "auc": "The chance, per cent, that of a training question about the forgotten and one about people never seen the first looks more like "
    "what was trained on (the area under the ROC curve), with a 95 % interval over the people of both. Gold was trained on neither: its is the "
    "level, near 50, and to be far below it gives them away too. Variant by variant: the members told where 1 % of the others are taken for "
    "one (TPR), and privleak, 0 like gold, below 0 told better. Of fewer than a hundred others none may be taken for one; who was never seen may differ from "
    "the rest by more than that (composite faces, say): gold's value shows by how much.",
    "read": "The share, per cent, of answers about the forgotten that linear heads on hidden states read right, which were learnt on people to "
    "keep alone, with a 95 % interval over people.",
    "identity": "The share, per cent, of new photos of the forgotten that a linear probe on features of the model gives to the right one of "
    "the forgotten and as many or more of the kept, with a 95 % interval over people. Features tell people apart whom a model never saw: gold's is the level, not chance.",
}


def read(workdir: pathlib.Path, models: list[str], attacks: list[str]) -> Attacked:
    """What is in ``attacks/<model>/<attack>.json``; attacks that were made on no model are not in it.

    Raises:
      InputError: a file is damaged.
    """
    found: Attacked = {}
    for attack in attacks:
        for model in models:
            if (path := workdir / "attacks" / model / f"{attack}.json").exists():
                value = read_object(path, "what an attack brought back", SHAPE)
                if "left_out" in value:
                    continue
                if len(value.get("points", ())) < 2 and not {"before", "after", "measures"} <= value.keys():
                    raise InputError(
                        f"expected what came back before and after an attack, found fewer than two points in {path}; delete it, "
                        "and the same command makes it again"
                    )
                found.setdefault(attack, {})[model] = value
    return found


def left_out(workdir: pathlib.Path, models: list[str], attacks: list[str]) -> list[str]:
    """The attacks that were asked for and that the data cannot serve, each with the reason, as sentences."""
    paths = [workdir / "attacks" / model / f"{attack}.json" for attack in attacks for model in models]
    values = [read_object(path, "what an attack brought back", SHAPE) for path in paths if path.exists()]
    return list(dict.fromkeys(f"Left out: {value['left_out']}." for value in values if "left_out" in value))


def ends(value: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before an attack and after it."""
    return (value["points"][0], value["points"][-1]) if "points" in value else (value["before"], value["after"])


def measures(by_model: dict[str, dict[str, Any]]) -> str:
    """What an attack measures: :data:`KNOWLEDGE`, which is what comes back, or another of :data:`HEADS`."""
    return next(iter(by_model.values())).get("measures", KNOWLEDGE)


def shown(value: dict[str, float] | None) -> str:
    """Mean and interval in whole per cent: a table of many columns has no room for what is within the interval anyway."""
    if value is None:
        return "–"
    mean, low, high = (f"{100 * value[key]:.0f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def told(attacked: Attacked, models: list[str]) -> list[tuple[str, list[str], Table]]:
    """What came back, and what is left inside: a label, what was measured in words, and a table, of both that were looked for.

    A table has rows of models and columns of attacks, per cent, marked where a model lies above gold, or an area below it; that of what
    came back also what is known before any.
    """
    came = {name: by for name, by in attacked.items() if measures(by) == KNOWLEDGE}
    left = {name: by for name, by in attacked.items() if name not in came}
    return [
        (label, _measured(part), table(part, models))
        for label, part in (("What came back", came), ("What is left inside", left))
        if part
    ]


def table(attacked: Attacked, models: list[str]) -> Table:
    """Rows of models, columns of attacks that measure the same or are told apart by what they measure."""
    plain = any(measures(by) == KNOWLEDGE for by in attacked.values())
    head = [f"{name}{HEADS[measures(by)]}" for name, by in attacked.items()]
    rows = [["Model", *["Before any ↓"] * plain, *head]]
    for model in models:
        if asked := [by[model] for by in attacked.values() if model in by]:
            before = [shown(ends(asked[0])[0])] * plain
            rows.append([model, *before, *(_after(by, model) for by in attacked.values())])
    return rows


def _after(by_model: dict[str, dict[str, Any]], model: str) -> str:
    if model not in by_model:
        return shown(None)
    mark = f"{ABOVE} " * (model in above(by_model)) + f"{BELOW} " * (model in below(by_model))
    return mark + shown(ends(by_model[model])[1])


def above(by_model: dict[str, dict[str, Any]], end: int = 1) -> list[str]:
    """Which unlearned models lie above gold after an attack, or with ``end`` 0 before it, by intervals that do not meet."""
    if "gold" not in by_model:
        return []
    level = ends(by_model["gold"])[end]["high"]
    return [m for m, v in by_model.items() if m not in ("gold", "vanilla") and ends(v)[end]["low"] > level]


def below(by_model: dict[str, dict[str, Any]]) -> list[str]:
    """Which unlearned models have an area below gold's, by intervals that do not meet: members score worse than people never seen."""
    if "gold" not in by_model or measures(by_model) != "auc":
        return []
    level = ends(by_model["gold"])[1]["low"]
    return [m for m, v in by_model.items() if m not in ("gold", "vanilla") and ends(v)[1]["high"] < level]


def variants(attacked: Attacked, models: list[str]) -> Table:
    """Rows of what an attack tried, of attacks that try several things; columns of models, per cent. The head alone where there is none."""
    there = [model for model in models if any(model in by for by in attacked.values())]
    rows = [["Attack, variant ↓", *there]]
    for attack, by_model in attacked.items():
        names = list(next(iter(by_model.values())).get("variants", ()))
        for name in names if len(names) > 1 else ():
            cells = {m: by_model[m]["variants"].get(name) if m in by_model else None for m in there}
            if name == REFERENCE and "gold" in cells:  # it is its own reference: everybody scores 0
                cells["gold"] = None
            rows.append(
                [f"{attack}, {name}", *(shown(cell) + _scored(cell, cells.get("gold")) for cell in cells.values())]
            )
    return rows


def _scored(cell: dict[str, float] | None, gold: dict[str, float] | None) -> str:
    """What else is told of a score of membership: members told at a low false positive rate, and how far it is from gold's."""
    if cell is None or "tpr" not in cell:
        return ""
    leak = f", privleak {membership.privleak(cell['mean'], gold['mean']):+.0f}" if gold and gold["mean"] < 1 else ""
    return f" · TPR {100 * cell['tpr']:.0f}{leak}"


def _measured(attacked: Attacked) -> list[str]:
    """What the numbers of a table are, and in which direction they are good."""
    said = [f"{', '.join(n for n, by in attacked.items() if measures(by) == unit)}: {note}" for unit, note in NOTES.items()
            if any(measures(by) == unit for by in attacked.values())]  # fmt: skip
    value = next(iter(next(iter(attacked.values())).values()))
    if measures({"": value}) == KNOWLEDGE:
        photos = "new photos" if value["split"] == "test" else "the photos they were trained on"
        said = [
            f"Returned knowledge: mean p(right answer)^(1/length), per cent, over {ends(value)[0]['n']:.0f} questions by face about facts of "
            f"the forgotten that no attack teaches, on {photos}, with a 95 % interval from a bootstrap over people; of an attack that "
            "tries several variants, by the most telling one of each question. Lower is better, down to gold's level after the same "
            "attack: that is what someone never seen gives. Vanilla's is what there is to bring back."
        ]
    return said


def notes(attacked: Attacked, sources: dict[str, str]) -> list[str]:
    """Which models gave up more than gold, and what the attacks are."""
    said, compared = [], any("gold" in by for by in attacked.values())
    if compared:
        came = {m: v for by in attacked.values() if measures(by) == KNOWLEDGE for m, v in by.items()}
        moments = {"before any attack": above(came, 0)} | {f"after {name}": above(by) for name, by in attacked.items()}
        found = "; ".join(f"{moment} {', '.join(who)}" for moment, who in moments.items() if who)
        said = [f"Above gold ({ABOVE}), by intervals that do not meet: {found or 'none, after none of the attacks'}."]
        if under := "; ".join(f"by {name} {', '.join(who)}" for name, by in attacked.items() if (who := below(by))):
            said += [f"Below gold's area ({BELOW}), which gives the forgotten away too: {under}."]
    return [*said, f"Attacks. {'; '.join(f'{name}: {sources[name]}' for name in attacked)}."]
