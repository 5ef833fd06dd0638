"""What a method is made of: steps, each a sum of losses on streams of batches, and what may move in them.

The rows that there are stand in ``methods.METHODS``; none is asked for by name.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from mmu_jax import InputError
from mmu_jax.data.slices import STREAMS
from mmu_jax.edits import EDITS
from mmu_jax.models.family import Family
from mmu_jax.objectives import LOSSES, known
from mmu_jax.rules import Rule
from mmu_jax.sine import Sine
from mmu_jax.trainable import Trainable, Whole


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of optimizer step.

    >>> Phase({'retain': 'descent'}).descends, Phase({'forget': 'npo'}, options={'npo': {'beta': 0.2}}).descends
    (True, False)
    >>> Phase({'forget': 'dpo', 'retain': 'descent'}, weights={'retain': 0.5}).streams
    ('forget', 'refusal', 'retain')

    Attributes:
      losses: stream name (a row of ``data.slices.STREAMS``) -> loss name; several are summed into one step.
      options: loss name -> its keyword arguments, where they are not its defaults.
      weights: stream name -> what its loss is multiplied by in the sum, 1 where it is not named.
      spread: take the step only every so many iterations, and once for each batch of its stream, so that one pass over the
        stream of the other phases (``retain``) makes one over its own (``forget``).
      masked: whether the method's mask covers this step.
      projected: whether its step leaves alone the directions that carry what is kept (``curvature``).
      lookahead: how far beside the path a second gradient is taken, 0 for none: at the params after a step of this length
        down the gradient of the cross-entropy of another batch of its stream, as someone would step who relearns. The mean of
        the two is what is stepped with.
      clip: whether the norm of its gradient is clipped.
    """

    losses: dict[str, str]
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    spread: bool = False
    masked: bool = False
    projected: bool = False
    lookahead: float = 0.0
    clip: bool = True

    def __post_init__(self):
        if self.masked and self.projected:
            raise InputError(
                "expected a phase that is masked or projected, found both; choose one, or compose the transforms"
            )
        if self.lookahead < 0 or self.lookahead and len(self.losses) > 1:
            raise InputError(
                f"expected a look-ahead of at least 0, in a phase of one loss, found {self.lookahead:g} with {len(self.losses)} "
                "losses; correct it"
            )
        known("losses of a phase", self.losses.values(), LOSSES)
        known("streams of a phase", self.losses, STREAMS)
        if idle := sorted(self.options.keys() - set(self.losses.values())):
            raise InputError(f"expected options of losses of the phase, found those of {', '.join(idle)}; correct it")
        for name, given in self.options.items():
            known(f"options of {name}", given, LOSSES[name].options)
        known("weights of a phase", self.weights, self.losses)
        if wrong := sorted(name for name, weight in self.weights.items() if not 0 < weight < math.inf):
            raise InputError(f"expected weights above 0, found others of {', '.join(wrong)}; correct them")

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that it takes batches of: those of its losses, and those that a loss takes beside its own."""
        named = ((stream, *LOSSES[name].beside) for stream, name in self.losses.items())
        return tuple(dict.fromkeys(stream for streams in named for stream in streams))

    def of(self, streams: Iterable[str]) -> "Phase":
        """The same of its losses on ``streams`` alone."""
        losses = {stream: name for stream, name in self.losses.items() if stream in streams}
        options = {name: value for name, value in self.options.items() if name in losses.values()}
        weights = {stream: weight for stream, weight in self.weights.items() if stream in losses}
        return dataclasses.replace(self, losses=losses, options=options, weights=weights)

    @property
    def descends(self) -> bool:
        """Whether it only lowers cross-entropy: its learning rate is ``Plan.retain_rate``."""
        return all(LOSSES[name].sign > 0 for name in self.losses.values())


FACTORS = {
    "gradients": "Grams of the gradients of what is kept (curvature): a step is not felt there",
    "inputs": "Grams of what its weights read of what is kept (activations): a step changes nothing that they say there",
}
PROSE = ("family", "source", "note")
FAMILIES = ("control", "baseline", "projected", "masked", "variant", "ablation")


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    >>> method = Method((Phase({'forget': 'npo', 'retain': 'descent'}),))
    >>> method.needs, sorted(method.streams)
    (frozenset({'reference'}), ['forget', 'retain'])

    Attributes:
      phases: the steps of one iteration, in order; none for an edit that is made of the params as they are.
      edit: a row of ``edits.EDITS``: what is done without steps, to the params as they were. Where it reads updates, every phase
        is trained from there by itself, and gives one.
      options: keyword arguments of the edit, where they are not its defaults.
      factors: of :data:`FACTORS`: of what the factors of projected phases are the top directions.
      mask: what the masked phases may move; None for unmasked methods.
      scope: pattern of the leaves that train at all.
      bounded: pattern of the leaves that train as ``W + sin(D)`` (``sine``), and no others; empty for a method that trains params.
      moments: one optimizer state for all phases (``'shared'``) or one each (``'separate'``).
      adam: keyword arguments of ``optimizers.adam`` that belong to the method.
      one_rate: the phases that only descend have the learning rate of the others, whatever the plan's ``retain_rate``.
      family: of :data:`FAMILIES`; how tables, figures and verdicts group it.
      source: paper.
      note: what a reader of its name must know.
    """

    phases: tuple[Phase, ...]
    mask: Rule | None = None
    scope: str = ".*"
    bounded: str = ""
    moments: str = "separate"
    adam: dict[str, Any] = dataclasses.field(default_factory=dict)
    one_rate: bool = False
    family: str = "baseline"
    source: str = ""
    note: str = ""
    edit: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    factors: str = "gradients"

    def __post_init__(self):
        known("factors of a method", [self.factors], FACTORS)
        known("moments of a method", [self.moments], ("shared", "separate"))
        known("family of a method", [self.family], FAMILIES)
        if any(phase.masked for phase in self.phases) and self.mask is None:
            raise InputError("expected a rule for the masked phase of a method, found mask=None; give it one")
        if self.bounded and self.scope != ".*":
            raise InputError(
                f"expected a scope or what is bounded, found {self.scope!r} and {self.bounded!r}; what is bounded is all that trains"
            )
        known("the loss of a mask rule", [self.mask.loss] if self.mask else [], LOSSES)
        known("the edit of a method", [self.edit] if self.edit else [], EDITS)
        known("options of the edit of a method", self.options, EDITS[self.edit].options if self.edit else {})
        wanted = EDITS[self.edit].trained if self.edit else ()
        if self.edit and (found := tuple(next(iter(phase.losses)) for phase in self.phases)) != wanted:
            raise InputError(
                f"expected phases that begin with the streams whose updates {self.edit} reads ({', '.join(wanted) or 'none'}), found "
                f"{', '.join(found) or 'none'}; correct the row"
            )
        if not self.edit and all(phase.spread for phase in self.phases):
            raise InputError(
                "expected a phase that is not spread, over whose steps the others are, found none; add one"
            )

    @property
    def needs(self) -> frozenset[str]:
        """What its losses need beside params and batches: ``'teacher'``, ``'reference'`` (:class:`Loss`)."""
        return frozenset().union(*(LOSSES[name].needs for phase in self.phases for name in phase.losses.values()))

    def trains(self, family: Family | None = None) -> Trainable:
        """What of the params it trains where no LoRA is asked for: the leaves in its scope, or those that are bounded.

        With a ``family``, whatever its mask freezes beforehand has neither gradient nor moments (``trainable.Whole.of``).
        """
        if self.bounded:
            return Sine(self.bounded)
        return Whole.of(self, family) if family is not None else Whole(self.scope)

    @property
    def projects(self) -> bool:
        """Whether it needs the factors of what is kept."""
        return any(phase.projected for phase in self.phases)

    @property
    def reads_factors(self) -> bool:
        """Whether these are the factors of the model that a file holds, not some of its own."""
        return self.projects and self.factors == "gradients"

    @property
    def trained(self) -> "tuple[Method, ...]":
        """What is trained from the params as they were: itself, or of an edit every phase by itself."""
        if not self.edit:
            return (self,)
        return tuple(dataclasses.replace(self, phases=(phase,), edit="", options={}) for phase in self.phases)

    @property
    def strength(self) -> float:
        """How much of its edit is done, where no config says so."""
        row = EDITS[self.edit]
        return self.options.get(row.strength, row.start)

    @property
    def has_own_rate(self) -> bool:
        """Whether it has steps that only descend, with a rate of their own."""
        return not self.one_rate and any(phase.descends for phase in self.phases)

    def alone(self) -> "Method":
        """The same where nothing of the kept people is at hand: no loss on a stream of theirs, no step that has no other.

        >>> Method((Phase({'forget': 'npo', 'retain': 'descent'}),)).alone() == Method((Phase({'forget': 'npo'}),))
        True

        Raises:
          InputError: nothing is left, or what is left stands still.
        """
        kept = []
        for phase in self.phases:
            if own := [stream for stream in phase.losses if not STREAMS[stream].kept]:
                kept.append(dataclasses.replace(phase.of(own), spread=False))
        if kept and all(LOSSES[name].still for phase in kept for name in phase.losses.values()):
            raise InputError(
                f"expected a method that moves something where nothing of the kept people is replayed, found one ({self.source}) whose loss "
                "on the people to forget has no gradient at the model it begins with; choose another method, or replay them"
            )
        measured = EDITS[self.edit].streams if self.edit else ()
        forgets = any(STREAMS[stream].who == "forget" for phase in kept for stream in phase.losses)
        if not (forgets or measured) or any(STREAMS[stream].who != "forget" for stream in measured):
            raise InputError(
                "expected a method with a step on the people to forget, found one that trains on or measures others alone, of whom nothing is "
                "replayed; choose another method, or replay them"
            )
        return dataclasses.replace(self, phases=tuple(kept))

    @property
    def referenced(self) -> set[str]:
        """The streams of whose answers the reference's log-probabilities are needed."""
        pairs = [pair for phase in self.phases for pair in phase.losses.items() if "reference" in LOSSES[pair[1]].needs]
        return {stream for own, name in pairs for stream in (own, *LOSSES[name].beside)}

    @property
    def streams(self) -> set[str]:
        """The streams that its losses take batches of."""
        return {name for phase in self.phases for name in phase.streams}

    @property
    def reads(self) -> set[str]:
        """These, and those that its edit is computed from."""
        return self.streams | set(EDITS[self.edit].streams if self.edit else ())

    def arithmetic(self) -> dict[str, Any]:
        """What changes a number, by which a result is known: every field but prose, the options that losses have by default
        and the slices that streams are."""
        kept = {key: value for key, value in dataclasses.asdict(self).items() if key not in PROSE}
        for phase, row in zip(self.phases, kept["phases"], strict=True):
            names = sorted(set(phase.losses.values()))
            row["options"] = {name: LOSSES[name].options | phase.options.get(name, {}) for name in names}
            if not phase.weights:
                del row["weights"]  # so that a result from before there were any is known by the same
        if not self.bounded:
            del kept["bounded"]
        if self.factors == "gradients":
            del kept["factors"]
        edited = {key: kept.pop(key) for key in ("edit", "options")}
        if self.edit:
            kept |= edited | {"options": EDITS[self.edit].options | self.options}
        return kept | {"streams": {name: dataclasses.asdict(STREAMS[name]) for name in sorted(self.reads)}}
