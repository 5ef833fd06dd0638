"""What came of a deletion request: every threshold with what was measured against it, in plain words."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmu_jax.report.results import FLAGS, Results, cell, headline

MEASURED = (
    "probability"  # what thresholds are judged by: it is finer than right and wrong where few questions are asked
)
SHOWN = 3  # facts above their limit that a line tells, the furthest above it first
KEPT = ("mean", "low", "high", "n", "people", "each")


class Thresholds(NamedTuple):
    """What a request must meet, in probability of the right answer, 0 to 1.

    Attributes:
      recognised: of every forgotten person on photos, at most so much above people whom the model never saw, asked the same: in
        the mean over all that is asked, and fact by fact.
      faces: of the faces of the others, lost at most since before the first request.
      facts: of what is known by name, of the forgotten and of the others, lost at most since then.
    """

    recognised: float = 0.10
    faces: float = 0.05
    facts: float = 0.05


@dataclasses.dataclass(frozen=True)
class Fact:
    """What one or several wordings ask about the face of a person, in the mean over them and over the photos.

    Attributes:
      person, fact: whose, and where in the table of questions it is first asked.
      before, after, never: probability of the right answer, and for people never seen who were asked the same.
      limit: ``after`` at most.
      met: None where the limit is above what was known, and what is.
    """

    person: str
    fact: str
    before: float
    after: float
    never: float
    limit: float
    met: bool | None


@dataclasses.dataclass(frozen=True)
class Check:
    """A threshold.

    Attributes:
      name, title: for programs and for people.
      before, after: summaries of the probability of the right answer, with ``each`` person's mean; None where nothing was asked.
      right: share of right answers by the headline metric, before and after.
      limit: what ``after`` is held against: at most, or at least where ``up``; of faces to forget the mean of what each is.
      met: whether it holds, None where it could not be measured.
      start: what ``before`` was when each person was first in a record of the chain; None of faces to forget.
      above: the forgotten who are recognised above their limit, all their facts together.
      facts: of faces to forget, one by one.
    """

    name: str
    title: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    right: tuple[float, float] | None
    limit: float | None
    up: bool
    met: bool | None
    start: float | None = None
    above: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()

    @classmethod
    def read(cls, told: dict[str, Any]) -> "Check":
        """One of a record."""
        return cls(**told | {"facts": tuple(Fact(**fact) for fact in told["facts"])})

    @property
    def most_lost(self) -> tuple[str, float, float] | None:
        """Who of those to keep has lost the most since before, if half a point or more: id, before and after."""
        if not self.up or self.met is None or len(self.after["each"]) < 2:
            return None
        was, now = self.before["each"], self.after["each"]
        person = max(sorted(was.keys() & now.keys()), key=lambda one: was[one] - now[one])
        return (person, was[person], now[person]) if was[person] - now[person] >= 0.005 else None

    def unmet(self) -> list[str]:
        """Who is recognised above the limit, and which facts are known above theirs."""
        beyond = sorted((f for f in self.facts if f.met is False), key=lambda fact: fact.limit - fact.after)
        told = [
            f"{fact.fact} of {fact.person} at {100 * fact.after:.1f} %, its limit {100 * fact.limit:.1f} %"
            for fact in beyond[:SHOWN]
        ]
        more = len(beyond) - SHOWN
        return [*self.above, *told, *([f"and {more} facts more"] if more > 0 else [])]

    def line(self) -> str:
        """As a terminal shows it."""
        if self.met is None:
            return f"{self.title}: not measured, there is nothing to ask, or no level below what was known"
        was, now = (f"{100 * c['mean']:.1f} %" for c in (self.before, self.after))
        bound = f"at {'least' if self.up else 'most'} {100 * self.limit:.1f} %"
        whose = f" (not by {', '.join(self.unmet())})" if self.unmet() else ""
        more = [f"{self.after['n']} question{'s' * (self.after['n'] != 1)}"]
        if self.right:
            more.append("answered right {:.0f} % -> {:.0f} %".format(*(100 * share for share in self.right)))
        if self.facts:
            held = sum(fact.met is not False for fact in self.facts)
            more.append(f"{held} of {len(self.facts)} facts within their own limit")
        if self.most_lost:
            more.append(
                "most lost: {} {:.1f} % -> {:.1f} %".format(self.most_lost[0], *(100 * p for p in self.most_lost[1:]))
            )
        if self.start is not None and abs(self.start - self.before["mean"]) >= 0.0005:
            more.append(f"{100 * self.start:.1f} % before the first request")
        return f"{self.title}: {was} before, {now}{interval(self.after)} after, {bound}: {'met' if self.met else 'NOT met'}{whose} ({'; '.join(more)})"


def interval(value: dict[str, Any]) -> str:
    """Of a mean in percent, as it stands behind it; of one question none is known."""
    return f" [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if value["n"] > 1 else ""


def level(results: Results) -> dict[str, Any] | None:
    """How likely the right answers are for faces that the vanilla model never saw."""
    return cell(results, "vanilla", "unseen", "vqa", MEASURED)


class Asked(NamedTuple):
    """What the probabilities of a split's questions by photo are of, item by item.

    Attributes:
      of: split -> ``(person, fact)`` of every item (``mmu_jax.data.facts``).
      where: ``(person, fact)`` -> where it is first asked.
    """

    of: dict[str, list[tuple[str, str]]]
    where: dict[tuple[str, str], str]


def facts(results: Results, model: str, split: str, asked: Asked, allowed: float) -> list[Fact]:
    """The facts about the faces of a split, each held against people never seen who were asked for it."""
    never = _by(asked.of["unseen"], results["vanilla"], "unseen", lambda whose: whose[1])
    before, after = (_by(asked.of[split], results[name], split, lambda whose: whose) for name in ("vanilla", model))
    found = []
    for (person, fact), was in before.items():
        limit = never[fact] + allowed
        now = after[person, fact]
        said_nothing = split != "before" and max(was, now) <= limit  # a limit that nobody exceeds says nothing
        met = None if said_nothing else now <= limit
        found.append(Fact(person, asked.where[person, fact], was, now, never[fact], limit, met))
    return found


def _by(asked: Sequence[tuple[str, str]], model: dict[str, Any], split: str, part: Callable) -> dict[Any, float]:
    """The mean of what is alike by ``part``, to five digits."""
    values: dict[Any, list[float]] = {}
    for whose, value in zip(asked, model["results"][split]["vqa"][MEASURED]["items"], strict=True):
        values.setdefault(part(whose), []).append(value)
    return {key: round(sum(of) / len(of), 5) for key, of in values.items()}


def checks(
    results: Results, model: str, thresholds: Thresholds, asked: Asked, earlier: Sequence[dict[str, Any]] = ()
) -> list[Check]:
    """Every threshold of a request, by the results of vanilla and of the ``model`` that forgot.

    Who is to be forgotten is held against people never seen who were asked the same: in the mean over what was asked about the
    person, and fact by fact. What is kept of somebody is held against what it was before the first request.

    Args:
      earlier: the records of earlier requests, the first one first.
    """

    def gone(name, title, split):
        found = _measured(results, model, split, "vqa")
        none = Check(name, title, **found, limit=None, up=False, met=None)
        if found["after"] is None or level(results) is None:
            return none
        known = facts(results, model, split, asked, thresholds.recognised)
        limits = {(fact.person, fact.fact): fact.limit for fact in known}
        put = [(person, limits[person, asked.where[person, fact]]) for person, fact in asked.of[split]]
        limit = {who: sum(x for one, x in put if one == who) / sum(one == who for one, _ in put) for who, _ in put}
        whole = sum(x for _, x in put) / len(put)
        above = tuple(person for person, right in found["after"]["each"].items() if right > limit[person])
        judged = [fact.met for fact in known if fact.met is not None] + [False] * len(above)
        met = all(judged) if judged else None
        return dataclasses.replace(none, limit=whole, met=met, above=above, facts=tuple(known))

    def kept(name, title, split, task, lost):
        found = _measured(results, model, split, task)
        none = Check(name, title, **found, limit=None, up=True, met=None)
        if found["before"] is None:
            return none
        start = _at_the_start(name, found["before"], earlier)
        limit = start - lost
        return dataclasses.replace(none, limit=limit, start=start, met=found["after"]["mean"] >= limit)

    new = "retain_test" if cell(results, model, "retain_test", "vqa", MEASURED) else "retain"
    photos = {"retain_test": "new photos", "retain": "their photos"}[new]
    other = "in words that are not trained on"
    found = [
        gone("recognised", "Forgotten: the faces on new photos", "test"),
        gone("recognised_known", "Forgotten: the faces on the photos given", "forget"),
        kept("facts", "Kept: what is known of the forgotten by name", "forget", "qa", thresholds.facts),
        kept("facts_new", f"Kept: the forgotten by name, {other}", "test", "qa", thresholds.facts),
        kept("faces", f"Kept: the faces of the others on {photos}", new, "vqa", thresholds.faces),
        kept("facts_of_others", "Kept: what is known of the others by name", "retain", "qa", thresholds.facts),
        kept("facts_of_others_new", f"Kept: the others by name, {other}", "retain_test", "qa", thresholds.facts),
        gone("before", "Still forgotten: the faces of earlier requests", "before"),
        kept(
            "facts_before", "Kept: what is known by name of those of earlier requests", "before", "qa", thresholds.facts
        ),
    ]
    again = bool(results[model]["results"].get("before"))
    return [
        check
        for check in found
        if (again or "before" not in check.name) and (check.after or not check.name.endswith("_new"))
    ]


def _at_the_start(name: str, before: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> float:
    """What a check of what is kept would have been before the first request, as far as its people were asked then.

    Every person counts as now: what somebody was at in the first record that has them, as one to keep or to forget, is as much
    above today's.
    """
    first: dict[str, float] = {}
    for check in (check for record in earlier for check in record["results"]):
        if check["before"] and _about(check["name"]) == _about(name):
            first = check["before"]["each"] | first
    now = before["each"]
    return before["mean"] + sum(first[who] - now[who] for who in now if who in first) / max(len(now), 1)


def _about(name: str) -> str:
    """What a check asks about, whoever it is asked of."""
    return name.replace("_of_others", "").replace("_before", "")


def _measured(results: Results, model: str, split: str, task: str) -> dict[str, Any]:
    cells = {
        when: cell(results, name, split, task, MEASURED) for when, name in (("before", "vanilla"), ("after", model))
    }
    right = [cell(results, name, split, task, headline(results)) for name in ("vanilla", model)]
    shown = {when: found and {key: found[key] for key in KEPT} for when, found in cells.items()}
    return shown | {"right": (right[0]["mean"], right[1]["mean"]) if all(right) else None}


def met(found: Sequence[Check], flags: Sequence[str]) -> bool:
    """Whether what could be measured holds, the faces of the forgotten among it, by a model that still answers."""
    measured = [check.met for check in found if check.met is not None]
    faces = [check.met for check in found if check.name in ("recognised", "recognised_known")]
    return all(measured) and any(faces) and "collapsed" not in flags


def told(results: Results, model: str, found: Sequence[Check]) -> list[str]:
    """The verdict as a terminal shows it, a line each."""
    stranger, flags = level(results), results[model]["flags"]
    lines = ["Probability of the right answer, with a 95 % interval:"]
    lines += [f"  {check.line()}" for check in found]
    if stranger:
        lines.append(
            f"  People whom the model never saw, asked the same: {100 * stranger['mean']:.1f} %{interval(stranger)} of {stranger['n']} questions"
        )
    return lines + [f"  Flag: {flag}: {FLAGS[flag]}" for flag in flags]
