"""The numbers in plain language: the head of the report, for who reads nothing else, and what its pictures show.

A sentence says that something was forgotten or came back only where the 95 % intervals do not meet, and that two are level where
they do. What was to be kept is lost as soon as the people it is about, each compared with what was known of them before, have
lost a point or more in the mean, by an interval of it above 0.
"""

import numpy as np

from mmu_jax.metrics import METRICS, summary
from mmu_jax.report.attacked import KNOWLEDGE, Attacked, above, ends, measures
from mmu_jax.report.results import Axis, Results, apart, axes, cell, compared, headline, judged_by, ours, rivals

WHO = {"forget": "them by name", "retain": "everyone else", "retain_test": "everyone else", "celebrity": "celebrities"}
WHO |= {"before": "those of earlier requests by name"}
FIX = "\N{NO-BREAK SPACE}"  # within a number and what belongs to it
SURE = (
    "numbers in brackets are 95 % intervals over the people asked about (of one person, over the questions), in this one run. Models that "
    "differ by less than they allow are called level. Kept is what cannot be shown to have fallen by a point or more in the mean, each "
    "person compared with before; a single one may have fallen by more."
)
LIMITS = (
    "A model that no longer answers has not been shown to hold nothing: forgetting is measured by behaviour. Intervals on "
    "the forgotten come from {}: they are as wide as that is few."
)
ENOUGH = 5  # people from whom on what each has lost is judged, not how the means of all lie
QUALITY = (
    "After TOFU. Forget quality: p-value of a two-sample Kolmogorov-Smirnov test against gold, item by item, of the truth ratio "
    "where the data has the right answers in other words among wrong ones, else of p(right answer). Below 0.05 the two differ. Model "
    "utility: harmonic mean, per cent with 95 % interval over people, of p(right answer), ROUGE-L recall and the share of the right option, over every split of people to "
    "keep, by photo and by name (TOFU has the truth ratio for the last of the three)."
)


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _at(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.0f}{FIX}%"


def _with_interval(value: dict[str, float]) -> str:
    return f"{_at(value)}{FIX}[{100 * value['low']:.0f}–{100 * value['high']:.0f}]"


def _measured(results: Results) -> str:
    metric = headline(results)
    return "share of questions answered right" if metric == "exact" else METRICS[metric].name


def head(results: Results, people: int, attacked: Attacked, attacks: dict[str, str]) -> list[tuple[str, str]]:
    """What was forgotten, what was kept, against which rivals, what comes back and how sure that is.

    Args:
      people: how many are to be forgotten.
      attacks: what each does, by its name.
    Returns:
      ``(label, sentence)``, the first without a label: all of it in one sentence.
    """
    mine = ours(results)
    if mine is None:
        return [("", f"{len(results)} models were evaluated; no projected or masked method is among them.")]
    known, left = _forgotten(results, mine)
    kept, lost = _kept(results, mine)
    whole = dict.fromkeys(
        WHO[a.split] for a in kept if _known(results, a) and not any(WHO[a.split] == WHO[b.split] for b in lost)
    )
    whom = f"the {people} people" if people > 1 else "the person"
    said = f"After {mine} the model {known} {whom} it was to forget" if known else f"This is what {mine} did"
    said += f" and still knows {listed(list(whole))}" if whole else ""
    said += f", but has lost {listed([_points(results, mine, axis) for axis in lost])}" if lost else ""
    parts = [
        ("Forgotten", f"{_measured(results)}: {left}" if left else ""),
        ("Kept", "; ".join(_moved(results, mine, axis) for axis in kept)),
        ("Lost", "; ".join(_moved(results, mine, axis) for axis in lost)),
        ("Against rivals", _rivals(results, mine)),
        ("Does it come back", _returned(attacked, mine, attacks)),
        ("How sure", SURE),
    ]
    return [("", f"{said}."), *((label, f"{text[:1].upper()}{text[1:].rstrip('.')}.") for label, text in parts if text)]


