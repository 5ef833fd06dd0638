"""Workdirs whose results are made up: what is told of them can be worked out by hand."""

import json

from mmu_jax.report.results import AXES

ASKED = [axis for axis in AXES if axis.split not in ("celebrity", "before")]
KEPT, LEFT = ASKED[4], ASKED[1]  # new photos of the kept and of the forgotten
LEVELS = {"vanilla": 0.9, "gold": 0.8, "ga": 0.3, "mmunlearner": 0.6, "projected": 0.7}


def cell(each, told):
    mean = sum(each.values()) / len(each)
    found = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 2 * len(each), "people": len(each)}
    return found | ({"each": each} if told else {})


def fabricate(folder, models=LEVELS, *, seed=0, group=0, told=True, flags=(), **changes):
    """A workdir whose models have one level for everybody on every axis, or one per person; ``changes`` are of the config."""
    config = {
        "seed": seed,
        "data": {"name": "faces", "forget": "f", "retain": "r", "group": group},
        "model": {"path": "m"},
    }
    config |= {"unlearn": {"epochs": 1.0, "methods": list(models), "learning_rate": {"ga": 1e-5, "projected": 1e-4}}}
    config |= {"evaluate": {"headline": "exact", "prompts": {"generation": "{question}"}, "new_tokens": 8}}
    for place, value in changes.items():
        part, _, key = place.partition("__")
        config[part] = config[part] | {key: value}
    for name, level in models.items():
        of = level if isinstance(level, dict) else {"a": level, "b": level}
        results = {}
        for axis in ASKED:
            each = {person: 1 - value if axis == LEFT else value for person, value in of.items()}
            both = {metric: cell(each, told) for metric in ("exact", "probability")}
            results.setdefault(axis.split, {})[axis.task] = both
        value = {
            "results": results,
            "flags": list(flags),
            "mask_proof": {},
            "config": config,
            "provenance": {"git": "abc"},
        }
        path = folder / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return folder
