"""A model from a model: params that are trained again, or stored in few bits."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import NotFiniteError, sharding, train_state, trees
from mmu_jax.data.streams import Stream
from mmu_jax.models import Model
from mmu_jax.phases import Method, Phase
from mmu_jax.plan import Plan
from mmu_jax.programs import Programs, counted, make_step
from mmu_jax.trainable import Limits
from mmu_jax.trees import Params


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
