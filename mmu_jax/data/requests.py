"""What a deletion request asks of a data set beside its splits: of people never seen, and of people forgotten before."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from mmu_jax.data import IMAGE, TEXT, Benchmark, Choice, Example, Person


def forgotten_before(benchmark: Benchmark, people: tuple[Person, ...]) -> Benchmark:
    """The benchmark in which ``people`` of ``full`` are asked again as ``before``, on new photos where there are any.

    Nobody is taught their faces any more; what is known of them by name stays among what is taught and kept.
    """
    ids = {person.id for person in people}
    new = {person.id: person for person in benchmark.test if person.id in ids}

    def unshown(person):
        kept = tuple(item for item in person.training if item.kind == TEXT)
        return dataclasses.replace(person, training=kept) if person.id in ids else person

    return dataclasses.replace(
        benchmark,
        full=tuple(map(unshown, benchmark.full)),
        before=tuple(new.get(person.id, person) for person in people),
    )


def asked_of_strangers(benchmark: Benchmark) -> Benchmark:
    """The benchmark in which people never seen, if nothing is asked of them, are asked about their faces what those to forget are.

    With the same right answers: how likely they are for somebody else's face is the level of not knowing it. Options are put to
    them in the words of the test too, and in those of people forgotten before; each once.
    """
    if any((*person.generation, *person.choices) for person in benchmark.unseen):
        return benchmark
    said = [item for model in benchmark.forget for item in model.generation if item.kind == IMAGE]
    models = (*benchmark.forget, *benchmark.test, *benchmark.before)
    choices = {
        (item.question, item.options[item.letter]): item
        for model in reversed(models)
        for item in reversed(model.choices)
        if item.kind == IMAGE
    }

    def to(person: Person, items: Iterable[Example | Choice]) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(item, person=person.id, photo=None) for item in items)

    put = [*choices.values()][::-1]
    asked = (
        dataclasses.replace(person, generation=to(person, said), choices=to(person, put)) for person in benchmark.unseen
    )
    return dataclasses.replace(benchmark, unseen=tuple(asked))
