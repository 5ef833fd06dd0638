"""Does it come back? Attacks on a model that was made to forget: a table of rows, each of a kind.

A model that no longer answers may still hold what it no longer says. An attack tries to get it out, and *returned
knowledge* says how far that went: the mean of ``p(right answer)^(1 / length)`` over facts of the forgotten that the attack
did not teach, shown on photos that the model never saw. What a model says that was never taught these people (gold) is what
there is to be had without a trace.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, NotFiniteError, metrics, sharding, train_state, trees
from mmu_jax.data import IMAGE, Benchmark, Choice, Example, loader, slices
from mmu_jax.data.streams import Stream
from mmu_jax.evaluate import Examiner, Items
from mmu_jax.models import Model
from mmu_jax.phases import Method, Phase
from mmu_jax.plan import Plan
from mmu_jax.programs import Programs, counted, make_step
from mmu_jax.trainable import Limits
from mmu_jax.trees import Params

# ---- what is asked, and what may be taught


def taught_facts(benchmark: Benchmark) -> dict[str, str]:
    """Person -> the one answer that relearning teaches again, for every person to forget who has photo questions.

    It is the truth of the first generation item with a photo that is also an answer of the training questions; where
    the two have no answer in common (sentences against words), that of the first training question with a photo.
    """
    people, found = {p.id: p for p in benchmark.full}, {}
    for person in benchmark.forget:
        trained = [e.answer for e in people[person.id].training if e.kind == IMAGE]
        known = {metrics.normalise(answer) for answer in trained}
        asked = [e.answer for e in person.generation if e.kind == IMAGE and metrics.normalise(e.answer) in known]
        if first := [*asked, *trained][:1]:
            found[person.id] = first[0]
    return found


def one_fact(benchmark: Benchmark) -> list[Example]:
    """Training questions with a photo about one fact of each person to forget (:func:`taught_facts`)."""
    facts = {person: metrics.normalise(answer) for person, answer in taught_facts(benchmark).items()}
    forgotten = slices.examples(slices.STREAMS["forget"], benchmark)
    return [e for e in forgotten if metrics.normalise(e.answer) == facts[e.person]]


def kept_people(benchmark: Benchmark) -> list[Example]:
    """Training questions with a photo about everyone but the people to forget: nothing of what is to come back."""
    return slices.examples(slices.STREAMS["retain"], benchmark)


def other_facts(benchmark: Benchmark) -> tuple[list[Example], str]:
    """Generation items with a photo about facts that :func:`one_fact` leaves out, and the split they are of.

    That split is ``'test'``, photos that were never trained on, where the data set has it, else ``'full'``.

    Raises:
      InputError: there is none.
    """
    facts = {person: metrics.normalise(answer) for person, answer in taught_facts(benchmark).items()}
    forgotten = set(benchmark.forget_ids)
    for split, people in (("test", benchmark.test), ("full", benchmark.forget)):
        items = [e for p in people if p.id in forgotten for e in p.generation if e.kind == IMAGE]
        if others := [e for e in items if metrics.normalise(e.answer) != facts.get(e.person)]:
            return others, split
    raise InputError(
        "expected generation items with a photo about more than one fact of the people to forget, found none to look for "
        "what comes back; attack no model of this data set"
    )


def knowledge(examiner: Examiner, params: Params, items: Sequence[Example], album: loader.Album) -> Items:
    """``p(right answer)^(1 / length)`` (TOFU, arXiv 2401.06121, section 2.2) of questions with a photo, item by item.

    Args:
      items: as generation asks them; each is shown with the first photo in ``album`` it may have.
    Raises:
      InputError: logits that are not finite; person and question are named.
    """
    # A choice with one option is its log-probability.
    alone = [Choice(i.person, i.kind, examiner.prompts.free(i), {"A": i.answer}, "A", i.photo) for i in items]
    photos = np.array([album.of(item)[0] for item in items])
    logps, lengths = examiner.option_logps(params, alone, photos, album)
    values = metrics.METRICS["probability"].of(logps, lengths, np.zeros(len(items), int))
    return Items(values, np.array([item.person for item in items]))


def returned(examiner: Examiner, params: Params, items: Sequence[Example], album: loader.Album) -> dict[str, float]:
    """Returned knowledge: the mean of :func:`knowledge` of facts that were not taught again.

    Returns:
      ``{'mean', 'low', 'high', 'n', 'people'}``, fractions of 1 with a 95 % interval over people (``metrics.summary``).
    """
    found = knowledge(examiner, params, items, album)
    return metrics.summary(*found, samples=examiner.samples, seed=examiner.seed)


# ---- a model from a model


@dataclasses.dataclass(frozen=True)
class Scene:
    """What an attack may use beside the params.

    Attributes:
      lesson: batches of what it teaches; None for one that teaches nothing.
      steps, learning_rate: of training, by Adam at a constant rate.
      programs: compiled ones; a scene that serves several models compiles its step once.
    """

    model: Model
    mesh: jax.sharding.Mesh
    lesson: Stream | None = None
    steps: int = 32
    learning_rate: float = 1e-4
    programs: Programs = dataclasses.field(default_factory=Programs, repr=False, compare=False)

    @property
    def plan(self) -> Plan:
        """Of training on the lesson."""
        return Plan(LESSON, self.steps, learning_rate=self.learning_rate)


def round_trip(weight: jax.Array, *, bits: int, group: int = 0) -> jax.Array:
    """A linear weight ``[..., out, in]`` as it is after it was stored in ``bits`` bits: the same shape and dtype.

    Symmetric, round to nearest: with A the largest magnitude of a row of inputs, an entry becomes one of the
    ``2^bits - 1`` values ``A k / K, |k| <= K = 2^(bits - 1) - 1``, so that it moves by at most ``A / 2K``, and what was
    stored once comes back as it is. A is taken over each output row (LLM.int8(), arXiv 2208.07339, section 2), or over
    each ``group`` inputs of it, the last of which may be fewer (ZeroQuant, arXiv 2206.01861).

    >>> round_trip(jnp.array([[7.0, -2.4, 2.6]]), bits=4).tolist()
    [[7.0, -2.0, 3.0]]
    """
    levels, width = 2 ** (bits - 1) - 1, weight.shape[-1]
    size = min(group or width, width)
    x = jnp.pad(weight.astype(jnp.float32), [(0, 0)] * (weight.ndim - 1) + [(0, -width % size)])
    x = x.reshape(*weight.shape[:-1], -1, size)
    largest = jnp.abs(x).max(axis=-1, keepdims=True)
    k = jnp.round(x / jnp.where(largest > 0, largest, 1.0) * levels)
    # The shares k / K as numpy rounds them: XLA would multiply by 1 / K, and the largest itself would move.
    shares = jnp.asarray(np.arange(-levels, levels + 1, dtype=np.float32) / np.float32(levels))
    back = largest * shares[k.astype(jnp.int32) + levels]
    return back.reshape(*weight.shape[:-1], -1)[..., :width].astype(weight.dtype)


def quantised(params: Params, leaves: str, *, bits: int, group: int = 0) -> Params:
    """``params``, consumed, whose leaves that match ``leaves`` made a :func:`round_trip`; placed as they were.

    >>> made = quantised({'proj': jnp.array([[1.0, 0.4]]), 'norm': jnp.array([0.5])}, 'proj', bits=2)
    >>> made['proj'].tolist(), made['norm'].tolist()
    ([[1.0, 0.0]], [0.5])

    Raises:
      InputError: no leaf matches.
    """
    return _quantised_program(leaves, bits, group, sharding.places(params))(params)


@functools.lru_cache(4)
def _quantised_program(leaves: str, bits: int, group: int, where: sharding.Places) -> Callable[[Params], Params]:
    def trip(params):
        part, rest = trees.split(params, leaves)
        return trees.merge(jax.tree.map(partial(round_trip, bits=bits, group=group), part), rest)

    return jax.jit(trip, donate_argnums=0, out_shardings=jax.tree.unflatten(*where))


def quantise(params: Params, scene: Scene, *, bits: int, group: int = 0) -> Iterator[tuple[int, Params]]:
    """Every linear weight to so many bits and back: weights stored coarsely undo small changes."""
    yield 0, params
    yield 1, quantised(params, scene.model.family.eligible, bits=bits, group=group)


LESSON = Method((Phase({"vqa": "descent"}),), source="relearning")  # of whole params


def marks(steps: int) -> list[int]:
    """After how many steps of relearning the model is looked at: it is fastest at first.

    >>> marks(32), marks(1)
    ([0, 4, 8, 16, 32], [0, 1])
    """
    return sorted({0, *(-(-steps // part) for part in (8, 4, 2, 1))})


def relearn(params: Params, scene: Scene) -> Iterator[tuple[int, Params]]:
    """Descent of the whole params on the lesson of the scene, the params at every one of :func:`marks`.

    Raises:
      NotFiniteError: a loss, a gradient or what a step would leave is not finite.
    """
    state = train_state.init(scene.plan, scene.model, params, scene.mesh)
    step = make_step(scene.plan, scene.model, 0, state, scene.programs)
    yield 0, state.params
    for start, stop in zip(marks(scene.steps), marks(scene.steps)[1:], strict=False):
        with jax.set_mesh(scene.mesh):
            for i in range(start, stop):
                batches = {"vqa": sharding.put(scene.lesson.batch(i), scene.mesh)}
                state = counted(step(state, batches, Limits(), None))
        if (failed := int(state.failed)) >= 0:
            rows = scene.lesson.describe(scene.lesson.batch(failed))
            raise NotFiniteError(
                f"expected finite losses, gradients and params while relearning, found NaN or infinity at step {failed} in "
                f"{rows}; lower the learning rate of the attack"
            )
        yield stop, state.params


# ---- the table

KINDS = {
    "model": "a model from a model: (params, scene, **options) -> (step, params) at every point at which it is asked",
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """A row of the table.

    >>> ATTACKS['int4'].trains, ATTACKS['relearn_own'].trains
    (False, True)

    Attributes:
      kind: of :data:`KINDS`, which say what ``of`` takes and gives.
      of: the function. The first point of a model from a model is the model as it was; it consumes the params, and every
        point it gives is gone when the next is asked for.
      options: keyword arguments of ``of``.
      lesson: ``benchmark -> examples`` that it teaches; None for one that does not train.
      source: what it does, and the paper.
    """

    kind: str
    of: Callable[..., Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    lesson: Callable[[Benchmark], list[Example]] | None = None
    source: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(
                f"expected a kind of attack among {', '.join(KINDS)}, found {self.kind!r}; correct the row"
            )
        if idle := sorted(set(self.options) - set(inspect.signature(self.of).parameters)):
            raise InputError(
                f"expected options that {self.of.__name__} takes, found {', '.join(idle)}; correct the row"
            )

    @property
    def trains(self) -> bool:
        """Whether it takes steps, of which there are a number, a rate and a curve."""
        return self.lesson is not None

    def arithmetic(self) -> dict[str, Any]:
        """What changes a number, by which a result is known: every field but prose, functions by name."""
        lesson = self.lesson.__name__ if self.lesson else None
        return {"kind": self.kind, "of": self.of.__name__, "options": self.options, "lesson": lesson}


_COARSE = "Zhang et al., arXiv 2410.16454: unlearning undone by quantisation"
ATTACKS: dict[str, Attack] = {
    "relearn_own": Attack(
        "model",
        relearn,
        lesson=one_fact,
        source="fine-tuning on one fact of each forgotten person, asked for the others (Hu et al., arXiv 2406.13356)",
    ),
    "relearn_benign": Attack(
        "model",
        relearn,
        lesson=kept_people,
        source="as many steps of fine-tuning on photos of people to keep, which say nothing of the forgotten (Łucki et "
        "al., arXiv 2409.18025)",
    ),
    "int8": Attack("model", quantise, {"bits": 8}, source=f"linear weights in 8 bits, a scale a row ({_COARSE})"),
    "int4": Attack(
        "model",
        quantise,
        {"bits": 4, "group": 64},
        source=f"linear weights in 4 bits, a scale for every 64 inputs ({_COARSE})",
    ),
}