def _never(results: Results, axis: Axis) -> tuple[dict[str, float], str] | None:
    """What not knowing a face looks like, and whose level that is."""
    metric = judged_by(results, axis)
    if "gold" in results:
        return cell(results, "gold", axis.split, axis.task, metric), "a model that was never trained on them"
    unseen = cell(results, "vanilla", "unseen", "vqa", metric)
    return (unseen, "people it never saw") if unseen else None


def _points(results: Results, mine: str, axis: Axis) -> str:
    """``2 points on questions about new photos of everyone else``."""
    metric = judged_by(results, axis)
    before, after = (cell(results, name, axis.split, axis.task, metric) for name in ("vanilla", mine))
    points = max(round(100 * (before["mean"] - after["mean"])), 1)
    return f"{points} point{'s' * (points > 1)} on questions about {axis.about}"


def _moved(results: Results, mine: str, axis: Axis) -> str:
    metric = judged_by(results, axis)
    before, after = (cell(results, name, axis.split, axis.task, metric) for name in ("vanilla", mine))
    by = "" if metric == headline(results) else f" ({METRICS[metric].name})"
    return f"{axis.about}{by} {_at(before)}{FIX}→{FIX}{_with_interval(after)}"


def _forgotten(results: Results, mine: str) -> tuple[str, str]:
    """What the model does with faces that were to be forgotten, and the numbers that say so; empty where none was asked."""
    told, never = [], {}
    for axis in (axis for axis in axes(results) if not axis.up):
        metric = judged_by(results, axis)
        before, after = (cell(results, name, axis.split, axis.task, metric) for name in ("vanilla", mine))
        told.append((apart(before, after) and after["mean"] < before["mean"], _moved(results, mine, axis)))
        if level := _never(results, axis):
            never[axis] = apart(after, level[0]) and after["mean"] > level[0]["mean"]
            told[-1] = (told[-1][0], f"{told[-1][1]} ({level[1]}: {_with_interval(level[0])})")
    if not told:
        return "", ""
    said = "; ".join(text for _, text in told)
    asked = [axis for axis in axes(results) if not axis.up and axis.split != "before"]
    axis = asked[-1] if asked else axis
    none = cell(results, mine, axis.split, axis.task, "no_answer")
    if none and none["mean"]:
        said += f". Of what it says about {axis.about} {_with_interval(none)} is no answer of the kind asked for"
    fallen = "no longer recognises" if never and not any(never.values()) else "recognises less well"
    return fallen if all(fell for fell, _ in told) else "still recognises", said


def _kept(results: Results, mine: str) -> tuple[list[Axis], list[Axis]]:
    """The axes that should stay up: those that did as far as can be told, and those that fell."""
    kept, lost = [], []
    for axis in (axis for axis in axes(results) if axis.up):
        metric = judged_by(results, axis)
        worse = _fell(*(cell(results, name, axis.split, axis.task, metric) for name in ("vanilla", mine)))
        (lost if worse else kept).append(axis)
    return kept, lost


def _fell(before: dict, after: dict) -> bool:
    """Whether what was known before has become less."""
    was, now = before.get("each", {}), after.get("each", {})
    if len(was) < ENOUGH or was.keys() != now.keys():
        return apart(before, after) and after["mean"] < before["mean"]
    by = summary(np.array([was[person] - now[person] for person in was]), np.array(list(was)))
    return by["low"] > 0 and by["mean"] >= 0.01


def _known(results: Results, axis: Axis) -> bool:
    """Whether the vanilla model knew what an axis asks, by the share that its evaluation was to reach."""
    least = results["vanilla"]["config"]["evaluate"].get("memorised", 0.0)
    return cell(results, "vanilla", axis.split, axis.task, judged_by(results, axis))["mean"] >= least


