"""A row of a table in the MLLMU-Bench schema -> a person; and whether the people of a benchmark belong together."""

import collections
import dataclasses
import re
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, Benchmark, Choice, Example, Person, cells
from mmu_jax.data.options import read_choice

_KINDS = {"imagetextual": IMAGE, "puretext": TEXT}


def read_kind(said: Any, place: str) -> str:
    """IMAGE or TEXT for a ``Type`` in any spelling: case, spaces, hyphens and underscores do not count.

    Raises:
      InputError: it is neither.
    """
    said = cells.text(said, f"Type of {place}")
    found = _KINDS.get(re.sub(r"[\W_]", "", said).casefold())
    if found is None:
        raise InputError(f"expected Type {IMAGE} or {TEXT} in {place}, found {said[:60]!r}; correct it")
    return found


def _column(row: dict, name: str, split: str) -> Any:
    if name not in row:
        raise InputError(
            f"expected a column {name!r} in every row of split {split!r}, found only {', '.join(sorted(row))}; "
            "write the data in the MLLMU-Bench schema"
        )
    return row[name]


def _example(person: str, item: dict, answer: str, place: str, kind: str | None = None) -> Example:
    """An item as an Example, its answer under the key ``answer``, its Type ``kind`` where it says none."""
    question, truth = cells.text(item.get("Question"), place), cells.text(item.get(answer), place)
    if not question or not truth:
        what = f"a Question and {'an' if answer == 'Answer' else 'a'} {answer}"
        raise InputError(f"expected {what} in every item of {place}, found {str(item)[:120]}; fill it or remove it")
    kind = read_kind(item.get("Type") or kind, place)
    return Example(person, kind, question, truth, cells.photo(item.get("Photo"), place))


def _choice(person: str, kind: str, item: dict, place: str) -> Choice:
    question = cells.text(item.get("Question"), place)
    options, letter = read_choice(item.get("Options"), item.get("Correct_Answer"), place)
    if not question or not letter:
        what = "a Question and a right option"
        raise InputError(f"expected {what} in every item of {place}, found {str(item)[:120]}; fill it or remove it")
    return Choice(person, kind, question, options, letter, cells.photo(item.get("Photo"), place))


def read_person(row: dict, split: str) -> Person:
    """A row of the MLLMU-Bench schema (arXiv 2410.22108) -> Person.

    Columns: ``ID``, ``image`` (encoded bytes) and optionally ``images``, ``biography`` (JSON with ``Name``), ``metadata``
    (JSON list of ``Question``, ``Answer`` and optionally ``Type``), ``Classification_Task``, ``Mask_Task``,
    ``Generation_Task`` and optionally ``Perturbed_Task`` (multiple choice, each with its ``Type``, whose right option is a paraphrase). Any item may have a ``Photo``: the place of the photo it is about. Cells may have any form that
    ``mmu_jax.data.cells`` reads.

    Raises:
      InputError: a column is absent, a cell has no reading, or an item has no question, no answer or no Type.
    """
    person = cells.identity(_column(row, "ID", split), f"a row of split {split!r}")

    def place(column):
        return f"column {column!r} of split {split!r}, person {person}"

    photos = cells.images(_column(row, "image", split), f"person {person} in split {split!r}")
    if not photos:
        raise InputError(f"expected a photo in {place('image')}, found none; add it or remove the person")
    photos += cells.images(row.get("images"), f"person {person} in split {split!r}")
    name = cells.text(cells.table(_column(row, "biography", split), place("biography")).get("Name"), place("biography"))
    if not name:
        raise InputError(f"expected a Name in {place('biography')}, found none; fill it in")
    task = cells.table(_column(row, "Classification_Task", split), place("Classification_Task"))
    choices = tuple(
        _choice(person, kind, item, place("Classification_Task"))
        for kind, key in ((IMAGE, "Image_Textual_Questions"), (TEXT, "Pure_Text_Questions"))
        for item in cells.records(_column(task, key, split), place("Classification_Task"))
    )

    def examples(column, answer, kind=None):
        items = cells.records(_column(row, column, split), place(column))
        return tuple(_example(person, item, answer, place(column), kind) for item in items)

    training = examples("metadata", "Answer", IMAGE)
    cloze, generation = examples("Mask_Task", "Ground_Truth"), examples("Generation_Task", "Ground_Truth")
    rated = place("Perturbed_Task")
    items = cells.records(row.get("Perturbed_Task", []), rated)
    perturbed = tuple(_choice(person, read_kind(item.get("Type"), rated), item, rated) for item in items)
    return Person(person, name, tuple(photos), training, choices, cloze, generation, perturbed)


def check(benchmark: Benchmark, may_lack: tuple[str, ...] = ()) -> None:
    """Whether the people of the splits belong together; the sets of ``may_lack`` may be empty.

    Raises:
      InputError: the forget, retain or full set is empty; a person is in both of the first two, twice in a set, or in
        forget, retain, test or retain_test and not in full; an item is about a photo that is not there.
    """
    for name in ("forget", "retain", "full"):
        if not getattr(benchmark, name) and name not in may_lack:
            raise InputError(f"expected at least one person in the {name} set, found none; correct that split")
    sets = {field.name: getattr(benchmark, field.name) for field in dataclasses.fields(benchmark)}
    for name, people in sets.items():
        counts = collections.Counter(person.id for person in people)
        if twice := sorted(person for person, count in counts.items() if count > 1):
            raise InputError(
                f"expected every person once in {name}, found {', '.join(twice[:5])} twice; remove the second from the data"
            )
    both = sorted(set(benchmark.forget_ids) & {person.id for person in benchmark.retain})
    if both:
        raise InputError(
            f"expected nobody both in forget and retain, found {len(both)} people in both ({', '.join(both[:5])}); "
            "remove them from one of the two"
        )
    photos = {person.id: len(person.photos) for person in benchmark.full}
    for name in ("forget", "retain", "test", "retain_test"):
        if missing := sorted({person.id for person in sets[name]} - photos.keys()):
            raise InputError(
                f"expected every person of {name} in the training data (split 'full'), found no {', '.join(missing[:5])} "
                f"there ({len(missing)} of {len(sets[name])}); give all splits from the same data set"
            )
    for name, people in sets.items():
        shown = photos if name in ("forget", "retain") else {}  # they are asked about their training photos
        for person in people:
            _check_photos(person, shown.get(person.id, len(person.photos)), name)


def _check_photos(person: Person, count: int, split: str) -> None:
    items = (*person.training, *person.choices, *person.cloze, *person.generation, *person.perturbed)
    for item in items:
        if item.photo is not None and item.photo >= count:
            raise InputError(
                f"expected photos 0 to {count - 1} of person {person.id} in {split}, found Photo {item.photo} in the item "
                f"{item.question[:60]!r}; correct it or add the photo"
            )
