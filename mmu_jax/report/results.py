"""The numbers of a workdir: what was evaluated, what must be told of it, and what the intervals support."""

import itertools
import pathlib
from typing import Any, NamedTuple

from mmu_jax import InputError
from mmu_jax.clear_compat import VALUES
from mmu_jax.files import read_object
from mmu_jax.methods import METHODS
from mmu_jax.metrics import METRICS


class Axis(NamedTuple):
    """A column of the tables: a task of a split, whether it is good that its metric goes ``up``, and what it is about in words."""

    title: str
    split: str
    task: str
    up: bool
    about: str


AXES = (
    Axis("Forget VQA", "forget", "vqa", False, "known photos of them"),
    Axis("Forget Test VQA", "test", "vqa", False, "new photos of them"),
    Axis("Forgotten before VQA", "before", "vqa", False, "photos of people of earlier requests"),
    Axis("Forget QA", "forget", "qa", True, "them by name"),
    Axis("Forgotten before QA", "before", "qa", True, "people of earlier requests by name"),
    Axis("Retain VQA", "retain", "vqa", True, "known photos of everyone else"),
    Axis("Retain Test VQA", "retain_test", "vqa", True, "new photos of everyone else"),
    Axis("Retain QA", "retain", "qa", True, "everyone else by name"),
    Axis("Celebrity VQA", "celebrity", "vqa", True, "photos of celebrities"),
    Axis("Celebrity QA", "celebrity", "qa", True, "celebrities by name"),
)
FLAGS = {
    "collapsed": "it answers everyone alike, or knows almost nothing of the people to keep",
    "over-unlearned": "the right option is chosen far less often than by chance: it is avoided, and so still known",
    "level not reached": "its passes were over before as little was known of the people to forget as it was to stop at",
    "inert mask": "masked steps moved nothing inside the mask",
    "lost in rounding": "under 1 % of the trained entries changed in the files, whose dtype swallows smaller steps",
    "no answer": "of what it says about faces of the forgotten over a fifth is no answer of the kind asked for",
    "leaking mask": "masked steps moved entries outside the mask (the public code's shared momentum does)",
}

Results = dict[str, dict[str, Any]]
CELL = {"mean": float, "low": float, "high": float, "n": float, "each?": {"*": float}}
GROUP = {"total": float, "density": float, "outside": float, "inside": float}


def _file() -> dict[str, Any]:
    """The shape of a result file; further keys are of no concern here."""
    cells = {"mcq?": CELL | {"chance": float}, "distinct?": {"mean": float, "n": float}, "*": CELL}
    cells |= {f"{metric}?": CELL | {"items?": [float]} for metric in ("probability", "truth_share")}
    return {
        "results": {"*": {"*": cells}},
        "mask_proof": {"*": GROUP},
        "clear_compat?": {"*": _of_clear()},
        "flags": [set(FLAGS)],
        "config": {"evaluate": {"headline": set(METRICS)}},
        "provenance": dict,
    }


def _of_clear() -> dict[str, Any]:
    """The shape of a task of CLEAR's own table."""
    number = {"mean": float, "low": float, "high": float}
    found = {"n": float, "published": dict.fromkeys(VALUES, float), "corrected": dict.fromkeys(VALUES, number)}
    return found | {"log_ratios?": {"published": [float], "corrected": [float]}}


def read(workdir: pathlib.Path, names: list[str] | None = None) -> Results:
    """The result files by model name, vanilla and gold first."""
    paths = {name: workdir / "results" / f"{name}.json" for name in names or ["vanilla", "gold", *METHODS]}
    found = {name: read_object(path, "results", _file()) for name, path in paths.items() if path.exists()}
    if "vanilla" not in found:
        raise InputError(
            f"expected results of the vanilla model in {workdir}, found none; run the evaluate stage first"
        )
    for name, value in found.items():
        for split, task, metric in _places(found["vanilla"]):
            if metric not in value["results"].get(split, {}).get(task, {}):
                raise InputError(
                    f"expected every model evaluated alike, found results/{name}.json without {split}/{task}/{metric}, which "
                    f"vanilla has, in {workdir}; delete it, and the same command makes it again"
                )
    return found


