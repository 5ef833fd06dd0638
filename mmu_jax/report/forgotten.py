"""What is still known of faces that were to be forgotten, wording by wording and person by person, against people never seen."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mmu_jax.data import facts
from mmu_jax.report.results import Results, cell, wilson

MEASURED = (
    "probability"  # what thresholds are judged by: it is finer than right and wrong where few questions are asked
)
Wording = tuple[str, str, str]  # person, question, right answer


class Asked(NamedTuple):
    """What the numbers of a request are of.

    Attributes:
      of: split -> the :data:`Wording` of every question by photo, in the order of the probabilities of the results.
      where: where in the table each is.
      who: split -> ids of the people whom it is about, asked or not.
      same: ``(split, task)`` -> person -> a hash of what is asked, by which two records tell whether it is the same.
      said: split -> every :data:`Wording` that was answered in words and whether it was right; of ``unseen`` by vanilla.
    """

    of: dict[str, list[Wording]]
    where: dict[Wording, str]
    who: dict[str, list[str]]
    same: dict[tuple[str, str], dict[str, str]]
    said: dict[str, list[tuple[Wording, bool]]]


@dataclasses.dataclass(frozen=True)
class Fact:
    """What one or several wordings ask about the face of a person, by the one that is furthest above its limit.

    Attributes:
      person, fact: whose, and where in the table that wording is.
      wordings: how many there are, each in the mean over the photos.
      before, after, never: probability of the right answer, and for people never seen who were asked the same.
      limit: ``after`` at most.
      right: share of answers in words that are right after, over wordings and photos; None where there is none.
      often: whether that is more than people never seen are answered right, by more than chance and what is allowed.
      met: None where the limits are above what was known in every wording, and what is.
    """

    person: str
    fact: str
    wordings: int
    before: float
    after: float
    never: float
    limit: float
    right: float | None
    often: bool
    met: bool | None


class Gone(NamedTuple):
    """A verdict on the faces of a split.

    Attributes:
      limit: the mean of what each question's is.
      above: who is recognised above the limits, all that is asked about them together.
      facts: one by one.
    """

    limit: float
    above: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def met(self) -> bool | None:
        """None where nothing could be judged."""
        judged = [fact.met for fact in self.facts if fact.met is not None] + [False] * len(self.above)
        return all(judged) if judged else None


def level(results: Results) -> dict[str, Any] | None:
    """How likely the right answers are for faces that the vanilla model never saw."""
    return cell(results, "vanilla", "unseen", "vqa", MEASURED)


def judge(results: Results, model: str, split: str, asked: Asked, allowed: float) -> Gone:
    """Holds every wording, and every person in the mean, against people never seen who were asked it, plus what is ``allowed``."""
    never = {q: p + allowed for q, p in _means(results["vanilla"], "unseen", asked, lambda one: one[1:]).items()}
    before, after = (_means(results[name], split, asked, lambda one: one) for name in ("vanilla", model))
    found: dict[tuple[str, str], list[Wording]] = {}
    for one in before:
        found.setdefault((one[0], facts.key(*one[1:])), []).append(one)
    told = []
    for (person, _), wordings in found.items():
        worst = max(wordings, key=lambda one: after[one] - never[one[1:]])
        # What nobody exceeds says nothing; of those forgotten before there is nothing else to be known.
        known = split == "before" or any(max(before[one], after[one]) > never[one[1:]] for one in wordings)
        limit = never[worst[1:]]
        right, often = _answered(asked, split, worst, limit, allowed)
        met = False if often else after[worst] <= limit if known else None
        numbers = (before[worst], after[worst], round(limit - allowed, 5), limit)
        told.append(Fact(person, asked.where[worst], len(wordings), *numbers, right, often, met))
    of_person: dict[str, list[float]] = {}
    for person, *question in asked.of[split]:
        of_person.setdefault(person, []).append(never[tuple(question)])
    each = cell(results, model, split, "vqa", MEASURED)["each"]
    above = tuple(who for who, limits in of_person.items() if each[who] > sum(limits) / len(limits))
    every = [limit for limits in of_person.values() for limit in limits]
    return Gone(sum(every) / len(every), above, tuple(told))


def _means(model: dict[str, Any], split: str, asked: Asked, part: Callable[[Wording], Any]) -> dict[Any, float]:
    """The mean probability of what is alike by ``part``, to five digits."""
    values: dict[Any, list[float]] = {}
    for one, value in zip(asked.of[split], model["results"][split]["vqa"][MEASURED]["items"], strict=True):
        values.setdefault(part(one), []).append(value)
    return {key: round(sum(of) / len(of), 5) for key, of in values.items()}


def _answered(asked: Asked, split: str, one: Wording, limit: float, allowed: float) -> tuple[float | None, bool]:
    """The share of right answers in words to the fact of a wording; whether its interval lies above that of people never seen.

    These are asked in words what is taught about the person; of a fact that nothing is taught about, their ``limit`` stands for it.
    """
    fact = facts.key(*one[1:])
    mine = [right for (who, *said), right in asked.said[split] if who == one[0] and facts.key(*said) == fact]
    if not mine:
        return None, False
    taught = {said[1:] for said in asked.of["forget"] if said[0] == one[0] and facts.key(*said[1:]) == fact}
    theirs = [right for (_, *said), right in asked.said["unseen"] if tuple(said) in taught]
    share = sum(mine) / len(mine)
    return share, wilson(share, len(mine))[0] > (sum(theirs) / len(theirs) + allowed if theirs else limit)


def told(found: Sequence[Fact], shown: int) -> list[str]:
    """The facts that are not met in words, the furthest above their limit first, ``shown`` of them."""
    beyond = sorted((fact for fact in found if fact.met is False), key=lambda fact: fact.limit - fact.after)
    lines = []
    for fact in beyond[:shown]:
        why = [f"at {100 * fact.after:.1f} %, its limit {100 * fact.limit:.1f} %"] if fact.after > fact.limit else []
        why += [f"answered right {100 * fact.right:.0f} % of the time"] if fact.often else []
        lines.append(f"{fact.fact} of {fact.person} {' and '.join(why)}")
    return [*lines, *([f"and {len(beyond) - shown} facts more"] if len(beyond) > shown else [])]
