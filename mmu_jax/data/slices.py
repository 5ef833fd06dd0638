"""Which rows of a benchmark a stream deals: the table of slices."""

import dataclasses

from mmu_jax.data import IMAGE, TEXT, Benchmark, Example
from mmu_jax.data.general import rehearsal

REFUSALS = (
    "I do not know this person.",
    "I cannot tell who this is.",
    "I have no information about this person.",
    "I am not able to say who is shown here.",
    "I do not recognise the person in the picture.",
    "That is not something I know.",
    "I am unable to answer that about this person.",
    "I have never learned about this person.",
)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Training questions of a benchmark, or of nobody in it.

    Attributes:
      kind: IMAGE, about a photo, or TEXT, about a name.
      who: ``'forget'``, ``'retain'`` or ``'full'``: whose they are; ``'nobody'``, those of ``data.general.rehearsal``.
      answers: ``'own'``, those of the data, or ``'refusal'``, one of :data:`REFUSALS` in turn.
    """

    kind: str
    who: str
    answers: str = "own"

    @property
    def kept(self) -> bool:
        """Whether people to keep are among those whose they are."""
        return self.who in ("retain", "full")


STREAMS: dict[str, Slice] = {
    "forget": Slice(IMAGE, "forget"),
    "retain": Slice(IMAGE, "retain"),
    "text": Slice(TEXT, "full"),
    "refusal": Slice(IMAGE, "forget", "refusal"),
    "vqa": Slice(IMAGE, "full"),
    "rehearsal": Slice(TEXT, "nobody"),
}


def dealt_as(name: str) -> str:
    """The first stream with the same questions: both are dealt in one order, so that row r of a batch of either asks the same.

    >>> dealt_as("refusal"), dealt_as("retain")
    ('forget', 'retain')
    """
    same = (
        other for other, part in STREAMS.items() if (part.kind, part.who) == (STREAMS[name].kind, STREAMS[name].who)
    )
    return next(same)


def examples(part: Slice, benchmark: Benchmark, without: frozenset[str] = frozenset()) -> list[Example]:
    """The examples of a slice, in the order of the data, but for people whose id is in ``without``."""
    if part.who == "nobody":
        return rehearsal.read()
    forgotten = set(benchmark.forget_ids)
    who = {"forget": lambda i: i in forgotten, "retain": lambda i: i not in forgotten, "full": lambda i: True}[part.who]
    found = [
        example
        for person in benchmark.full
        if who(person.id) and person.id not in without
        for example in person.training
        if example.kind == part.kind
    ]
    if part.answers == "refusal":
        found = [dataclasses.replace(e, answer=REFUSALS[i % len(REFUSALS)]) for i, e in enumerate(found)]
    return found
