"""A method with the numbers it runs with: how often it steps, with which optimizer, and what a person is told of it."""

import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import optax

from mmu_jax import InputError, curvature, masks, optimizers, transforms, trees
from mmu_jax.curvature import Factors
from mmu_jax.data.slices import STREAMS
from mmu_jax.data.streams import Stream
from mmu_jax.phases import Method, Phase
from mmu_jax.trainable import Trainable
from mmu_jax.trees import Mask, Params


@dataclasses.dataclass(frozen=True)
class Stop:
    """When enough is forgotten: no more is known of the people than of people never seen.

    The mean probability of the right answers about the people to forget is looked at, on photos that are trained on, none of the
    test's; when it is at the level or below, the run ends there. Looks are as dense as the run needs to end close to it: the
    next is half way to where the level is met by the steeper of the falls to the last one from the two before.

    >>> stop = Stop(0.2, every=8)
    >>> stop.next([]), stop.next([(40, 0.50), (48, 0.49)]), stop.next([(40, 0.40), (48, 0.31)])
    (1, 56, 52)

    Where there are ``facts``, the one that is furthest above its own level counts as much above ``level``, if the mean is not.

    Attributes:
      level: a mean of ``p(answer)^(1 / length)``, from 0 to 1.
      every: iterations between two looks, at most; nor are they ever more than a quarter of those made.
      whose: what the level is, in words.
      facts: rows of the watched stream that ask for one fact, and the level of it; each.
    Raises:
      InputError: a level that is no probability, or less than an iteration between two looks.
    """

    level: float
    every: int = 8
    whose: str = "the level of people never seen"
    facts: tuple[tuple[tuple[int, ...], float], ...] = ()

    def __post_init__(self):
        if not 0 <= self.level <= 1 or self.every < 1:
            raise InputError(
                f"expected a level from 0 to 1 and at least an iteration between two looks, found level={self.level:g}, "
                f"every={self.every}; correct them, or give no Stop"
            )

    def value(self, mean: float, each: np.ndarray) -> float:
        """What is looked at, of the ``mean`` and of ``each [N]`` of the watched answers.

        >>> stop = Stop(0.2, facts=(((0, 1), 0.1), ((2,), 0.3)))
        >>> round(stop.value(0.2, np.array([0.2, 0.2, 0.2])), 3)  # the first is 0.1 above its level
        0.3
        """
        above = (float(each[list(rows)].mean()) - level for rows, level in self.facts)
        return float(np.float32(max(mean, self.level + max(above, default=-1.0)))) if self.facts else mean

    def next(self, looks: Sequence[tuple[int, float]]) -> int:
        """After how many iterations to look next, where ``looks`` are those so far, ``(iterations, value)`` each."""
        if len(looks) < 2:
            return len(looks) + 1
        last, value = looks[-1]
        between = min(self.every, last // 4)
        if (fall := max((was - value) / (last - before) for before, was in looks[-3:-1])) > 0:
            between = min(between, (value - self.level) / fall / 2)
        return last + max(int(between), 1)

    def reached(self, value: float | None) -> bool:
        return value is not None and value <= self.level


LIMITS = ("projected", "clip after mask", "clip before mask")
EVEN = optimizers.Pace()  # steps as long as one


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update, but for the pace, which a compiled program is given.

    >>> Optimizer(1.0, limit='mask')
    Traceback (most recent call last):
    mmu_jax.InputError: expected a limit among projected, clip after mask, clip before mask or none, found 'mask'; correct it

    Attributes:
      clip: global norm that a gradient may have.
      adam: keyword arguments of ``optimizers.adam``, ``(name, value)`` each.
      limit: what holds the update back: of :data:`LIMITS`, or nothing.
      gradients_only: of ``transforms.masked``.
      schedule: of ``optimizers.learning_rate``.
    Raises:
      InputError: a limit that is none.
    """

    clip: float
    adam: tuple[tuple[str, Any], ...] = ()
    limit: str = ""
    gradients_only: bool = False
    schedule: str = "constant"

    def __post_init__(self):
        if self.limit and self.limit not in LIMITS:
            raise InputError(f"expected a limit among {', '.join(LIMITS)} or none, found {self.limit!r}; correct it")

    def transform(self, pace: optimizers.Pace = EVEN) -> optax.GradientTransformationExtraArgs:
        """Clip, Adam, decay, and the learning rate of ``pace``; masked where the method puts the mask, or projected last.

        Its state does not depend on ``pace``, which may be traced.

        Raises:
          InputError: an unknown schedule or arithmetic.
        """
        rates = optimizers.learning_rate(pace, self.schedule)
        adam = partial(optimizers.adam, rates, **dict(self.adam))
        masked = partial(transforms.masked, gradients_only=self.gradients_only)
        match self.limit:
            case "projected":
                return transforms.projected(adam(clip=self.clip))
            case "clip after mask":
                return masked(adam(clip=self.clip))
            case "clip before mask":
                return optimizers.clipped(masked(adam()), self.clip)
        return adam(clip=self.clip)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A method with the numbers it runs with.

    >>> from mmu_jax.methods import METHODS
    >>> p = Plan(METHODS['mmunlearner'], 8, spacing=4, lap=8, turns=2)
    >>> [p.turn(p.method.phases[0], i) for i in range(8)]
    [0, None, None, None, 1, None, None, None]

    Attributes:
      method: a row of ``methods.METHODS``.
      iterations: how often the phases run.
      spacing: iterations between two steps of a spread phase.
      lap: iterations of one pass over the stream that leads, in each of which the spread phases start anew.
      turns: the most steps of a spread phase in a lap: the batches of its stream.
      learning_rate, schedule, warmup, clip: of ``optimizers``; ``clip`` is a global norm.
      retain_rate: learning rate of the phases that only descend, None for the same; with Adam this ratio is what a
        weight on the forget loss would be without it.
      adam: keyword arguments of ``optimizers.adam``; those of the method win.
      trainable: what trains, None for what of the params the method does.
      seed: of what is drawn at random.
      stop: when to end before the last iteration, None for never.
    Raises:
      InputError: the method would not do what its row says with that ``trainable``.
    """

    method: Method
    iterations: int
    spacing: int = 1
    lap: int = sys.maxsize
    turns: int = sys.maxsize
    learning_rate: float = 1e-5
    retain_rate: float | None = None
    schedule: str = "constant"
    warmup: float = 0.0
    clip: float = 1.0
    adam: dict[str, Any] = dataclasses.field(default_factory=dict)
    trainable: Trainable | None = None
    seed: int = 0
    stop: Stop | None = None

    def __post_init__(self):
        if self.trainable is None:
            object.__setattr__(self, "trainable", self.method.trains())
        self.trainable.check(self.method)

    @classmethod
    def of(cls, method: Method, streams: dict[str, Stream], epochs: float, **numbers: Any) -> "Plan":
        """``epochs`` passes over the longest stream the method steps through one batch at a time.

        Methods that take the retain batches one by one pass over the retain stream, or where that is the shorter one over the
        forget stream; those that pair each forget batch with something pass over the forget stream.

        Args:
          streams: by the names the method's losses use.
          numbers: other attributes.
        Raises:
          InputError: a stream is missing, or the method would not do what its row says.
        """
        used = method.streams
        if missing := used - streams.keys():
            raise InputError(
                f"expected streams {sorted(used)} for this method, found no {sorted(missing)}; provide them"
            )
        alone = {name for phase in method.phases if not phase.spread for name in phase.losses}
        about = sorted(name for name in alone if name in STREAMS and STREAMS[name].who == "forget")
        lead = max(about or alone, key=lambda name: streams[name].steps)
        lap = streams[lead].steps
        if spread := {name for phase in method.phases if phase.spread for name in phase.losses}:
            turns = max(streams[name].steps for name in spread)
            lap = max(lap, turns)  # where little is replayed, it comes round several times in a pass
            numbers |= {"spacing": lap // turns, "lap": lap, "turns": turns}
        return cls(method, math.ceil(epochs * lap), **numbers)

    def moments(self, index: int) -> str:
        """The name of the optimizer state that phase ``index`` uses."""
        return "shared" if self.method.moments == "shared" else f"phase{index}"

    def turn(self, phase: Phase, iteration: int) -> int | None:
        """The batch that a phase takes in an iteration, None where it rests.

        In a lap of R iterations, with F batches of its own and ``f = R // F``, a spread phase takes ``min(ceil(R / f), F)``
        steps: each batch once, none twice.
        """
        if not phase.spread:
            return iteration
        lap, place = divmod(iteration, self.lap)
        index, between = divmod(place, self.spacing)
        return None if between or index >= self.turns else lap * self.turns + index

    def steps(self, moments: str) -> int:
        """Steps that the phases with one optimizer state take in all."""
        phases = [phase for index, phase in enumerate(self.method.phases) if self.moments(index) == moments]
        return sum(self.turn(phase, i) is not None for phase in phases for i in range(self.iterations))

    def rate(self, index: int) -> float:
        """The highest learning rate of phase ``index``."""
        own = self.retain_rate is not None and self.method.phases[index].descends and not self.method.one_rate
        return self.retain_rate if own else self.learning_rate

    def pace(self, index: int) -> optimizers.Pace:
        """How long the steps of phase ``index`` are."""
        steps = self.steps(self.moments(index))
        return optimizers.Pace(self.rate(index), int(self.warmup * steps), steps)

    def optimizer(self, index: int) -> Optimizer:
        """What phase ``index`` makes of its gradient; ``.transform(pace)`` is the optax transformation."""
        phase, rule = self.method.phases[index], self.method.mask
        limit = ""
        if not self.trainable.limits_in_params:  # else nothing is left for a transform
            limit = "projected" if phase.projected else f"clip {rule.clip} mask" if phase.masked else ""
        return Optimizer(
            clip=float(self.clip) if phase.clip else math.inf,
            adam=tuple(
                sorted((k, v.item() if hasattr(v, "item") else v) for k, v in (self.adam | self.method.adam).items())
            ),
            limit=limit,
            gradients_only=phase.masked and rule.gradients_only,
            schedule=self.schedule,
        )


def describe(p: Plan, params: Params, mask: Mask | None, factors: Factors | None = None) -> str:
    """What will change, leaf group by leaf group. Shown before the first step."""
    rates = list(dict.fromkeys(f"{p.rate(index):g}" for index in range(len(p.method.phases))))
    said = f"learning rate{'s' if len(rates) > 1 else ''} {', '.join(rates)}"
    lines = [f"  plan: {p.method.source}; {p.iterations} iterations, {said}"]
    if p.stop:
        lines += [
            f"    ends when the right answers about the people to forget are at {p.stop.level:.3f}, {p.stop.whose}"
        ]
    groups = {name: {"total": 0, "leaves": 0} for name in map(trees.group, trees.flatten(params))}
    for leaf, value in trees.flatten(params).items():
        groups[trees.group(leaf)]["total"] += value.size
    for leaf in trees.flatten(trees.split(params, p.trainable.reach)[0]):
        groups[trees.group(leaf)]["leaves"] += 1
    lines += p.trainable.describe(params, p.method.phases)
    coverage = masks.coverage(mask) if mask is not None else {}
    kept = _kept_out(factors) if factors is not None else {}
    for group, row in groups.items():
        density = f"  forget mask {100 * coverage[group]['density']:5.1f} %" if coverage else ""
        if kept:
            density = (
                f"  {100 * kept[group]:5.1f} % of directions kept out" if group in kept else "  still in forget steps"
            )
        lines.append(f"    {group:32s}{row['total']:>14,} parameters  {p.trainable.says(row['leaves'])}{density}")
    return "\n".join(lines)


def _kept_out(factors: Factors) -> dict[str, float]:
    """Leaf group -> share of the input directions of its weights that projected steps leave alone."""
    found: dict[str, list[float]] = {}
    for name, share in curvature.shares(factors).items():
        found.setdefault(trees.group(name), []).append(share)
    return {group: sum(values) / len(values) for group, values in found.items()}
