"""One's own people: a folder of photos and a table of questions, as ``mmu_jax.data.people`` reads them.

Of every person some photos are held out, and of a question that is there in other words the last wording: the test split. The
wrong options of multiple choice are other people's answers to the same question. People never seen are those of the folder
``strangers``, or, where there is none, faces of people who do not exist; they are asked what those to forget are asked.
"""

import dataclasses
import json
import pathlib
import string
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mmu_jax.data import IMAGE, TEXT, facts, names, people
from mmu_jax.data.options import same
from mmu_jax.data.people import Folder, Found, Row
from mmu_jax.data.sets import faces

HUB, FETCHED = "", []  # nothing on the hub: the source must be a folder
KEYS = {IMAGE: "Image_Textual_Questions", TEXT: "Pure_Text_Questions"}
SHOWN = 4  # held-out photos that a question is asked about, at most
OPTIONS = 4


def faults(source: pathlib.Path, forget: str = "", retain: str = "") -> list[str]:
    """All that is wrong with a folder, and with who is to be forgotten and kept of it, a line each.

    Args:
      forget, retain: names or ids of people, separated by commas; what is empty is not looked at.
    """
    found = people.read(source)
    known = {person.id: person.name for person in found.people}
    told, chosen = list(found.faults), {}
    for what, said in (("forget", forget), ("keep", retain)):
        chosen[what], unknown = names.resolve(said, known)
        told += [
            f"{source}: expected people who have a folder there to {what}, found {name!r}{names.nearest(name, known.values())}; correct it"
            for name in unknown
        ]
    told += [
        f"{source}: expected nobody both kept and forgotten, found {known[id_]!r} in both; remove them from one"
        for id_ in chosen["forget"]
        if id_ in chosen["keep"]
    ]
    for person in found.people:
        held, (taught, _) = held_out(found, person), divided(found, person)
        if person.photos and len(held) == len(person.photos):
            told.append(f"{source}: expected a photo of {person.name!r} that is not of the test, found none; add one")
        told += [
            f"{row.where}: expected a photo of the test in rows of the test alone, found {row.photo!r} in both; change split"
            for row in found.asked(person)
            if row.test is False and row.photo in held
        ]
        if person.id in chosen["forget"] and person.photos and not any(row.kind == IMAGE for row in taught):
            told.append(
                f"{source}: expected a question about the face of {person.name!r}, found none; add a row to the table"
            )
    return told


def remarks(source: pathlib.Path) -> tuple[str, ...]:
    """What of a folder is not read, and what of it is not asked, a line each."""
    found = people.read(source)
    unasked = {
        person: sum(bool(row.test) for row in found.asked(person))
        for person in found.people
        if not held_out(found, person)
    }
    return (
        *found.remarks,
        *(
            f"{person.folder.relative_to(source)} has no second photo to keep for the test: {count} rows of it are not asked"
            for person, count in unasked.items()
            if count
        ),
    )


def splits(source: pathlib.Path) -> list[str]:
    """The splits there are; none where nobody has a folder."""
    found = people.read(source)
    tested = any(held_out(found, person) for person in found.people)
    return ["full", *["test"] * tested, "unseen"] if found.people else []


def rows(split: str, source: pathlib.Path) -> Iterator[dict]:
    """Rows of ``'full'``, ``'test'`` or ``'unseen'`` in the schema of ``mmu_jax.data.schema.read_person``."""
    found = people.read(source)
    if split == "unseen":
        photos = [path.read_bytes() for path in found.strangers] or list(faces.composites())
        yield from (_row(f"stranger-{i:02d}", f"stranger {i}", [photo], [], [], {}) for i, photo in enumerate(photos))
        return
    rivals = Rivals(found)
    for person in found.people:
        held, (taught, asked) = held_out(found, person), divided(found, person)
        if split == "full":
            photos = [name for name in person.photos if name not in held]
            items = [(row, photos.index(row.photo) if row.photo else None) for row in taught]
            choices = rivals.choices(person, items)
            yield _row(person.id, person.name, _read(person, photos), items, items, choices)
        elif held:
            items = [item for row in asked for item in _shown(row, held)]
            yield _row(person.id, person.name, _read(person, held), [], items, rivals.choices(person, items))


Item = tuple[Row, int | None]  # a question, and the place of the photo it is about


def _shown(row: Row, held: Sequence[str]) -> list[Item]:
    """A question of the test: about its photo, else about each of those held out."""
    if row.kind == TEXT:
        return [(row, None)]
    return [(row, held.index(row.photo))] if row.photo else [(row, place) for place in range(min(len(held), SHOWN))]


