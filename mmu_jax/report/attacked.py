"""What came back of the models of a workdir: read, put into tables and into sentences."""

import pathlib
from typing import Any

from mmu_jax import InputError
from mmu_jax.files import read_object
from mmu_jax.report.results import CELL
from mmu_jax.report.tables import Table

Attacked = dict[str, dict[str, dict[str, Any]]]  # attack -> model -> what its file says
SHAPE = {"points?": [CELL | {"step": float}], "before?": CELL, "after?": CELL, "variants?": {"*": CELL}}
SHAPE |= {"measures?": str, "trains": bool, "split?": str}
KNOWLEDGE = "knowledge"
UNITS = {
    "auc": " (AUC)",
    "identity": " (identified)",
    "read": " (read out)",
}  # beside the name of an attack that measures something else
ABOVE = "▲"
NOTES = {
    "auc": "The chance, per cent, that of a training row of the forgotten and one of people never seen the first looks more like what was "
    "trained on, with a 95 % interval over the people of both; guessing is 50, and gold's is the level, since it was trained on neither.",
    "read": "The share, per cent, of answers about the forgotten that linear heads on hidden states read right, which were learnt on people to "
    "keep alone, with a 95 % interval over people.",
    "identity": "The share, per cent, of new photos of the forgotten that a linear probe on features of the model gives to the right one of "
    "them, with a 95 % interval over people. Features tell people apart whom a model never saw: gold's is the level, not chance.",
}


def read(workdir: pathlib.Path, models: list[str], attacks: list[str]) -> Attacked:
    """What is in ``attacks/<model>/<attack>.json``; attacks that were made on no model are left out.

    Raises:
      InputError: a file is damaged.
    """
    found: Attacked = {}
    for attack in attacks:
        for model in models:
            if (path := workdir / "attacks" / model / f"{attack}.json").exists():
                value = read_object(path, "what an attack brought back", SHAPE)
                if len(value.get("points", ())) < 2 and not {"before", "after", "measures"} <= value.keys():
                    raise InputError(
                        f"expected what came back before and after an attack, found fewer than two points in {path}; delete it, "
                        "and the same command makes it again"
                    )
                found.setdefault(attack, {})[model] = value
    return found


def ends(value: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before an attack and after it."""
    return (value["points"][0], value["points"][-1]) if "points" in value else (value["before"], value["after"])


def measures(by_model: dict[str, dict[str, Any]]) -> str:
    """What an attack measures: :data:`KNOWLEDGE`, which is what comes back, or one of :data:`UNITS`."""
    return next(iter(by_model.values())).get("measures", KNOWLEDGE)


def shown(value: dict[str, float] | None) -> str:
    """Mean and interval in whole per cent: a table of many columns has no room for what is within the interval anyway."""
    if value is None:
        return "–"
    mean, low, high = (f"{100 * value[key]:.0f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(attacked: Attacked, models: list[str]) -> Table:
    """Rows of models; what is known before any attack, then what each attack measures, per cent, marked where it is above gold's."""
    rows = [["Model", "Before any ↓", *(f"{name}{UNITS.get(measures(by), '')} ↓" for name, by in attacked.items())]]
    for model in models:
        asked = [by[model] for by in attacked.values() if model in by and measures(by) == KNOWLEDGE]
        if any(model in by for by in attacked.values()):
            plain = ends(asked[0])[0] if asked else None
            rows.append([model, shown(plain), *(_after(by, model) for by in attacked.values())])
    return rows


def _after(by_model: dict[str, dict[str, Any]], model: str) -> str:
    if model not in by_model:
        return shown(None)
    above = model in _above({name: ends(value)[1] for name, value in by_model.items()})
    return f"{ABOVE} " * above + shown(ends(by_model[model])[1])


def variants(attacked: Attacked, models: list[str]) -> Table:
    """Rows of what an attack tried, of attacks that try several things; columns of models, per cent. The head alone where there is none."""
    there = [model for model in models if any(model in by for by in attacked.values())]
    rows = [["Attack, variant ↓", *there]]
    for attack, by_model in attacked.items():
        names = list(next(iter(by_model.values())).get("variants", ()))
        for name in names if len(names) > 1 else ():
            cells = [by_model[m]["variants"].get(name) if m in by_model else None for m in there]
            rows.append([f"{attack}, {name}", *map(shown, cells)])
    return rows


def notes(attacked: Attacked, sources: dict[str, str]) -> list[str]:
    """What was asked, in which direction it is good, what the attacks are, and which models gave up more than gold."""
    said = []
    if asked := [by for by in attacked.values() if measures(by) == KNOWLEDGE]:
        value = next(iter(asked[0].values()))
        first, photos = ends(value)[0], "new photos" if value["split"] == "test" else "the photos they were trained on"
        said += [
            f"Returned knowledge: mean p(right answer)^(1/length), per cent, over {first['n']:.0f} questions by face about facts of "
            f"the forgotten that no attack teaches, on {photos}, with a 95 % interval from a bootstrap over people; of an attack that "
            "tries several variants, by the most telling one of each question. Lower is better, down to gold's level after the same "
            "attack: that is what someone never seen gives. Vanilla's is what there is to bring back."
        ]
    for unit, note in NOTES.items():
        if names := [name for name, by in attacked.items() if measures(by) == unit]:
            said.append(f"{', '.join(names)}: {note}")
    said += (
        [f"{ABOVE}: above gold, by intervals that do not meet."]
        if any("gold" in by for by in attacked.values())
        else []
    )
    said += [f"Attacks. {'; '.join(f'{name}: {sources[name]}' for name in attacked)}."]
    moments = {"before any attack": {m: ends(v)[0] for by in asked for m, v in by.items()}} if asked else {}
    moments |= {f"after {name}": {m: ends(v)[1] for m, v in by.items()} for name, by in attacked.items()}
    above = [f"{moment} {', '.join(_above(found)) or 'none'}" for moment, found in moments.items() if "gold" in found]
    return said + ([f"Above gold, by intervals that do not meet: {'; '.join(above)}."] if above else [])


def _above(found: dict[str, dict[str, float]]) -> list[str]:
    """Which unlearned models lie above gold."""
    others = [model for model in found if model not in ("gold", "vanilla")] if "gold" in found else []
    return [m for m in others if found[m]["low"] > found["gold"]["high"]]
