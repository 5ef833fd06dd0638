"""Examples, and the arrays a model sees.

A *batch* is a dict of arrays of static shape. Axis letters: B rows, T tokens, I images of a row, C channels, N patches of
a row, F values of a patch.

=============  ==================  ================================================================================
``tokens``     ``[B,T]`` int32     prompt, answer, end of turn, padding; every image expanded to its image tokens
``valid``      ``[B,T]`` bool      True where ``tokens`` is not padding
``weights``    ``[B,T]`` float32   loss weight of *predicting* that token: 1 on the answer and the end of turn, else 0
``positions``  ``[B,T]`` int32     0, 1, 2, ... over the valid tokens; ``[B,3,T]`` time, height, width for M-RoPE
``pixels``     ``[B,I,C,h,w]``     float32, normalised (LLaVA)
``patches``    ``[B,N,F]``         float32, normalised, images of any size after one another (Qwen2-VL)
``grid``       ``[B,N,2]`` int32   row and column of a patch in its image
``segment``    ``[B,N]`` int32     which image of the row a patch belongs to, -1 for padding
``person``     ``[B]`` int32       whose row it is: index into ``Benchmark.people``
``row``        ``[B]`` int32       index into the stream's examples; -1 for rows that only fill the batch
``ref_logps``  ``[B]`` float32     log-probability of the answer under the reference model, where a loss needs it
=============  ==================  ================================================================================

Text-only batches have no image arrays and skip the vision tower.
"""

import collections
import dataclasses
import re
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells

IMAGE, TEXT = "Image_Textual", "Pure_Text"


@dataclasses.dataclass(frozen=True)
class Example:
    """A question and its answer: about a photo (``kind`` IMAGE) or about a name (``kind`` TEXT).

    ``photo`` is the place among the person's photos it is about, None where any will do.
    """

    person: str
    kind: str
    question: str
    answer: str
    photo: int | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A multiple-choice question: ``options`` by letter, ``letter`` the right one; ``photo`` as in :class:`Example`."""

    person: str
    kind: str
    question: str
    options: dict[str, str]
    letter: str
    photo: int | None = None


@dataclasses.dataclass(frozen=True)
class Person:
    """One row of a benchmark split."""

    id: str
    name: str
    photos: tuple[bytes, ...]
    training: tuple[Example, ...]
    choices: tuple[Choice, ...]
    cloze: tuple[Example, ...]
    generation: tuple[Example, ...]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The people of every split.

    Attributes:
      full: everyone the vanilla model is trained on, with training photos and questions.
      forget, retain: who is to be forgotten, who is kept.
      test: the people to forget on new photos, asked in other words; may be empty, as all below.
      unseen: people no model was trained on.
      celebrity: real people the pretrained model may know.
    """

    full: tuple[Person, ...]
    forget: tuple[Person, ...]
    retain: tuple[Person, ...]
    test: tuple[Person, ...] = ()
    unseen: tuple[Person, ...] = ()
    celebrity: tuple[Person, ...] = ()

    @property
    def forget_ids(self) -> list[str]:
        return [person.id for person in self.forget]


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
    options, letter = cells.choice(item.get("Options"), item.get("Correct_Answer"), place)
    if not question or not letter:
        what = "a Question and a right option"
        raise InputError(f"expected {what} in every item of {place}, found {str(item)[:120]}; fill it or remove it")
    return Choice(person, kind, question, options, letter, cells.photo(item.get("Photo"), place))


def read_person(row: dict, split: str) -> Person:
    """A row of the MLLMU-Bench schema (arXiv 2410.22108) -> Person.

    Columns: ``ID``, ``image`` (encoded bytes) and optionally ``images``, ``biography`` (JSON with ``Name``), ``metadata``
    (JSON list of ``Question``, ``Answer`` and optionally ``Type``), ``Classification_Task``, ``Mask_Task``,
    ``Generation_Task``. Any item may have a ``Photo``: the place of the photo it is about. Cells may have any form that
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
    return Person(person, name, tuple(photos), training, choices, cloze, generation)


def check(benchmark: Benchmark) -> None:
    """Whether the people of the splits belong together.

    Raises:
      InputError: the forget, retain or full set is empty; a person is in both of the first two, twice in a set, or in
        forget, retain or test and not in full; an item is about a photo that is not there.
    """
    for name in ("forget", "retain", "full"):
        if not getattr(benchmark, name):
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
    for name in ("forget", "retain", "test"):
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
    items = (*person.training, *person.choices, *person.cloze, *person.generation)
    for item in items:
        if item.photo is not None and item.photo >= count:
            raise InputError(
                f"expected photos 0 to {count - 1} of person {person.id} in {split}, found Photo {item.photo} in the item "
                f"{item.question[:60]!r}; correct it or add the photo"
            )