def held_out(folder: Folder, person: Found) -> list[str]:
    """The photos of a person that only the test shows: those of rows that say so, else the last fifth, at least one of two."""
    asked = [row for row in folder.asked(person) if row.photo]
    if said := {row.photo for row in asked if row.test}:
        return [name for name in person.photos if name in said]
    free = [name for name in person.photos if name not in {row.photo for row in asked}]
    free = free or [name for name in person.photos if name not in {row.photo for row in asked if row.test is False}]
    return free[-max(1, len(person.photos) // 5) :] if len(person.photos) > 1 else []


def divided(folder: Folder, person: Found) -> tuple[list[Row], list[Row]]:
    """The questions about a person that are taught, and those that only the test asks.

    Rows say so themselves; where none does, the last of several wordings (one answer, by face or by name) is the test's. What of a
    face no such row asks for, the test asks on new photos in the words that are taught: no fact is left out. Without a photo
    that is kept for it there is no test.
    """
    rows, held = folder.asked(person), held_out(folder, person)
    taught = [row for row in rows if not row.test and row.photo not in held]
    tested = [row for row in rows if row.test or row.photo in held and row.photo]
    if not held:
        return taught, []
    for kind in (IMAGE, TEXT):
        if any(row.kind == kind for row in tested):
            continue
        wordings: dict[str, list[Row]] = {}
        for row in taught:
            if row.kind == kind and row.test is None and not row.photo:
                wordings.setdefault(facts.key(row.question, row.answer), []).append(row)
        again = [said[-1] for said in wordings.values() if len(said) > 1]
        taught = [row for row in taught if row not in again]
        tested += again
    covered = {facts.key(row.question, row.answer) for row in tested if row.kind == IMAGE}
    left = [row for row in taught if row.kind == IMAGE and facts.key(row.question, row.answer) not in covered]
    tested += [dataclasses.replace(row, photo="") for row in left]
    return taught, tested


class Rivals:
    """Other people's answers to the same question, as wrong options; to who somebody is, other people's names."""

    def __init__(self, folder: Folder):
        self._names = [person.name for person in folder.people]
        self._answers: dict[tuple[str, str], list[str]] = {}
        for person in folder.people:
            for row in folder.asked(person):
                self._answers.setdefault((row.kind, _unnamed(row, person)), []).append(row.answer)

    def choices(self, person: Found, items: Sequence[Item]) -> dict[str, list[dict]]:
        """The multiple-choice questions of items, by key of the schema."""
        found: dict[str, list[dict]] = {key: [] for key in KEYS.values()}
        for row, photo in items:
            options, letter = (row.options, row.letter) if row.options else self._options(row, person)
            asked = {"Question": row.question, "Options": options, "Correct_Answer": letter}
            found[KEYS[row.kind]].append(asked | _about(photo))
        return found

    def _options(self, row: Row, person: Found) -> tuple[dict[str, str], str]:
        pool = [*self._answers[row.kind, _unnamed(row, person)]]
        pool += self._names if same(row.answer, person.name) else []
        wrong = [answer for answer in dict.fromkeys(pool) if not same(answer, row.answer)]
        rng = np.random.default_rng(zlib.crc32(f"{person.id} {row.question}".encode()))
        chosen = [wrong[i] for i in rng.permutation(len(wrong))[: OPTIONS - 1]]
        chosen.insert(int(rng.integers(len(chosen) + 1)), row.answer)
        return dict(zip(string.ascii_uppercase, chosen, strict=False)), string.ascii_uppercase[chosen.index(row.answer)]


def _unnamed(row: Row, person: Found) -> str:
    """A question with the name taken out, by which it is the same question about somebody else."""
    return names.without(person.name, row.question)


def _about(photo: int | None) -> Mapping[str, int]:
    return {} if photo is None else {"Photo": photo}


def _read(person: Found, photos: Sequence[str]) -> list[bytes]:
    return [(person.folder / name).read_bytes() for name in photos]


def _row(
    id_: str, name: str, photos: list[bytes], taught: Sequence[Item], asked: Sequence[Item], choices: dict
) -> dict:
    """A person in the schema."""
    said = [{"Question": r.question, "Answer": r.answer, "Type": r.kind, **_about(photo)} for r, photo in taught]
    put = [{"Question": r.question, "Ground_Truth": r.answer, "Type": r.kind, **_about(photo)} for r, photo in asked]
    return {
        "ID": id_,
        "image": photos[0],
        "images": photos[1:],
        "biography": json.dumps({"Name": name}),
        "metadata": json.dumps(said),
        "Classification_Task": choices or {key: [] for key in KEYS.values()},
        "Mask_Task": [],
        "Generation_Task": put,
    }
