"""Models compared over pairs of seed and group, on the same people: means, paired differences, ranks, each with its interval."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mmu_jax import InputError, metrics
from mmu_jax.methods import METHODS
from mmu_jax.report.results import AXES, Axis, Results, better_up, cell, headline, judged_by
from mmu_jax.report.runs import Merged, Pair

Values = dict[str, dict[Pair, np.ndarray]]  # model -> pair -> [people]
EVERYONE = "everyone"  # stands for the people of a file that does not tell them apart


class Interval(NamedTuple):
    """A mean over ``pairs`` pairs and its 95 % interval, which has no ends where nothing says how far it may be off.

    ``above`` counts the pairs whose own mean is above 0.
    """

    mean: float
    low: float
    high: float
    pairs: int
    above: int


@dataclasses.dataclass(frozen=True)
class Column:
    """An axis by a metric: what every model has on it, and how that compares.

    Attributes:
      values: model -> pair -> ``[people]``, in one order for all models of a pair.
      by_person: whether every file has its values person by person; where one has not, a pair is one number.
    """

    axis: Axis
    metric: str
    values: Values
    by_person: bool = True
    _draws: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @property
    def up(self) -> bool:
        """Whether a higher value is the good direction."""
        return better_up(self.axis, self.metric)

    def mean(self, name: str) -> Interval:
        """Of a model over the pairs that have it, each pair and in it each person counted once."""
        return self._over({name: 1.0})

    def minus(self, name: str, other: str) -> Interval | None:
        """One model minus another, paired person by person over the pairs that have both; None where there is none."""
        if self.values.get(name, {}).keys() & self.values.get(other, {}).keys():
            return self._over({name: 1.0, other: -1.0})
        return None

    def better(self, name: str, other: str) -> bool:
        """Whether a model is better than another, by an interval of their difference without 0."""
        by = self.minus(name, other)
        return by is not None and (by.low > 0 if self.up else by.high < 0)

    def ranks(self) -> dict[str, int]:
        """Of every method one more than how many are better; those that cannot be told apart share a rank."""
        methods = [name for name in self.values if name in METHODS]
        return {name: 1 + sum(self.better(other, name) for other in methods if other != name) for name in methods}

    def _over(self, weights: dict[str, float]) -> Interval:
        """A weighted sum of models over the pairs that have all of them."""
        first, *others = (self.values[name] for name in weights)
        shared = tuple(pair for pair in first if all(pair in other for other in others))
        own = [sum(w * self.values[name][pair].mean() for name, w in weights.items()) for pair in shared]
        low, high = -math.inf, math.inf
        if len(shared) > 1 or len(first[shared[0]]) > 1:  # else it is one number
            names, draws = self._drawn(shared)
            low, high = np.percentile(sum(w * draws[:, names.index(n)] for n, w in weights.items()), [2.5, 97.5])
        return Interval(float(np.mean(own)), float(low), float(high), len(shared), sum(value > 0 for value in own))

    def _drawn(self, shared: tuple[Pair, ...]) -> tuple[list[str], np.ndarray]:
        """The models that all of these pairs have, and their means drawn anew, ``[samples, models]``."""
        if shared not in self._draws:
            names = [name for name, of in self.values.items() if all(pair in of for pair in shared)]
            stacked = {pair: np.stack([self.values[name][pair] for name in names], axis=1) for pair in shared}
            self._draws[shared] = names, metrics.nested_draws(stacked)
        return self._draws[shared]


def columns(merged: Merged, metric: str = "") -> list[Column]:
    """The axes that were evaluated, by a metric; by the one that judges them where none is named.

    Raises:
      InputError: the models of a pair were asked about other people.
    """
    main = headline(next(iter(merged.values())))
    found = []
    for axis in AXES:
        judges = {judged_by(results, axis) for results in merged.values()}
        found.append(_column(merged, axis, metric or (main if main in judges else "mcq")))
    return [column for column in found if column.values]


def _column(merged: Merged, axis: Axis, metric: str) -> Column:
    cells = list(_cells(merged, axis, metric))
    by_person, values, people = all("each" in value for _, _, value in cells), {}, {}
    for name, pair, value in cells:
        each = value["each"] if by_person else {EVERYONE: value["mean"]}
        if people.setdefault(pair, sorted(each)) != sorted(each):
            raise InputError(
                f"expected every model of seed {pair[0]}, group {pair[1]} asked about the same people, found others for {name} on "
                f"{axis.title}; leave that run out"
            )
        values.setdefault(name, {})[pair] = np.array([each[person] for person in people[pair]], float)
    return Column(axis, metric, values, by_person)


def _cells(merged: Merged, axis: Axis, metric: str) -> Iterable[tuple[str, Pair, dict[str, Any]]]:
    for pair, results in merged.items():
        for name in results:
            if found := cell(results, name, axis.split, axis.task, metric):
                yield name, pair, found


def pooled(merged: Merged, shown: list[Column]) -> Results:
    """Models with their means over the pairs, as far as figures read the results of one workdir; ``n`` counts pairs."""
    there = {name for results in merged.values() for name in results}
    names = [name for name in ("vanilla", "gold", *METHODS) if name in there]
    told: Results = {name: {"results": {}} for name in names}
    for column in shown:
        for name in column.values:
            by = column.mean(name)
            low, high = (end if math.isfinite(end) else by.mean for end in (by.low, by.high))
            task = told[name]["results"].setdefault(column.axis.split, {}).setdefault(column.axis.task, {})
            task[column.metric] = {"mean": by.mean, "low": low, "high": high, "n": by.pairs}
    told["vanilla"]["config"] = {"evaluate": {"headline": headline(next(iter(merged.values())))}}
    return told