def _rivals(results: Results, mine: str) -> str:
    found: dict[str, list[str]] = {}
    for rival in rivals(results):
        better, worse, _ = compared(results, mine, rival)
        where = "mixed" if better and worse else "better" if better else "worse" if worse else "level"
        found.setdefault(where, []).append(rival)
    ways = {
        "better": "better than {} on at least one count and worse on none",
        "level": "level with {} on every count",
        "mixed": "better on some counts and worse on others than {}",
        "worse": "worse than {} on at least one count and better on none",
    }
    parts = [way.format(listed(found[where])) for where, way in ways.items() if where in found]
    return f"{'; '.join(parts)}." if parts else ""


def _returned(attacked: Attacked, mine: str, attacks: dict[str, str]) -> str:
    """Which attack brings back the most, where that is more than a model gives that never knew."""
    against = {attack: by for attack, by in attacked.items() if mine in by and "gold" in by}
    back = [attack for attack, by in against.items() if mine in above(by)]
    if not against:
        return ""
    if not back:
        return f"no attack that was tried ({listed(list(against))}) brought back more than a model gives that never knew them."
    said = [attack for attack in back if measures(attacked[attack]) == KNOWLEDGE]
    traces = [attack for attack in back if attack not in said]
    found = (
        f"{listed(traces)} find{'s' * (len(traces) == 1)} more of a trace than in a model that never knew them"
        if traces
        else ""
    )
    if not said:
        return f"not in words; {found}."
    most = max(said, key=lambda attack: ends(against[attack][mine])[1]["mean"])
    mean, gold = (100 * ends(against[most][name])[1]["mean"] for name in (mine, "gold"))
    told = (
        f"in part: after {most} ({attacks[most].partition(' (')[0]}) the right answers about their faces that nobody taught it again "
        f"have a probability of {mean:.0f} %, {gold:.0f} % in a model that never knew them."
    )
    return told[:-1] + f"; {found}." if found else told


# ---- what the pictures show


def of_points(results: Results, names: list[str], first: Axis, second: Axis, metric: str) -> str:
    """Alternative text of a scatter of models."""
    shown = []
    for name in names:
        x, y = (cell(results, name, axis.split, axis.task, metric) for axis in (first, second))
        shown += [f"{name} {_at(x)} and {_at(y)}"] if x and y else []
    return f"Each model as a point, {METRICS[metric].name} about the forgotten and about everyone else: {'; '.join(shown)}."


def of_change(results: Results, name: str) -> str:
    """Alternative text of the bars before and after."""
    told = []
    for axis in axes(results):
        metric = judged_by(results, axis)
        values = [cell(results, n, axis.split, axis.task, metric) for n in ("vanilla", name)]
        told.append(f"{axis.title} from {_at(values[0])} to {_at(values[1])}")
    return f"Bars of {METRICS[headline(results)].name} before and after {name}: {', '.join(told)}."


def of_attacks(attacked: Attacked) -> str:
    """Alternative text of the curves of what comes back."""
    told = []
    for attack, models in attacked.items():
        trained = {name: value["points"] for name, value in models.items() if value["trains"]}
        ends = [f"{n} {_at(points[0])} to {_at(points[-1])}" for n, points in trained.items()]
        told += [f"{attack}: {', '.join(ends)}"] if ends else []
    return f"Curves of what comes back over the steps of relearning, from before to the end; {'; '.join(told)}."


def of_front(results: Results, names: list[str], others: list[Axis], metric: str = "probability") -> str:
    """Alternative text of the panels of :func:`figures.front_figure`."""
    told = []
    for axis in others:
        means = {name: cell(results, name, axis.split, axis.task, metric) for name in names}
        told.append(f"{axis.title}: " + ", ".join(f"{name} {_at(value)}" for name, value in means.items() if value))
    return f"A panel an axis, what is known there against what is left of the forgotten faces; {'; '.join(told)}."


def of_curves(results: Results, names: list[str]) -> str:
    """Alternative text of the curves of unlearning."""
    ends = {name: results[name].get("stopped", {}).get("last") for name in names}
    told = "; ".join(f"{name} ends at {100 * last:.0f} %" for name, last in ends.items() if last is not None)
    said = "Curves while unlearning: what is left of the forgotten faces, and the loss on everyone else's photos"
    return f"{said}; {told}." if told else f"{said}."