def _places(value: dict[str, Any]) -> list[tuple[str, str, str]]:
    tasks = [(split, task, cells) for split, found in value["results"].items() for task, cells in found.items()]
    return [(split, task, metric) for split, task, cells in tasks for metric in cells]


PLACES = ("source", "path")  # keys of a config that say where something lies on this machine, as all of ``general`` do


def placeless(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it may be shown to others.

    >>> placeless({'data': {'source': '/home/ada', 'name': 'folder'}, 'general': {'pope': '/data', 'drawn': 5}})
    {'data': {'name': 'folder'}, 'general': {'drawn': 5}}
    """
    shown = {key: placeless(v) if isinstance(v, dict) else v for key, v in config.items() if key not in PLACES}
    if "general" in shown:
        shown["general"] = {key: v for key, v in shown["general"].items() if not isinstance(v, str)}
    return shown


def cell(results: Results, model: str, split: str, task: str, metric: str) -> dict[str, float] | None:
    return results[model]["results"].get(split, {}).get(task, {}).get(metric)


def headline(results: Results) -> str:
    """The metric of generated answers that tables and verdicts speak of."""
    return results["vanilla"]["config"]["evaluate"]["headline"]


def axes(results: Results) -> list[Axis]:
    """The axes that were evaluated: by generated answers, or by options alone."""
    asked = (headline(results), "mcq")
    return [axis for axis in AXES if any(cell(results, "vanilla", axis.split, axis.task, metric) for metric in asked)]


def judged_by(results: Results, axis: Axis) -> str:
    """The metric that verdicts compare on an axis: the headline one, MCQ where nothing was generated."""
    metric = headline(results)
    return metric if cell(results, "vanilla", axis.split, axis.task, metric) else "mcq"


def better_up(axis: Axis, metric: str) -> bool:
    """Whether a higher value of a metric is the good direction on an axis: more is known there, or less."""
    return axis.up == METRICS[metric].up


def family(name: str) -> str:
    """Of a row of the tables: that of the method; ``'model'`` of one that was not unlearned."""
    return METHODS[name].family if name in METHODS else "model"


def of_family(results: Results, *families: str) -> list[str]:
    """The rows of these families, in the order of the families."""
    return [name for wanted in families for name in results if family(name) == wanted]


OURS = ("projected", "masked", "variant")


def ours(results: Results, *families: str) -> str | None:
    """The row that a report speaks of: of the first of ``families`` (:data:`OURS`) that is there, the first of ``METHODS``."""
    wanted = families or OURS
    found = [name for name in results if family(name) in wanted]
    return min(found, key=lambda name: (wanted.index(family(name)), list(METHODS).index(name)), default=None)


def apart(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two 95 % intervals do not meet."""
    return a["low"] > b["high"] or b["low"] > a["high"]


def alike(results: Results, metrics: tuple[str, ...]) -> list[Axis]:
    """The axes on which by none of ``metrics`` two models are apart."""

    def same(cells):
        return not any(apart(a, b) for a, b in itertools.combinations(filter(None, cells), 2))

    return [
        a for a in axes(results) if all(same([cell(results, n, a.split, a.task, m) for n in results]) for m in metrics)
    ]


def in_order(results: Results) -> Results:
    """Before, never trained on them, the row that is spoken of, then the others by the worst of their axes, best first."""

    def worst(name):
        rates = []
        for axis in axes(results):
            metric = judged_by(results, axis)
            mean = cell(results, name, axis.split, axis.task, metric)["mean"]
            rates.append(mean if better_up(axis, metric) else 1 - mean)
        return min(rates, default=0.0)

    first = [name for name in ("vanilla", "gold", ours(results)) if name in results]
    others = sorted((name for name in results if name not in first), key=lambda name: (-worst(name), name))
    return {name: results[name] for name in (*first, *others)}


def verdict(results: Results) -> list[str]:
    """What happened, in sentences that claim nothing the 95 % intervals do not support."""
    mine, metric = ours(results), headline(results)
    if mine is None:
        return [f"{len(results)} models were evaluated; no projected or masked method is among them."]

    def score(model, axis):
        return f"{100 * cell(results, model, axis.split, axis.task, judged_by(results, axis))['mean']:.0f} %"

    def titled(axis):
        return axis.title if judged_by(results, axis) == metric else f"{axis.title} (MCQ)"

    told = "; ".join(f"{titled(axis)} from {score('vanilla', axis)} to {score(mine, axis)}" for axis in axes(results))
    lines = [f"{mine} took {METRICS[metric].name} on {told}."]
    lines += [_against(results, mine, rival) for rival in rivals(results)]
    if "mask_random" in results and (masked := ours(results, "masked")) is not None:
        lines += [_against(results, masked, "mask_random")]
    return lines


def rivals(results: Results) -> list[str]:
    """The rows that the one a report speaks of is compared with."""
    return [name for name in of_family(results, "baseline", "projected", "masked") if name != ours(results)]


def compared(results: Results, mine: str, rival: str) -> tuple[list[Axis], list[Axis], list[Axis]]:
    """The axes on which one row is better than another, worse, and equal within the intervals."""
    better, worse, equal = [], [], []
    for axis in axes(results):
        metric = judged_by(results, axis)
        first, second = (cell(results, m, axis.split, axis.task, metric) for m in (mine, rival))
        wins = (first["mean"] > second["mean"]) == better_up(axis, metric)
        (equal if not apart(first, second) else better if wins else worse).append(axis)
    return better, worse, equal


def _against(results: Results, mine: str, rival: str) -> str:
    """The sentence that compares two rows, axis by axis."""
    return outcome(mine, rival, *([axis.title for axis in found] for found in compared(results, mine, rival)))


def outcome(mine: str, rival: str, better: list[str], worse: list[str], equal: list[str]) -> str:
    """A sentence: on which axes, by their titles, a row is better than another, worse, or neither."""
    note = METHODS[rival].note
    known = f"{rival} ({note})" if note else rival
    if not better and not worse:
        return f"{known} equals {mine} within the 95 % interval on every axis."
    said = {"better": better, "worse": worse, "equal within the interval": equal}
    parts = [f"{how} on {', '.join(titles)}" for how, titles in said.items() if titles]
    parts[0] = parts[0].replace(" on ", f" than {known} on ", 1)
    return f"{mine} is {', '.join(parts)}."


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``n`` answers (JASA 22, 1927): of a few that are all wrong a bootstrap knows no chance.

    >>> [round(end, 3) for end in wilson(0.0, 20)], [round(end, 3) for end in wilson(1.0, 5)]
    ([0.0, 0.161], [0.566, 1.0])
    """
    z = 1.96
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max((middle - half) / (1 + z**2 / n), 0.0), min((middle + half) / (1 + z**2 / n), 1.0)


def flags(
    results: dict,
    moved: dict[str, dict[str, float]] | None = None,
    saved: float | None = None,
    *,
    headline: str = "exact",
    reached: bool = True,
) -> list[str]:
    """What a reader must be told about a model.

    ``collapsed``: it answers everyone's questions alike, or the ``headline`` metric says it knows almost nothing of the
    people to keep. ``over-unlearned``: on the forgotten faces the right option is chosen less than half as often as by
    chance, interval included: the model avoids the answer, and so still knows it. ``inert mask``: masked steps moved
    nothing inside the mask. ``leaking mask``: they moved something outside it. ``lost in rounding``: of the trained
    entries the share ``saved``, under one in a hundred, changed in the dtype of the files. ``level not reached``: it had a
    level to stop at and ended above it (not ``reached``).
    """
    found, retain, mcq = [], results["retain"], results["forget"]["vqa"].get("mcq")
    known = [cell[headline]["mean"] for cell in retain.values() if headline in cell]
    alike = [cell["distinct"]["mean"] for task, cell in retain.items() if task == "vqa" and "distinct" in cell]
    if (known and max(known) < 0.1) or any(share < 0.1 for share in alike):
        found.append("collapsed")
    if mcq and (wilson(mcq["mean"], mcq["n"])[1] if mcq.get("people") == 1 else mcq["high"]) < mcq["chance"] / 2:
        found.append("over-unlearned")
    if not reached:
        found.append("level not reached")
    if moved and sum(group["inside"] for group in moved.values()) == 0:
        found.append("inert mask")
    if moved and sum(group["outside"] for group in moved.values()) > 0:
        found.append("leaking mask")
    if saved is not None and saved < 0.01:
        found.append("lost in rounding")
    return found
