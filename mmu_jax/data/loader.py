"""Photographs: decoded into albums, and looked through with every text before anything is trained."""

import dataclasses
from collections.abc import Iterable, Iterator

from PIL.Image import Image

from mmu_jax.data import Choice, Example, Person, Processor, text, vision
from mmu_jax.data.picture import Later, Picture, levels
from mmu_jax.data.sizes import ANY, Sizes, fit

KEPT = 2**31  # bytes of the photos of an album that stay in memory: some six thousand of 336 x 336


@dataclasses.dataclass(frozen=True)
class Album:
    """Decoded photographs of a set of people: the pictures and each person's place among them."""

    pictures: list[Picture | Later]
    photos: dict[str, list[int]]

    def of(self, item: Example | Choice) -> list[int]:
        """The places of the photos an item may be shown with: those of its person, or the one it is about."""
        photos = self.photos[item.person]
        return photos if item.photo is None else photos[item.photo : item.photo + 1]


def decode(person: Person) -> list[Image]:
    """The decoded photos of a person.

    Raises:
      InputError: one does not decode; photo and person are named.
    """
    return [vision.decode(photo, where) for photo, where in _photos(person)]


def _photos(person: Person) -> list[tuple[bytes, str]]:
    """The encoded photos of a person, each with what it is called in messages."""
    return [(photo, f"photo {i} of person {person.id}") for i, photo in enumerate(person.photos)]


def album(processor: Processor, people: tuple[Person, ...], max_pixels: int = 0, keep: int = KEPT) -> Album:
    """Decodes every photo once; ``keep`` bytes of them stay in memory, of more only their sizes, and they are decoded when dealt."""
    photos, encoded = {}, []
    for person in people:
        photos[person.id] = list(range(len(encoded), len(encoded) + len(person.photos)))
        encoded += _photos(person)
    return Album(shown(processor, encoded, max_pixels, keep), photos)


def shown(
    processor: Processor, encoded: list[tuple[bytes, str]], max_pixels: int = 0, keep: int = KEPT
) -> list[Picture | Later]:
    """The same of encoded photos, each with what it is called in messages."""

    shades = levels(processor.image_processor) if encoded else None

    def make(part):
        images, names = [vision.decode(*photo) for photo in part], [name for _, name in part]
        return vision.pictures(processor, images, max_pixels, names, shades)

    pictures: list[Picture | Later] = []
    for start in range(0, len(encoded), 256):
        part = encoded[start : start + 256]
        for photo, picture in zip(part, make(part), strict=True):
            keep -= picture.nbytes
            made = picture if keep >= 0 else Later(picture, lambda photo=photo: make([photo])[0].array)
            pictures.append(made)
    return pictures


def examine(processor: Processor, people: Iterable[Person], max_pixels: int = 0, bounds: Sizes = ANY) -> None:
    """Decodes every photo and reads every text once, so that what cannot be shown or asked is found before training.

    Raises:
      InputError: a photo does not decode, has a shape that the processor refuses or does not fit ``max_pixels`` and
        ``bounds``; a text is refused by :func:`text.check`. Photo and person are named.
    """
    for person in people:
        for photo, where in _photos(person):
            found = vision.measure(processor, vision.decode(photo, where).size, max_pixels, where)
            for what, length in (("patches", found.patches), ("tokens", found.tokens)):
                fit(length, getattr(bounds, what), what, whose=f" for {where}")
        text.check(processor, _texts(person))


def _texts(person: Person) -> Iterator[tuple[str, str]]:
    """Everything that is asked of a person and answered, each with where it stands."""
    for task in ("training", "choices", "cloze", "generation"):
        for item in getattr(person, task):
            answers = item.options.values() if isinstance(item, Choice) else (item.answer,)
            yield from ((f"the {task} of person {person.id}", words) for words in (item.question, *answers))
