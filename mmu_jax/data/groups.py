"""Groups: whom a study of a data set forgets, the people of its own split or any other as many."""

import dataclasses

import numpy as np

from mmu_jax import InputError
from mmu_jax.data import Benchmark, Person

SEED = 0  # of the permutation; with another, every number but 0 would be another group


def deal(benchmark: Benchmark, group: int) -> Benchmark:
    """The benchmark in which the people of ``group`` are to be forgotten and all others it asks about are kept.

    Group 0 are those in ``forget``. Groups 1, 2, ... are as many people each, dealt by a fixed permutation from those in
    ``retain``; nobody is in two, and fewer than a group may be left in none.

    Args:
      benchmark: one whose ``test`` is the whole split. It becomes ``test`` and ``retain_test``; people of it who are in
        neither of ``forget`` and ``retain`` are left out.
    Returns:
      One with the same ``full``, so what is trained on everyone serves every group. People are in the order of their ids.
    Raises:
      InputError: there is no such group.
    """
    size, count = len(benchmark.forget), 1 + len(benchmark.retain) // len(benchmark.forget)
    if not 0 <= group < count:
        raise InputError(
            f"expected one of {count} groups of {size} people (0, the forget split, to {count - 1}), found group {group}; "
            "choose one of these, or a smaller forget split, which makes more of them"
        )
    asked = sorted((*benchmark.forget, *benchmark.retain), key=lambda person: person.id)
    dealt = np.random.default_rng(SEED).permutation(sorted(person.id for person in benchmark.retain))
    forgotten = set(dealt[(group - 1) * size : group * size].tolist() if group else benchmark.forget_ids)
    kept = {person.id for person in asked} - forgotten

    def among(people: tuple[Person, ...] | list[Person], ids: set[str]) -> tuple[Person, ...]:
        return tuple(person for person in people if person.id in ids)

    return dataclasses.replace(
        benchmark,
        forget=among(asked, forgotten),
        retain=among(asked, kept),
        test=among(benchmark.test, forgotten),
        retain_test=among(benchmark.test, kept),
    )
