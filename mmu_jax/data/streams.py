"""Streams: ``batch(step)`` is a pure function of (seed, step), so a run resumes from one integer."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmu_jax import InputError, sharding
from mmu_jax.data import IMAGE, TEXT, Example, Processor, text, vision
from mmu_jax.data.general import rehearsal
from mmu_jax.data.loader import Album
from mmu_jax.data.picture import Picture
from mmu_jax.data.sizes import ANY, Sizes, fit


def batch(sizes: Sizes, rows: text.Rows, index: Sequence[int], pictures: list[list[Picture]], sights: int = 0) -> dict:
    """The token and image arrays of the rows ``index``, each with its pictures.

    With ``sights``, image arrays have so many rows, one for all that show the same, and ``photo [B]`` says which is whose.
    """
    images = {}
    if any(pictures):
        shown, photo = told_apart(pictures) if sights else (pictures, None)
        images = vision.arrays(shown + shown[:1] * (sights - len(shown)), sizes.patches)
        images |= {"photo": photo} if sights else {}
    return rows.batch(index, pictures, sizes.tokens) | images


def sights(photos: Sequence[int], rows: int, devices: int = 1) -> int:
    """As how many photos a batch of ``rows`` neighbours is told, one number for all batches: all rows, half, a quarter or an eighth.

    That of which each of so many ``devices`` sees fewest: where they do not divide it each sees all.

    >>> sights([0, 0, 0, 0, 1, 1, 1, 1, 2], 8), sights(range(5), 8), sights([0, 0, 0, 0, 1, 1, 1, 1], 8, devices=8)
    (2, 8, 8)
    """
    most = max((len(set(photos[i : i + rows])) for i in range(0, len(photos), rows)), default=1)
    enough = [rows // k for k in (8, 4, 2, 1) if rows // k >= most]
    return min(enough, key=lambda n: n // devices if n % devices == 0 else n)


def _whose(example: Example) -> str:
    return f"person {example.person}" if example.person != rehearsal.NOBODY else rehearsal.FILE.name


def told_apart(pictures: list[list[Picture]]) -> tuple[list[list[Picture]], np.ndarray]:
    """What is shown, each once, and for every row, int32, which of it.

    >>> told_apart([['me'], ['you'], ['me']])
    ([['me'], ['you']], array([0, 1, 0], dtype=int32))
    """
    keys = [tuple(map(id, row)) for row in pictures]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    first = dict(zip(reversed(keys), reversed(pictures), strict=True))
    return [first[key] for key in places], np.array([places[key] for key in keys], np.int32)


def longest(rows: text.Rows, pictures: list[Picture]) -> dict[str, int]:
    """The most ``tokens`` and ``patches`` that a row may have, with any of the pictures."""
    tokens = int(rows.lengths(max((p.tokens for p in pictures), default=0)).max())
    return {"tokens": tokens, "patches": max((p.length for p in pictures), default=0)}


@functools.lru_cache(16)  # streams are dealt in turn, each from one epoch at a time
def _dealt(seed: int, epoch: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows in an epoch, and what each draws its photo by."""
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(rows), rng.integers(0, 2**31, rows)


