"""What came back of the models of a workdir: read, put into a table and into sentences."""

import pathlib
from typing import Any

from mmu_jax import InputError
from mmu_jax.files import read_object
from mmu_jax.metrics import METRICS
from mmu_jax.report.results import CELL
from mmu_jax.report.tables import Table, interval

Attacked = dict[str, dict[str, dict[str, Any]]]  # attack -> model -> what its file says
SHAPE = {"points": [CELL | {"step": float}], "trains": bool, "split": str}
ASKED = METRICS["probability"]


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
                if len(value["points"]) < 2:
                    raise InputError(
                        f"expected what came back before and after an attack, found fewer than two points in {path}; delete it, "
                        "and the same command makes it again"
                    )
                found.setdefault(attack, {})[model] = value
    return found


def table(attacked: Attacked, models: list[str]) -> Table:
    """Rows of models; before any attack, then after each, with its interval and the difference that it made, per cent."""
    rows = [["Model", "Before any ↓", *(f"After {attack} ↓" for attack in attacked)]]
    for model in models:
        of_model = [by_model.get(model) for by_model in attacked.values()]
        if before := next((value["points"][0] for value in of_model if value), None):
            rows.append([model, interval(before, ASKED), *map(_after, of_model)])
    return rows


def _after(value: dict[str, Any] | None) -> str:
    if value is None:
        return interval(None, ASKED)
    first, last = value["points"][0], value["points"][-1]
    return f"{interval(last, ASKED)} · {ASKED.scale * (last['mean'] - first['mean']):+.1f}"


def notes(attacked: Attacked, sources: dict[str, str]) -> list[str]:
    """What was asked, in which direction it is good, what the attacks are, and which models gave up more than gold."""
    value = next(iter(next(iter(attacked.values())).values()))
    first, photos = value["points"][0], "new photos" if value["split"] == "test" else "the photos they were trained on"
    said = [
        f"Returned knowledge: mean p(right answer)^(1/length), per cent, over {first['n']:.0f} questions by face about facts of "
        f"the forgotten that no attack teaches, on {photos}, with a 95 % interval from a bootstrap over people. Lower is "
        "better, down to gold's level after the same attack: that is what someone never seen gives. Vanilla's is what there is "
        "to bring back."
    ]
    said += [f"Attacks. {'; '.join(f'{name}: {sources[name]}' for name in attacked)}."]
    moments = {"before any attack": ({m: v["points"][0] for by in attacked.values() for m, v in by.items()})}
    moments |= {f"after {name}": {m: v["points"][-1] for m, v in by.items()} for name, by in attacked.items()}
    above = [f"{moment} {_above(points)}" for moment, points in moments.items() if "gold" in points]
    return said + ([f"Above gold, by intervals that do not meet: {'; '.join(above)}."] if above else [])


def _above(points: dict[str, dict[str, float]]) -> str:
    """Which unlearned models lie above gold."""
    others = [model for model in points if model not in ("gold", "vanilla")]
    return ", ".join(m for m in others if points[m]["low"] > points["gold"]["high"]) or "none"
