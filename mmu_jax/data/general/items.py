"""Items of a general benchmark: what counts as one, the image it is about, and which of them are drawn."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from mmu_jax import InputError


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, the right answer as the parser of its benchmark gives it, and the options by letter where there are any."""

    text: str
    answer: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Item:
    """What counts as one: its questions, all about one image, or about none.

    Attributes:
      id: its name in the benchmark.
      image: encoded bytes, or the file that holds them; None of an item that is text alone.
      where: file and row, for messages.
    """

    id: str
    questions: tuple[Question, ...]
    image: bytes | pathlib.Path | None
    where: str


def draw(items: Sequence[Item], count: int, seed: int) -> tuple[Item, ...]:
    """At most ``count`` items, drawn by the seed and in their order, with the bytes of their images; 0 for all.

    >>> items = [Item(str(i), (), b'', '') for i in range(9)]
    >>> [item.id for item in draw(items, 3, seed=0)], len(draw(items, 0, seed=0))
    (['2', '4', '5'], 9)

    Raises:
      InputError: the file of an image cannot be read.
    """
    chosen = range(len(items))
    if 0 < count < len(items):
        chosen = sorted(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    found: dict[pathlib.Path, bytes] = {}
    return tuple(dataclasses.replace(items[i], image=_encoded(items[i], found)) for i in chosen)


def _encoded(item: Item, found: dict[pathlib.Path, bytes]) -> bytes | None:
    """The bytes of an item's image; those of a file are read once."""
    if item.image is None or isinstance(item.image, bytes):
        return item.image
    try:
        return found.get(item.image) or found.setdefault(item.image, item.image.read_bytes())
    except OSError as error:
        raise InputError(
            f"expected an image that can be read for {item.where}, found {item.image} which cannot ({error.strerror}); "
            "copy it again"
        ) from error


def images(items: Sequence[Item]) -> tuple[list[tuple[bytes, str]], np.ndarray]:
    """The images of drawn items, each once and with where it stands, and ``[N]``, which of them every item is about.

    Of items without an image there is none, and each is about one of its own.
    """
    if not any(item.image for item in items):
        return [], np.arange(len(items))
    places: dict[bytes, int] = {}
    found = []
    for item in items:
        if item.image not in places:
            places[item.image] = len(found)
            found.append((item.image, f"the image of {item.where}"))
    return found, np.array([places[item.image] for item in items], int)


def stamp(items: Sequence[Item]) -> str:
    """A hash by which drawn items are known: their questions, options and answers, and the bytes of their images."""
    found, shown = (
        hashlib.sha256(),
        {image: hashlib.sha256(image or b"").digest() for image in {i.image for i in items}},
    )
    for item in items:
        said = [[q.text, q.answer, list(q.options.items())] for q in item.questions]
        found.update(json.dumps([item.id, said]).encode() + shown[item.image])
    return found.hexdigest()[:16]