@dataclasses.dataclass
class Stream:
    """Rows of one kind (all with an image or all without) or of both (:func:`mixed`), dealt in shuffled epochs of equal batches.

    ``columns`` are arrays whose axis 0 is the row; for a stream with photos a column may be ``[R, P]``, one value per
    photo of the row.
    """

    name: str
    examples: tuple[Example, ...]
    texts: text.Rows
    album: Album | None
    rows: int
    seed: int
    sizes: Sizes
    columns: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Batches in one pass over the rows; the last one is filled up with rows that weigh nothing."""
        return -(-len(self.examples) // self.rows)

    def photos(self, row: int) -> list[int]:
        """Places in the album of the photos a row may be dealt with; none for a row of text."""
        return self.album.of(self.examples[row]) if self.examples[row].kind == IMAGE else []

    @property
    def largest(self) -> dict[str, int]:
        """The largest padded lengths a batch can have, in ``tokens`` and ``patches``."""
        return self.sizes.padded(**longest(self.texts, self.album.pictures if self.album else []))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step: the same for the same (seed, step), whatever came before."""
        epoch, index = divmod(step, self.steps)
        order, draws = _dealt(self.seed, epoch, len(self.examples))
        rows = order[index * self.rows : (index + 1) * self.rows]
        return self.gather(rows, draws[rows])

    def gather(self, rows: np.ndarray, draws: np.ndarray, sights: int = 0) -> dict[str, np.ndarray]:
        """The batch of given rows, photo ``draws % (photos of the row)``, filled up to ``self.rows`` rows; ``sights`` of :func:`batch`."""
        spare = self.rows - len(rows)
        filled = np.concatenate([rows, np.full(spare, rows[0])])
        draws = np.concatenate([draws, np.zeros(spare, int)])
        photos = [self.photos(row) for row in filled]
        chosen = [draw % max(len(places), 1) for places, draw in zip(photos, draws, strict=True)]
        pictures = [
            [self.album.pictures[places[i]]] if places else [] for places, i in zip(photos, chosen, strict=True)
        ]
        made = batch(self.sizes, self.texts, filled, pictures, sights)
        made["weights"][len(rows) :] = 0.0
        made["row"] = np.where(np.arange(self.rows) < len(rows), filled, -1).astype(np.int32)
        for name, column in self.columns.items():
            made[name] = column[filled, chosen] if column.ndim == 2 else column[filled]
        return made

    def padding(self) -> dict[str, float]:
        """Share of the token and patch slots of one pass that hold nothing: the price of few compilations."""
        places = [self.photos(row)[:1] for row in range(len(self.examples))]
        first = [self.album.pictures[place[0]] if place else None for place in places]
        # One image a row: its placeholder is among the tokens already.
        need = {"tokens": self.texts.lengths(0) + np.array([p.tokens - 1 if p else 0 for p in first])}
        if any(p and p.grid for p in first):
            need["patches"] = np.array([p.length if p else 0 for p in first])
        shares = {}
        for what, lengths in need.items():
            parts = [lengths[i : i + self.rows] for i in range(0, len(lengths), self.rows)]
            slots = sum(fit(int(part.max()), getattr(self.sizes, what), what) * self.rows for part in parts)
            shares[what] = 1.0 - float(lengths.sum()) / slots
        return shares

    def epoch(self, shuffled: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """One pass over all rows, in order or ``shuffled`` by the seed, each with its first photo, a batch at a time."""
        rows = np.arange(len(self.examples))
        if shuffled:
            rows = np.random.default_rng(self.seed).permutation(rows)
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows]
            yield self.gather(part, np.zeros(len(part), int))

    def looks(self, devices: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """One pass in order, as :meth:`epoch`, for who takes no gradient: a photo that neighbours show is there once (:func:`sights`)."""
        first = [self.photos(row)[:1] for row in range(len(self.examples))]
        shared = sights([place for (place,) in first], self.rows, devices) if all(first) else 0
        for start in range(0, len(first), self.rows):
            rows = np.arange(start, min(start + self.rows, len(first)))
            yield self.gather(rows, np.zeros(len(rows), int), shared)

    def describe(self, batch: dict[str, np.ndarray]) -> str:
        """The row ids of a batch, for messages: ``0012:"What is ...?"``."""
        rows = [self.examples[row] for row in batch["row"] if row >= 0]
        return f"{self.name} rows " + ", ".join(
            f"{int(i)} ({_whose(e)})" for i, e in zip(batch["row"], rows, strict=False)
        )


def stream(
    name: str,
    processor: Processor,
    examples: list[Example],
    photos: Album | None,
    *,
    people: dict[str, int],
    rows: int,
    seed: int,
    sizes: Sizes = ANY,
) -> Stream:
    """Encodes examples of one kind into a Stream; ``photos`` for image examples, None for text.

    Raises:
      InputError: no example, examples of the other kind, or a text that is refused or fits no size; its person is named.
    """
    if not examples:
        raise InputError(f"expected at least one example in stream {name!r}, found none; check the data and its splits")
    kinds = {example.kind for example in examples}
    if kinds != {IMAGE if photos else TEXT}:
        raise InputError(f"expected only {IMAGE if photos else TEXT} rows in stream {name!r}, found {sorted(kinds)}")
    whose = [f" of {_whose(e)}" for e in examples]
    said = (
        (f"the text{owner}", words)
        for e, owner in zip(examples, whose, strict=True)
        for words in (e.question, e.answer)
    )
    text.check(processor, said)
    texts = text.encode(processor, [(e.question, e.answer) for e in examples], 1 if photos else 0, whose)
    for example, owner, length in zip(examples, whose, texts.lengths(0), strict=True):
        shown = max(photos.pictures[i].tokens for i in photos.of(example)) - 1 if photos else 0
        fit(int(length) + shown, sizes.tokens, "tokens", whose=owner)
    sizes = sizes.holding(**longest(texts, photos.pictures if photos else []))
    index = people | {rehearsal.NOBODY: -1}
    columns = {"person": np.array([index[e.person] for e in examples], np.int32)}
    return Stream(name, tuple(examples), texts, photos, rows, seed, sizes, columns)


def mixed(name: str, photos: Stream, words: Stream, seed: int) -> Stream:
    """The rows of a stream with photos and of one of text, shuffled into the same batches, of as many rows as the first's."""
    order = np.random.default_rng(seed).permutation(len(photos.examples) + len(words.examples))

    def dealt(first, second):
        both = [*first, *second]
        return [both[row] for row in order]

    def either(first, second):
        return tuple(sorted({*first, *second}))

    texts = dataclasses.replace(
        photos.texts,
        tokens=dealt(photos.texts.tokens, words.texts.tokens),
        weights=dealt(photos.texts.weights, words.texts.weights),
    )
    sizes = Sizes(either(photos.sizes.tokens, words.sizes.tokens), photos.sizes.patches)
    columns = {"person": np.array(dealt(photos.columns["person"], words.columns["person"]))}
    examples = tuple(dealt(photos.examples, words.examples))
    return Stream(name, examples, texts, photos.album, photos.rows, seed, sizes, columns)


def padding_line(streams: dict[str, Stream]) -> str:
    """How much of the slots of every stream is padding, for a person."""
    parts = []
    for name, stream in streams.items():
        shares = ", ".join(f"{100 * share:.0f} % of {what}" for what, share in stream.padding().items())
        parts.append(f"{name} {shares}")
    return f"    padding: {'; '.join(parts)}"


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over streams, on the devices a batch at a time; it may be walked again. ``bar.add()`` is called for each.

    ``shuffled``: whether a batch mixes the people of its stream, which matters where the batch is the unit.
    """

    streams: tuple[Stream, ...]
    mesh: jax.sharding.Mesh
    shuffled: bool = False
    bar: Any = None

    @classmethod
    def joined(cls, passes: list["Pass"]) -> "Pass":
        return dataclasses.replace(passes[0], streams=tuple(s for p in passes for s in p.streams))

    def shown(self, bar: Any) -> "Pass":
        return dataclasses.replace(self, bar=bar)

    def units(self, unit: str) -> float:
        """Units of evidence: batches, or examples."""
        return float(sum(len(s.examples) if unit == "example" else s.steps for s in self.streams))

    def __len__(self) -> int:
        return sum(stream.steps for stream in self.streams)

    def __iter__(self) -> Iterator[dict]:
        for stream in self.streams:
            for batch in stream.epoch(self.shuffled):
                if self.bar is not None:
                    self.bar.add()
                yield sharding.put(batch, self.mesh)
