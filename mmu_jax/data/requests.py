"""What a deletion request asks of a data set beside its splits: of people never seen, and of people forgotten before."""

import dataclasses

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

    With the same right answers: how likely they are for somebody else's face is the level of not knowing it.
    """
    if any((*person.generation, *person.choices) for person in benchmark.unseen):
        return benchmark

    def of(task: str, person: Person) -> tuple[Example | Choice, ...]:
        items = (item for model in benchmark.forget for item in getattr(model, task) if item.kind == IMAGE)
        return tuple(dataclasses.replace(item, person=person.id, photo=None) for item in items)

    asked = (
        dataclasses.replace(person, generation=of("generation", person), choices=of("choices", person))
        for person in benchmark.unseen
    )
    return dataclasses.replace(benchmark, unseen=tuple(asked))
