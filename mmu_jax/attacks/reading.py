"""What is it about them? A linear head that reads answers out of hidden states, learnt on people to keep alone.

A model may hold an answer and keep it from its last layers. Where the same question is asked about many people, which direction of a
hidden state is which answer can be learnt on people whom the model is to keep, and then be asked about the forgotten: no photo, no
answer and no name of theirs is in the head, its scale, its strength or the choice of its layer. This is entity-disjoint in full, and
who was never taught the forgotten can only guess: gold's level is near chance.
"""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mmu_jax import InputError
from mmu_jax.attacks import facts, probe
from mmu_jax.data import IMAGE, Benchmark, Example
from mmu_jax.evaluate import Examiner
from mmu_jax.metrics import Items, by_person
from mmu_jax.trees import Params

PEOPLE = 120  # to learn a head on, at most
FOLDS = 5  # of these people, to settle its strength


def lessons(benchmark: Benchmark) -> tuple[list[Example], str]:
    """What a head is learnt on: questions by photo about people to keep, on new photos where there are any; and the split."""
    split = "retain_test" if benchmark.retain_test else "retain"
    people = getattr(benchmark, split)[:PEOPLE]
    return [item for person in people for item in person.generation if item.kind == IMAGE], split


def asked(benchmark: Benchmark) -> tuple[list[Example], list[Example], str, str]:
    """What a head is learnt on and what it is asked: of the facts that no attack teaches those with an answer that several people share.

    Returns:
      Lessons and questions, only such as are asked in the same words of both, and the split of each.
    Raises:
      InputError: there is no such question.
    """
    taught, kept = lessons(benchmark)
    items, split = facts.other_facts(benchmark)
    answers = collections.defaultdict(collections.Counter)
    for item in taught:
        answers[item.question][item.answer] += 1
    found = [item for item in items if answers[item.question][item.answer] and len(answers[item.question]) > 1]
    words = {item.question for item in found}
    if not found:
        raise InputError(
            "expected questions by photo that are asked of people to forget and in the same words of people to keep with the same answer, "
            "found none to read out; leave probe_facts out"
        )
    return [item for item in taught if item.question in words], found, kept, split


def check(benchmark: Benchmark) -> None:
    """Raises InputError where no answer about the forgotten is also one about people to keep (:func:`asked`)."""
    asked(benchmark)


def told(
    x: np.ndarray, taught: Sequence[Example], new: np.ndarray, items: Sequence[Example], strength: float
) -> np.ndarray:
    """Whether the answer of each item ``[M]`` is read out of ``new [M, D]`` by heads, one a question, learnt on ``x [N, D]``, bool."""
    right = np.zeros(len(items), bool)
    for question in {item.question for item in items}:
        own, put = (np.array([i.question == question for i in each]) for each in (taught, items))
        answers = np.array([item.answer for item in taught])[own]
        head = probe.ridge(x[own], answers, strength)
        right[put] = head(new[put]) == np.array([item.answer for item in items])[put]
    return right


def settled(x: np.ndarray, taught: Sequence[Example]) -> tuple[float, float]:
    """The strength at which heads read most answers about people whom they were not learnt on, and that share."""
    people = list(dict.fromkeys(item.person for item in taught))
    fold = np.array([people.index(item.person) % FOLDS for item in taught])

    def share(strength):
        right = []
        for out in range(FOLDS):
            (inside, outside) = ([i for i in np.flatnonzero((fold == out) == put)] for put in (False, True))
            rows = [[taught[i] for i in part] for part in (inside, outside)]
            known = {item.question for item in rows[0]}
            keep = [j for j, item in enumerate(rows[1]) if item.question in known]
            if keep:
                right.append(told(x[inside], rows[0], x[outside][keep], [rows[1][j] for j in keep], strength))
        return float(np.mean(np.concatenate(right))) if right else 0.0

    shares = {strength: share(strength) for strength in probe.STRENGTHS}
    best = max(probe.STRENGTHS, key=lambda s: (shares[s], s))
    return best, shares[best]


def measure(of: Callable[..., dict[str, jax.Array]], params: Params, examiner: Examiner, ground: facts.Ground) -> dict:
    """The share of answers about the forgotten that are read out, by the layer that tells most about people to keep.

    Returns:
      ``split``; ``before``, what guessing among the answers of the lessons gives, and ``after``: summaries; ``each``; ``variants``, a
      summary of each layer; ``others``, the share that each reads right about people to keep whom its head did not see.
    Raises:
      InputError: as :func:`asked`, or a hidden state is not finite.
    """
    taught, items, kept, split = asked(ground.benchmark)
    albums = [ground.albums[s if s in ground.albums else "full"] for s in (kept, split)]
    known, new = (probe.features(of, params, examiner, *each) for each in zip((taught, items), albums, strict=True))
    people, shares, variants = np.array([item.person for item in items]), {}, {}
    for name, x in known.items():
        centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        x, y = ((each - centre) / scale for each in (x, new[name]))
        strength, shares[name] = settled(x, taught)
        variants[name] = Items(told(x, taught, y, items, strength).astype(float), people)
    best = variants[max(shares, key=shares.get)]
    sizes = collections.Counter(question for question, _ in {(item.question, item.answer) for item in taught})
    guessed = Items(np.array([1 / sizes[item.question] for item in items]), people)
    found = {"before": facts.summary(examiner, guessed), "after": facts.share(examiner, best)}
    found |= {"split": split, "each": {"before": by_person(guessed), "after": by_person(best)}}
    return found | {"variants": {n: facts.share(examiner, each) for n, each in variants.items()}, "others": shares}
