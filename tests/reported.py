"""A small finished run to report on: its people, its results, its answers."""

import json

from mmu_jax import data
from mmu_jax.data import schema
from mmu_jax.data.sets import faces


def value(mean, width=0.02):
    return {"mean": mean, "low": max(mean - width, 0.0), "high": min(mean + width, 1.0), "n": 50, "people": 10}


def made(name, forget, retain, width=0.02, flags=()):
    def task(mean):
        found = {m: value(mean, width) for m in ("exact", "mcq", "cloze", "cloze_exact", "rouge_l", "probability")}
        found["mcq"]["chance"] = 0.25
        found["probability"]["items"] = [mean, mean / 2]
        return found | {"right_share": value(0.5), "distinct": {"mean": 0.5, "n": 50}}

    rates = {"forget": (forget, 0.98), "test": (forget, 0.98), "retain": (retain, 0.99)}
    rates |= {"retain_test": (0.9 * retain, 0.99)}
    results = {split: {"vqa": task(vqa), "qa": task(qa)} for split, (vqa, qa) in rates.items()}
    proof = {"tower": {"selected": 5, "total": 10, "density": 0.5, "outside": 0, "inside": 4}}
    return {
        "model": name,
        "results": results,
        "flags": list(flags),
        "mask_proof": proof if name == "mmunlearner" else {},
        "config": {"seed": 0, "evaluate": {"headline": "exact"}},
        "provenance": {"git": "abc"},
    }


def benchmark():
    """Three people to forget, who are also the ones to keep: enough for a page."""
    people = tuple(schema.read_person(row, "full") for row in list(faces.rows("retain_90"))[:3])
    return data.Benchmark(full=people, forget=people[:3], retain=people, test=people, unseen=())


def fill(workdir, benchmark):
    """The files of a finished run, as far as a report reads them."""

    def write(path, content):
        (workdir / path).parent.mkdir(parents=True, exist_ok=True)
        (workdir / path).write_text(json.dumps(content))

    for model in (
        made("vanilla", 1.0, 1.0),
        made("ga", 0.013, 0.077, flags=["collapsed"]),
        made("grad_diff", 0.10, 0.91),
        made("mmunlearner", 0.11, 0.92),
    ):
        write(f"results/{model['model']}.json", model)
        rows = [
            {
                "person": p.id,
                "photo": 0,
                "task": "generation",
                "question": e.question,
                "truth": e.answer,
                "answer": e.answer,
            }
            for p in benchmark.forget
            for e in p.generation
        ]
        write(f"answers/{model['model']}.json", {"forget": {"vqa": rows, "qa": rows}})
    write("training/unlearn/mmunlearner.json", {"forget/ascent": [-0.1, None, -3.0], "retain/descent": [0.1, 0.2, 0.1]})
    write("stages/unlearn/mmunlearner.json", {"cost": {"seconds": 12.3, "peak_host_bytes_so_far": 2**30}})
    write("masks/mmunlearner.json", {"groups": {}, "layers": {"tower/layers/fc1/weight": [0.25, 0.75]}})
    return workdir


def attack(workdir, names):
    """Relearning of every model, which brings everything back but of gold."""
    for name in names:
        ends = (0.16, 0.17) if name == "gold" else (0.2, 0.8)
        points = [{"step": 32 * i, **value(mean), "n": 40} for i, mean in enumerate(ends)]
        (workdir / "attacks" / name).mkdir(parents=True)
        found = {"points": points, "trains": True, "split": "test"}
        (workdir / "attacks" / name / "relearn_own.json").write_text(json.dumps(found))
