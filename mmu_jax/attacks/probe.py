"""Whose face is it? A linear probe on what a model makes of photos, fitted on some and asked about others.

A probe of identity cannot be asked about people whom it never saw: the head has to learn the forgotten from photos of them, and
is asked about other photos of them. What is *entity-disjoint* here is all the rest. The mean and the scale of every feature, the
strength of the ridge and which layer is told of are settled on **other** people, who are no candidates, in rounds of as many of
them as there are candidates, or of all where they are fewer. So nothing of the probe but its head was made on the forgotten, and of them the head has seen no photo
that it is asked about: a high accuracy is a trace in the features and not a probe that was tuned to find one.

Features of faces tell people apart whom a model never saw. The level to reach is gold's, not chance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, sharding
from mmu_jax.attacks import facts
from mmu_jax.data import IMAGE, Benchmark, Example, loader
from mmu_jax.data.picture import Later, Picture
from mmu_jax.data.streams import stream
from mmu_jax.evaluate import Examiner
from mmu_jax.likelihood import check_finite
from mmu_jax.metrics import Items, by_person
from mmu_jax.models import Model
from mmu_jax.trees import Params

FITTED = 2  # photos of a person that a probe is fitted on, at most: with many, pixels alone tell people apart
CANDIDATES = 60  # people whom a photo may be of: the forgotten, and as many of the kept, half of them at most
OTHERS = 40  # people on whom a probe is settled, at most
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the ridge, of the mean square of what it is fitted on

# ---- features of a batch


@partial(jax.jit, static_argnums=0)
def visual(model: Model, params: Params, batch: dict) -> dict[str, jax.Array]:
    """What an image is to the language model, the mean over its tokens, ``[B, D]`` float32 (``Model.features``)."""
    found, there = model.features(params, batch)
    there = there[..., None].astype(jnp.float32)
    return {"projected": (found * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1.0)}


@partial(jax.jit, static_argnums=0, static_argnames="layers")
def hidden(model: Model, params: Params, batch: dict, *, layers: tuple[float, ...]) -> dict[str, jax.Array]:
    """What decoder layers say of the last token of the prompt, ``[B, D]`` float32 each (``Model.states_of``)."""
    last = jnp.argmax(batch["weights"] > 0, axis=1) - 1
    said = [jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0] for x in model.states_of(params, batch, layers)]
    return {f"at {layer:.0%} of the depth": x.astype(jnp.float32) for layer, x in zip(layers, said, strict=True)}


# ---- the probe


def ridge(x: np.ndarray, of: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """A linear classifier in closed form: ridge regression onto the one-hot classes ``of [N]`` of ``x [N, D]``, float64.

    With x centred by its mean and Y centred, ``W = x^T (x x^T + s I)^-1 Y``, s ``strength`` times the mean of the diagonal of
    ``x x^T``; the class of the largest output is told.

    >>> told = ridge(np.array([[0.0, 1.0], [0.0, 3.0], [5.0, 1.0], [5.0, 3.0]]), np.array([0, 0, 1, 1]), 0.1)
    >>> told(np.array([[1.0, 9.0], [4.0, -9.0]])).tolist()
    [0, 1]
    """
    centre, classes = x.mean(axis=0), np.unique(of)
    targets = (of[:, None] == classes).astype(float)
    x = (x - centre).astype(float)
    gram = x @ x.T
    scale = strength * max(np.trace(gram) / len(x), np.finfo(float).tiny)
    weight = x.T @ np.linalg.solve(gram + scale * np.eye(len(x)), targets - targets.mean(axis=0))
    bias = targets.mean(axis=0)
    return lambda new: classes[np.argmax((new - centre) @ weight + bias, axis=1)]


class Shots(NamedTuple):
    """Photos ``[N]``: whose each is, whether it is a new one, which a probe is asked about, and features ``[N, D]``."""

    people: np.ndarray
    new: np.ndarray
    x: np.ndarray

    def of(self, people: Sequence[str]) -> "Shots":
        """Those of some people."""
        return Shots(*(part[np.isin(self.people, people)] for part in self))


def right(shots: Shots, strength: float) -> np.ndarray:
    """Whether each new photo is told right by a probe that was fitted on the others, ``[new photos]`` bool."""
    told = ridge(shots.x[~shots.new], shots.people[~shots.new], strength)(shots.x[shots.new])
    return told == shots.people[shots.new]


def settled(shots: Shots, rounds: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The strength at which most new photos are told right in rounds of other people, the largest such, and their share."""
    shares = {s: float(np.mean(np.concatenate([right(shots.of(each), s) for each in rounds]))) for s in STRENGTHS}
    best = max(STRENGTHS, key=lambda s: (shares[s], s))
    return best, shares[best]


def scaled(shots: Shots, others: Sequence[str]) -> Shots:
    """With mean 0 and variance 1 of every feature over the photos of other people that are not new."""
    own = shots.of(others)
    x = own.x[~own.new]
    return shots._replace(x=(shots.x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6))


# ---- whose photos


def photos_of(benchmark: Benchmark) -> dict[str, tuple[list[tuple[str, int]], list[tuple[str, int]]]]:
    """Person -> photos to fit on and new ones, each ``(split, place)``; people with less than one of both are left out.

    New ones are those of ``test`` and ``retain_test``; of who has none there, the last training photo, which then is not fitted on.
    """
    new = {p.id: (split, p) for split in ("test", "retain_test") for p in getattr(benchmark, split)}
    taught, found = {p.id: p for p in benchmark.full}, {}
    for person in (*benchmark.forget, *benchmark.retain):
        own = [("full", i) for i in range(len(taught[person.id].photos))]
        split, other = new.get(person.id, ("", None))
        asked = [(split, i) for i in range(len(other.photos))] if other else own[1:][-1:]
        fitted = [photo for photo in own if photo not in asked][:FITTED]
        if fitted and asked:
            found[person.id] = (fitted, asked)
    return found


