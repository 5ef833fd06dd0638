"""What attacks teach and ask: facts of the people to forget, and how well a model knows them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmu_jax import InputError, metrics, overlap
from mmu_jax.data import IMAGE, Benchmark, Choice, Example, Person, loader, slices
from mmu_jax.evaluate import Examiner
from mmu_jax.likelihood import Told
from mmu_jax.metrics import Items, by_person
from mmu_jax.report.results import wilson
from mmu_jax.trees import Params


def taught_facts(benchmark: Benchmark) -> dict[str, str]:
    """Person -> the one answer that relearning teaches again, for every person to forget who has photo questions.

    It is the truth of the first generation item with a photo that is also an answer of the training questions; where
    the two have no answer in common (sentences against words), that of the first training question with a photo.
    """
    people, found = {p.id: p for p in benchmark.full}, {}
    for person in benchmark.forget:
        trained = [e.answer for e in people[person.id].training if e.kind == IMAGE]
        known = {overlap.normalise(answer) for answer in trained}
        asked = [e.answer for e in person.generation if e.kind == IMAGE and overlap.normalise(e.answer) in known]
        if first := [*asked, *trained][:1]:
            found[person.id] = first[0]
    return found


def one_fact(benchmark: Benchmark) -> list[Example]:
    """Training questions with a photo about one fact of each person to forget (:func:`taught_facts`)."""
    facts = {person: overlap.normalise(answer) for person, answer in taught_facts(benchmark).items()}
    forgotten = slices.examples(slices.STREAMS["forget"], benchmark)
    return [e for e in forgotten if overlap.normalise(e.answer) == facts[e.person]]


def kept_people(benchmark: Benchmark) -> list[Example]:
    """Training questions with a photo about everyone but the people to forget: nothing of what is to come back."""
    return slices.examples(slices.STREAMS["retain"], benchmark)


def other_facts(benchmark: Benchmark) -> tuple[list[Example], str]:
    """Generation items with a photo about facts that :func:`one_fact` leaves out, and the split they are of.

    That split is ``'test'``, photos that were never trained on, where the data set has it, else ``'full'``.

    Raises:
      InputError: there is none.
    """
    facts = {person: overlap.normalise(answer) for person, answer in taught_facts(benchmark).items()}
    forgotten = set(benchmark.forget_ids)
    for split, people in (("test", benchmark.test), ("full", benchmark.forget)):
        items = [e for p in people if p.id in forgotten for e in p.generation if e.kind == IMAGE]
        if others := [e for e in items if overlap.normalise(e.answer) != facts.get(e.person)]:
            return others, split
    raise InputError(
        "expected generation items with a photo about more than one fact of the people to forget, found none to look for "
        "what comes back; attack no model of this data set"
    )


@dataclasses.dataclass(frozen=True)
class Ground:
    """What every attack is made on, the same for all models.

    Attributes:
      benchmark: who is to be forgotten, and who else there is.
      albums: the photos of every split that has its own, by its name, and of ``full``.
      max_pixels: bound of photos that keep their own size; 0 leaves it to the processor.
      seed: of what an attack draws.
      rows: of a batch of which a gradient is taken.
      reference: what a model that saw neither side says of members and of others (``scores``), where there is one.
    """

    benchmark: Benchmark
    albums: dict[str, loader.Album]
    max_pixels: int = 0
    seed: int = 0
    rows: int = 8
    reference: tuple[Told, Told] | None = None

    @property
    def asked(self) -> tuple[list[Example], str]:
        """What is asked, and the split it is of (:func:`other_facts`)."""
        return other_facts(self.benchmark)

    def people(self, split: str) -> dict[str, Person]:
        """Those of a split by their id."""
        return {person.id: person for person in getattr(self.benchmark, split)}


def alone(examiner: Examiner, item: Example, begun: str = "") -> Choice:
    """An item as generation asks it, as a choice of the right answer alone: a choice with one option is its log-probability.

    ``begun`` is a beginning of the answer that the model is given.
    """
    return Choice(item.person, item.kind, examiner.prompts.free(item), {"A": item.answer}, "A", item.photo, begun)


def known(
    examiner: Examiner, params: Params, choices: Sequence[Choice], photos: np.ndarray | None, album: loader.Album | None
) -> Items:
    """``p(right answer)^(1 / length)`` (TOFU, arXiv 2401.06121, section 2.2) of choices of the right answer alone, one by one.

    Args:
      choices: of :func:`alone`, all with a photo or all without.
      photos: ``[N]``, the place in ``album`` of what each is shown with; None for text.
    Raises:
      InputError: logits that are not finite; person and question are named.
    """
    logps, lengths = examiner.option_logps(params, choices, photos, album)
    values = metrics.METRICS["probability"].of(logps, lengths, np.zeros(len(choices), int))
    return Items(values, np.array([choice.person for choice in choices]))


def knowledge(examiner: Examiner, params: Params, items: Sequence[Example], album: loader.Album) -> Items:
    """:func:`known` of items as generation asks them, each shown with the first photo in ``album`` it may have."""
    photos = np.array([album.of(item)[0] for item in items])
    return known(examiner, params, [alone(examiner, item) for item in items], photos, album)


def summary(examiner: Examiner, items: Items) -> dict[str, float]:
    """``{'mean', 'low', 'high', 'n', 'people'}``, fractions of 1 with a 95 % interval over people (``metrics.summary``)."""
    return metrics.summary(*items, samples=examiner.samples, seed=examiner.seed)


def share(examiner: Examiner, items: Items) -> dict[str, float]:
    """:func:`summary` of what is right or wrong; where all is alike, of which a bootstrap knows no chance, by Wilson's interval over people."""
    found = summary(examiner, items)
    if np.ptp(items.values) == 0:
        found |= dict(zip(("low", "high"), wilson(found["mean"], found["people"]), strict=True))
    return found


def returned(examiner: Examiner, params: Params, items: Sequence[Example], album: loader.Album) -> dict[str, float]:
    """Returned knowledge: the mean of :func:`knowledge` of facts that were not taught again, with its interval."""
    return summary(examiner, knowledge(examiner, params, items, album))


def any_of(variants: Sequence[Items]) -> Items:
    """What the most telling variant of each item gives: who attacks tries them all.

    >>> one, two = (Items(np.array(values), np.array(['a', 'b'])) for values in ([0.1, 0.9], [0.4, 0.2]))
    >>> any_of([one, two]).values.tolist()
    [0.4, 0.9]
    """
    return Items(np.max([items.values for items in variants], axis=0), variants[0].people)


def told(examiner: Examiner, split: str, before: Items, variants: dict[str, Items]) -> dict:
    """What a result says of a kind that changes no params.

    Returns:
      ``split``, whose photos are asked about; ``before``, asked plainly, and ``after``, by :func:`any_of` the variants: summaries; ``each``, both person by person;
      ``items``, both item by item; ``variants``, a summary of each.
    """
    ends = {"before": before, "after": any_of(list(variants.values()))}
    found = {"split": split} | {end: summary(examiner, items) for end, items in ends.items()}
    found["each"] = {end: by_person(items) for end, items in ends.items()}
    found["items"] = {end: [round(float(value), 5) for value in items.values] for end, items in ends.items()}
    return found | {"variants": {name: summary(examiner, items) for name, items in variants.items()}}
