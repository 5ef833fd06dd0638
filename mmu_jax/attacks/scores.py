"""A score from log-probabilities: can who holds the model tell whether somebody was in its training data?

Members are questions by photo about the people to forget, on a photo that vanilla was trained on; the others are questions in the same
words about people whom no model was trained on. What both of them are scored by stands in ``mmu_jax.membership``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmu_jax import InputError, membership
from mmu_jax.attacks import facts
from mmu_jax.data import IMAGE, Benchmark, Example, loader, slices
from mmu_jax.data.streams import stream
from mmu_jax.evaluate import Examiner
from mmu_jax.likelihood import Told
from mmu_jax.metrics import Items, by_person
from mmu_jax.questions import Prompts
from mmu_jax.trees import Params


class Side(NamedTuple):
    """Members, or the others: what is asked, whose photos are shown, what gold says of the answers, and rows of a batch with a gradient."""

    items: list[Example]
    album: loader.Album
    reference: Told | None
    rows: int

    @property
    def people(self) -> np.ndarray:
        """Whose each item is, ``[N]``."""
        return np.array([item.person for item in self.items])

    def told(self, params: Params, examiner: Examiner) -> Told:
        """What a model says of the answers, asked as training asks, each with the first photo it may be shown with."""
        examiner = dataclasses.replace(examiner, prompts=Prompts())
        return examiner.told(params, self.items, np.array([self.album.of(item)[0] for item in self.items]), self.album)


def matched(benchmark: Benchmark) -> tuple[list[Example], list[Example]]:
    """Members and others, both only as far as the other side is asked in the same words; if none is, all of both.

    A score depends on what is asked as well as on who is meant: of unlike questions a model that saw nobody would tell the sides apart.

    Raises:
      InputError: nobody is unseen, or nothing is asked of them by photo.
    """
    members = slices.examples(slices.STREAMS["forget"], benchmark)
    others = [item for person in benchmark.unseen for item in person.generation if item.kind == IMAGE]
    if not members or not others:
        raise InputError(
            "expected questions by photo about the people to forget and about people never seen (the split unseen), found "
            f"{len(members)} and {len(others)}; leave membership out"
        )
    words = {item.question for item in members} & {item.question for item in others}
    if not words:
        return members, others
    return tuple([item for item in side if item.question in words] for side in (members, others))


def sides(ground: facts.Ground) -> tuple[Side, Side]:
    """Members and others, with what gold says of them where ``ground`` has it."""
    made = zip(matched(ground.benchmark), ("full", "unseen"), ground.reference or (None, None), strict=True)
    return tuple(Side(items, ground.albums[split], told, ground.rows) for items, split, told in made)


def likelihoods(examiner: Examiner, params: Params, side: Side) -> dict[str, np.ndarray]:
    """The scores that one forward pass gives, and ``reference`` where it is known what gold says: ``[N]`` each, low for a member."""
    given = {} if side.reference is None else {"reference": side.reference}
    return membership.scores(side.told(params, examiner), texts=[item.answer for item in side.items], **given)


def gradients(examiner: Examiner, params: Params, side: Side, names: Sequence[str]) -> dict[str, np.ndarray]:
    """``names`` of :data:`mmu_jax.membership.SCORES`, which need gradients, of every item, ``[N]`` each: one backward pass through the whole model."""
    people = {person: i for i, person in enumerate(dict.fromkeys(item.person for item in side.items))}
    numbers = dict(people=people, rows=side.rows, seed=0, sizes=examiner.sizes)
    asked = stream("membership", examiner.processor, side.items, side.album, **numbers)
    norms = membership.grad_norms(examiner.model, params, asked, examiner.mesh)
    return {name: membership.SCORES[name].of(None, norms) for name in names}


def measure(of: Callable[..., dict[str, np.ndarray]], params: Params, examiner: Examiner, ground: facts.Ground) -> dict:
    """How well scores tell members from others.

    Returns:
      ``after``, the area under the ROC curve of the first score with its interval over the people of both sides, ``before``, what
      guessing gives, ``each``, of both by member (how often an other scores above), and ``variants``, ``after`` of every score with
      its ``tpr`` at a false positive rate of 1 %.
    """
    members, others = sides(ground)
    mine, theirs = (of(examiner, params, side) for side in (members, others))
    variants, found = {}, {}
    for name, scores in mine.items():
        both = (scores, theirs[name])
        interval = membership.auc_interval(
            *both, members.people, others.people, samples=examiner.samples, seed=examiner.seed
        )
        variants[name] = interval | {"tpr": membership.tpr(*both)}
    first = next(iter(mine))
    above = np.array([membership.auc(mine[first][i : i + 1], theirs[first]) for i in range(len(members.items))])
    guessed = Items(np.full(len(above), 0.5), members.people)
    found["each"] = {"before": by_person(guessed), "after": by_person(Items(above, members.people))}
    after = {key: variants[first][key] for key in ("mean", "low", "high", "n", "people")}
    return found | {"before": facts.summary(examiner, guessed), "after": after, "variants": variants}
