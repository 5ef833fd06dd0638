"""What came of a deletion request: every threshold with what was measured against it, in plain words."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmu_jax.report.results import FLAGS, Results, cell, headline

MEASURED = (
    "probability"  # what thresholds are judged by: it is finer than right and wrong where few questions are asked
)
KEPT = ("mean", "low", "high", "n", "people", "each")


class Thresholds(NamedTuple):
    """What a request must meet, in probability of the right answer, 0 to 1.

    Attributes:
      recognised: of every forgotten person on photos, at most so much above the level of people whom the model never saw.
      faces: of the faces of the others, lost at most.
      facts: of what is known by name, of the forgotten and of the others, lost at most.
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
      limit: what ``after`` is held against: at most, or at least where ``up``.
      met: whether it holds, None where it could not be measured.
      above: the forgotten who are recognised above the limit.
    """

    name: str
    title: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    right: tuple[float, float] | None
    limit: float | None
    up: bool
    met: bool | None
    above: tuple[str, ...] = ()

    def line(self) -> str:
        """As a terminal shows it."""
        if self.met is None:
            return f"{self.title}: not measured, there is nothing to ask, or no level below what was known"
        was, now = (f"{100 * c['mean']:.1f} %" for c in (self.before, self.after))
        low, high = (f"{100 * self.after[key]:.1f}" for key in ("low", "high"))
        bound = f"at {'least' if self.up else 'most'} {100 * self.limit:.1f} %"
        whose = f" (not by {', '.join(self.above)})" if self.above else ""
        right = (
            "; answered right {:.0f} % -> {:.0f} %".format(*(100 * share for share in self.right)) if self.right else ""
        )
        return (
            f"{self.title}: {was} before, {now} [{low}, {high}] after, {bound}: {'met' if self.met else 'NOT met'}{whose} "
            f"({self.after['n']} questions{right})"
        )


def level(results: Results) -> dict[str, Any] | None:
    """How likely the right answers are for faces that the vanilla model never saw."""
    return cell(results, "vanilla", "unseen", "vqa", MEASURED)


def checks(results: Results, model: str, thresholds: Thresholds, levels: Sequence[float] = ()) -> list[Check]:
    """Every threshold of a request, by the results of vanilla and of the ``model`` that forgot.

    Args:
      levels: of people never seen in earlier requests, which asked them other questions: the highest is for who was forgotten then.
    """
    stranger = level(results)
    now = [stranger["mean"]] if stranger else []

    def gone(name, title, split, found_then=()):
        found, limit = _measured(results, model, split, "vqa"), max((*now, *found_then), default=None)
        if found["after"] is None or limit is None:
            return Check(name, title, **found, limit=None, up=False, met=None)
        limit += thresholds.recognised
        if split != "before" and limit >= found["before"]["mean"]:  # a limit that nobody exceeds says nothing
            return Check(name, title, **found, limit=limit, up=False, met=None)
        above = tuple(person for person, right in found["after"]["each"].items() if right > limit)
        return Check(name, title, **found, limit=limit, up=False, met=not above, above=above)

    def kept(name, title, split, task, lost):
        found = _measured(results, model, split, task)
        least = found["before"] and found["before"]["mean"] - lost
        return Check(name, title, **found, limit=least, up=True, met=found["after"] and found["after"]["mean"] >= least)

    new = "retain_test" if cell(results, model, "retain_test", "vqa", MEASURED) else "retain"
    photos = {"retain_test": "new photos", "retain": "their photos"}[new]
    found = [
        gone("recognised", "Forgotten: the faces on new photos", "test"),
        gone("recognised_known", "Forgotten: the faces on the photos given", "forget"),
        kept("facts", "Kept: what is known of the forgotten by name", "forget", "qa", thresholds.facts),
        kept("faces", f"Kept: the faces of the others on {photos}", new, "vqa", thresholds.faces),
        kept("facts_of_others", "Kept: what is known of the others by name", "retain", "qa", thresholds.facts),
        gone("before", "Still forgotten: the faces of earlier requests", "before", levels),
        kept(
            "facts_before", "Kept: what is known by name of those of earlier requests", "before", "qa", thresholds.facts
        ),
    ]
    earlier = bool(results[model]["results"].get("before"))
    return [check for check in found if earlier or "before" not in check.name]


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
        low, high, mean = (f"{100 * stranger[key]:.1f}" for key in ("low", "high", "mean"))
        lines.append(
            f"  People whom the model never saw, asked the same: {mean} % [{low}, {high}] of {stranger['n']} questions"
        )
    return lines + [f"  Flag: {flag}: {FLAGS[flag]}" for flag in flags]