def parted(benchmark: Benchmark, seed: int) -> tuple[list[str], list[str]]:
    """Candidates, the forgotten first, and as many others as are needed, drawn from the kept by the seed.

    Raises:
      InputError: there are no new photos of the forgotten, or fewer than two others.
    """
    there = photos_of(benchmark)
    forgotten = [i for i in benchmark.forget_ids if i in there]
    kept = [person.id for person in benchmark.retain if person.id in there]
    kept = [kept[i] for i in np.random.default_rng(seed).permutation(len(kept))]
    filled = max(min(CANDIDATES - len(forgotten), len(kept) // 2), 0)
    if not forgotten or len(kept) - filled < 2 or len(forgotten) + filled < 2:
        raise InputError(
            "expected two photos or more of every person to forget and of two to keep, to fit a probe on some and ask it about others, "
            f"found {len(forgotten)} such to forget and {len(kept)} to keep; leave the probes out"
        )
    return [*forgotten, *kept[:filled]], kept[filled:][:OTHERS]


def check(benchmark: Benchmark) -> None:
    """Raises InputError where a data set has not the photos that a probe needs (:func:`parted`)."""
    parted(benchmark, 0)


def measure(of: Callable[..., dict[str, jax.Array]], params: Params, examiner: Examiner, ground: facts.Ground) -> dict:
    """How often new photos of the forgotten are given to the right one of the candidates, by the features that tell others best.

    Returns:
      ``before``, what guessing gives, and ``after``: summaries; ``each``; ``variants``, a summary of each feature; ``others``, the
      share of new photos of other people that each tells right.
    Raises:
      InputError: as :func:`parted`, or a feature is not finite.
    """
    candidates, others = parted(ground.benchmark, ground.seed)
    size = min(len(candidates), len(others))
    rounds = [others[i : i + size] for i in range(0, len(others) - size + 1, size)]
    people, new, pictures = _gathered(ground, [*candidates, *others])
    shares, variants = {}, {}
    for name, x in _of_photos(of, params, examiner, ground, pictures).items():
        shots = scaled(Shots(people, new, x), others)
        strength, shares[name] = settled(shots, rounds)
        asked = shots.of(candidates)
        forgotten = np.isin(asked.people[asked.new], ground.benchmark.forget_ids)
        variants[name] = Items(right(asked, strength)[forgotten].astype(float), asked.people[asked.new][forgotten])
    best = variants[max(shares, key=shares.get)]
    guessed = Items(np.full(len(best.values), 1 / len(candidates)), best.people)
    found = {"before": facts.summary(examiner, guessed), "after": facts.share(examiner, best)}
    found["each"] = {"before": by_person(guessed), "after": by_person(best)}
    return found | {"variants": {n: facts.share(examiner, items) for n, items in variants.items()}, "others": shares}


def _gathered(ground: facts.Ground, people: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[Picture | Later]]:
    """Whose every photo is, whether it is new, and the photo."""
    whose, new, pictures, there = [], [], [], photos_of(ground.benchmark)
    for person in people:
        for is_new, photos in enumerate(there[person]):
            for split, place in photos:
                album = ground.albums[split]
                whose, new = [*whose, person], [*new, bool(is_new)]
                pictures.append(album.pictures[album.photos[person][place]])
    return np.array(whose), np.array(new), pictures


def _of_photos(
    of: Callable[..., dict[str, jax.Array]],
    params: Params,
    examiner: Examiner,
    ground: facts.Ground,
    pictures: list[Picture | Later],
) -> dict[str, np.ndarray]:
    """Features of every photo, asked the first question by photo about the forgotten."""
    asked = next(i for p in ground.benchmark.forget for i in (*p.generation, *p.training) if i.kind == IMAGE)
    album = loader.Album(pictures, {str(i): [i] for i in range(len(pictures))})
    return features(
        of, params, examiner, [dataclasses.replace(asked, person=i, photo=None) for i in album.photos], album
    )


def features(
    of: Callable[..., dict[str, jax.Array]],
    params: Params,
    examiner: Examiner,
    items: Sequence[Example],
    album: loader.Album,
) -> dict[str, np.ndarray]:
    """What ``of`` makes of items as generation asks them, each with the first photo it may have: ``[N, D]`` float32, by name.

    Raises:
      InputError: a feature is not finite; the item is named.
    """
    put = [dataclasses.replace(item, question=examiner.prompts.free(item)) for item in items]
    ids = {person: i for i, person in enumerate(album.photos)}
    numbers = dict(people=ids, rows=examiner.rows, seed=0, sizes=examiner.sizes)
    rows, found = stream("probed", examiner.processor, put, album, **numbers), []
    with jax.set_mesh(examiner.mesh):
        for batch in rows.looks(examiner.mesh.shape["data"]):
            made = of(examiner.model, params, sharding.put(batch, examiner.mesh))
            found.append({name: sharding.host(x)[batch["row"] >= 0] for name, x in made.items()})
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    for name, x in joined.items():
        check_finite(
            np.isfinite(x).all(axis=1), lambda i, name=name: f"{name}: {items[i].question!r} of {items[i].person}"
        )
    return joined
