"""Results of a deletion request made by hand, and what is said of them."""

from mmu_jax.report import deletion, forgotten
from mmu_jax.report.deletion import Thresholds

LIMITS = Thresholds(recognised=0.10, faces=0.05, facts=0.05)


def cells(mean, people, right, n=10):
    """Everybody is asked as much, ``n`` questions in all, and each of them is as likely as their mean."""
    of_one = n // len(people)
    summary = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": n, "people": len(people)}
    shown = {"mean": right, "low": right, "high": right, "n": n, "people": len(people), "each": {}}
    items = [value for value in people.values() for _ in range(of_one)]
    return {"probability": summary | {"each": people, "items": items}, "contains": shown}


def asked(results, hashed="same"):
    """A name and a job by turns, of everybody; ``hashed`` is what is said of what was asked."""
    of = {"forget": [], "test": [], "before": [], "unseen": []}
    for split in of.keys() & results.keys():
        cell = results[split]["vqa"]["probability"]
        for person in cell["each"]:
            of[split] += [
                (person, *(("who?", "ada"), ("job?", "welder"))[i % 2]) for i in range(cell["n"] // len(cell["each"]))
            ]
    who = {split: list(dict.fromkeys(one[0] for one in of[split])) for split in of}
    where = {one: f"q.csv:{len(one[1])}" for split in of.values() for one in split}
    same = {
        (split, task): {person: f"{person} {task} {hashed}" for person in cells["probability"]["each"]}
        for split, tasks in results.items()
        for task, cells in tasks.items()
    }
    return forgotten.Asked(of, where, who | {"test": who["forget"]}, same, {split: [] for split in of})


def model(forget, kept=0.9, facts=0.99, unseen=0.2, each=None, flags=()):
    who = each or {"p-1": forget}
    found = {
        "forget": {"vqa": cells(forget, who, forget), "qa": cells(facts, {"p-1": facts}, 1.0)},
        "test": {"vqa": cells(forget, who, forget, 6), "qa": cells(facts, {"p-1": facts}, 1.0, 1)},
        "retain": {"vqa": cells(kept, {"p-2": kept}, kept), "qa": cells(0.98, {"p-2": 0.98}, 1.0)},
        "retain_test": {"vqa": cells(kept, {"p-2": kept}, kept)},
        "unseen": {"vqa": cells(unseen, {"s-0": unseen}, 0.05, 40)},
    }
    return {"results": found, "flags": list(flags), "config": {"evaluate": {"headline": "contains"}}}


def judge(found, thresholds=LIMITS, earlier=(), hashed="same"):
    checks = deletion.checks(found, "projected", thresholds, asked(found["projected"]["results"], hashed), earlier)
    return {check.name: check for check in checks}


def judged(after, thresholds=LIMITS):
    found = {"vanilla": model(0.95, each=dict.fromkeys(after["results"]["forget"]["vqa"]["probability"]["each"], 0.95))}
    found["projected"] = after
    checks = judge(found, thresholds)
    return found, checks, deletion.met(list(checks.values()), after["flags"])


def name_at(value, result, split="forget"):
    """Of what is asked by photo in a split, the name alone is at ``value``; the mean stays what it was."""
    cell = result["results"][split]["vqa"]["probability"]
    cell["items"] = [value if i % 2 == 0 else 2 * cell["mean"] - value for i in range(cell["n"])]
    return result
