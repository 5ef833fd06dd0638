"""What came of a deletion request: every threshold with what was measured against it, in plain words."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmu_jax.report import forgotten
from mmu_jax.report.forgotten import MEASURED, Asked, Fact, level
from mmu_jax.report.results import FLAGS, Results, cell, headline

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
class Check:
    """A threshold.

    Attributes:
      name, title: for programs and for people.
      before, after: summaries of the probability of the right answer, with ``each`` person's mean; None where nothing was asked.
      right: share of right answers by the headline metric, before and after.
      limit: what ``after`` is held against: at most, or at least where ``up``; of faces to forget the mean of what each is.
      met: whether it holds, None where it could not be measured.
      asked: person -> a hash of what was asked, by which a later request finds the same again.
      start: what ``before`` was when each person was first asked the same in a record of the chain; None of faces to forget.
      anew: people to keep of whom no earlier record says what it was.
      above, facts: of faces to forget (:class:`forgotten.Gone`).
      not_asked: of the people it is about, those of whom nothing was asked.
    """

    name: str
    title: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    right: tuple[float, float] | None
    limit: float | None
    up: bool
    met: bool | None
    asked: dict[str, str] = dataclasses.field(default_factory=dict)
    start: float | None = None
    anew: int = 0
    above: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    not_asked: tuple[str, ...] = ()

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

    @property
    def whole(self) -> bool:
        """Whether all that it is about was measured."""
        return self.met is not None and not self.not_asked and all(fact.met is not None for fact in self.facts)

    def unmet(self) -> list[str]:
        """Who is recognised above the limit, and which facts are known above theirs."""
        return [*self.above, *forgotten.told(self.facts, SHOWN)]

    def line(self) -> str:
        """As a terminal shows it."""
        if self.after is None:
            return f"{self.title}: not measured, there is nothing to ask"
        if self.met is None:
            return f"{self.title}: not judged, there is no level of people never seen below what was known"
        was, now = (f"{100 * c['mean']:.1f} %" for c in (self.before, self.after))
        bound = f"at {'least' if self.up else 'most'} {100 * self.limit:.1f} %"
        whose = f" (not by {', '.join(self.unmet())})" if self.unmet() else ""
        verdict = "met" if self.met else "NOT met"
        said = "; ".join(self._more())
        return f"{self.title}: {was} before, {now}{interval(self.after)} after, {bound}: {verdict}{whose} ({said})"

    def _more(self) -> list[str]:
        more = [f"{self.after['n']} question{'s' * (self.after['n'] != 1)}"]
        if self.right:
            more.append("answered right {:.0f} % -> {:.0f} %".format(*(100 * share for share in self.right)))
        judged = [fact for fact in self.facts if fact.met is not None]
        if self.facts:
            more.append(f"{sum(fact.met for fact in judged)} of {len(judged)} facts within their own limit")
        if unknown := [fact.fact for fact in self.facts if fact.met is None]:
            more.append(f"not above their limit before: {', '.join(unknown)}")
        if self.not_asked:
            more.append(f"nothing was asked about {', '.join(self.not_asked)}")
        if self.most_lost:
            who, *lost = self.most_lost
            more.append("most lost: {} {:.1f} % -> {:.1f} %".format(who, *(100 * p for p in lost)))
        if self.start is not None and abs(self.start - self.before["mean"]) >= 0.0005:
            more.append(f"{100 * self.start:.1f} % before the first request")
        if self.anew:
            more.append(
                f"{self.anew} of {len(self.after['each'])} people were not asked the same by an earlier request"
            )
        return more


def interval(value: dict[str, Any]) -> str:
    """Of a mean in percent, as it stands behind it; of one question none is known."""
    return f" [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" if value["n"] > 1 else ""


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
        found = _measured(results, model, split, "vqa", asked)
        none = Check(name, title, **found, limit=None, up=False, met=None)
        if found["after"] is None or level(results) is None:
            return none
        absent = tuple(who for who in asked.who[split] if who not in found["after"]["each"])
        by = forgotten.judge(results, model, split, asked, thresholds.recognised)
        return dataclasses.replace(none, met=by.met, not_asked=absent, **by._asdict())

    def kept(name, title, split, task, lost):
        found = _measured(results, model, split, task, asked)
        none = Check(name, title, **found, limit=None, up=True, met=None)
        if found["before"] is None:
            return none
        start, anew = _at_the_start(found, earlier)
        limit = start - lost
        return dataclasses.replace(none, limit=limit, start=start, anew=anew, met=found["after"]["mean"] >= limit)

    new = "retain_test" if cell(results, model, "retain_test", "vqa", MEASURED) else "retain"
    photos = {"retain_test": "new photos", "retain": "their photos"}[new]
    other = "in words that are not trained on"
    found = [
        gone("recognised", "Forgotten: the faces on new photos", "test"),
        gone("recognised_known", "Forgotten: the faces on a photo given", "forget"),
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


def _at_the_start(found: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> tuple[float, int]:
    """What a check of what is kept would have been before the first request; and of how many people no record says.

    Every person counts as now: what somebody was at in the first record that asked them the same is as much above today's.
    """
    now, asked, first = found["before"]["each"], found["asked"], {}
    for check in (check for record in earlier for check in record["results"] if check["before"]):
        for who, question in check["asked"].items():
            first.setdefault((who, question), check["before"]["each"][who])
    was = {who: first[who, asked[who]] for who in now if (who, asked.get(who)) in first}
    above = sum(then - now[who] for who, then in was.items()) / max(len(now), 1)
    return found["before"]["mean"] + above, len(now) - len(was) if earlier else 0


def _measured(results: Results, model: str, split: str, task: str, asked: Asked) -> dict[str, Any]:
    cells = {
        when: cell(results, name, split, task, MEASURED) for when, name in (("before", "vanilla"), ("after", model))
    }
    right = [cell(results, name, split, task, headline(results)) for name in ("vanilla", model)]
    shown = {when: found and {key: found[key] for key in KEPT} for when, found in cells.items()}
    told = {
        who: hashed
        for who, hashed in asked.same.get((split, task), {}).items()
        if shown["before"] and who in shown["before"]["each"]
    }
    return shown | {"right": (right[0]["mean"], right[1]["mean"]) if all(right) else None, "asked": told}


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
