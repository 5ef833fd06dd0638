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

import dataclasses
import json

from mmu_jax import InputError

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


def _column(row: dict, name: str, split: str):
    if name not in row:
        raise InputError(
            f"expected a column {name!r} in every row of split {split!r}, found only {', '.join(sorted(row))}; "
            "write the data in the MLLMU-Bench schema"
        )
    return row[name]


def _records(value) -> list[dict]:
    """A list of structs, whether it is stored as one or as a struct of columns."""
    if not isinstance(value, dict):
        return list(value)
    columns = {key: _records(items) for key, items in value.items()}
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]


def _json(row: dict, name: str, split: str):
    text = _text(_column(row, name, split))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"expected JSON in column {name!r} of split {split!r}, found {text[:60]!r} ({error}); mend that row"
        ) from error


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(image) -> bytes:
    return image["bytes"] if isinstance(image, dict) else bytes(image)


def _options(value) -> dict[str, str]:
    """Options by letter: a struct, or JSON."""
    table = value if isinstance(value, dict) else json.loads(_text(value))
    return {letter: _text(table[letter]) for letter in sorted(table)}


def _photo(item: dict) -> int | None:
    return int(item["Photo"]) if int(item.get("Photo", -1)) >= 0 else None


def read_person(row: dict, split: str) -> Person:
    """A row of the MLLMU-Bench schema (arXiv 2410.22108) -> Person.

    Columns: ``ID``, ``image`` (encoded bytes) and optionally ``images``, ``biography`` (JSON with ``Name``), ``metadata``
    (JSON list of ``Question``, ``Answer`` and optionally ``Type``), ``Classification_Task``, ``Mask_Task``,
    ``Generation_Task``. Any item may have a ``Photo``: the place of the photo it is about.

    Raises:
      InputError: a column is absent, or a training item has an empty question or answer.
    """
    person = _text(_column(row, "ID", split))
    photos = [_bytes(_column(row, "image", split))] + [_bytes(image) for image in row.get("images", ())]
    training = []
    for item in _json(row, "metadata", split):
        if not item.get("Question") or not item.get("Answer"):
            raise InputError(
                f"expected a Question and an Answer in every metadata item, found {item} for person {person} in split "
                f"{split!r}; fill it or remove it"
            )
        training.append(Example(person, item.get("Type", IMAGE), item["Question"], item["Answer"], _photo(item)))
    choices = []
    task = _column(row, "Classification_Task", split)
    for kind, key in ((IMAGE, "Image_Textual_Questions"), (TEXT, "Pure_Text_Questions")):
        for item in _records(_column(task, key, split)):
            options, letter = _options(item["Options"]), _text(item["Correct_Answer"])
            choices.append(Choice(person, kind, _text(item["Question"]), options, letter, _photo(item)))

    def examples(column):
        return tuple(
            Example(person, _text(i["Type"]), _text(i["Question"]), _text(i["Ground_Truth"]), _photo(i))
            for i in _records(_column(row, column, split))
        )

    name = _column(_json(row, "biography", split), "Name", split)
    cloze, generation = examples("Mask_Task"), examples("Generation_Task")
    return Person(person, name, tuple(photos), tuple(training), tuple(choices), cloze, generation)


def check(benchmark: Benchmark) -> None:
    """Raises InputError for an empty forget or retain set, or a person in both."""
    for name in ("forget", "retain", "full"):
        if not getattr(benchmark, name):
            raise InputError(f"expected at least one person in the {name} set, found none; correct config.data.{name}")
    both = sorted(set(benchmark.forget_ids) & {person.id for person in benchmark.retain})
    if both:
        raise InputError(
            f"expected nobody both in forget and retain, found {len(both)} people in both ({', '.join(both[:5])}); "
            "remove them from one of the two"
        )
    missing = sorted((set(benchmark.forget_ids)) - {person.id for person in benchmark.full})
    if missing:
        raise InputError(
            f"expected every person to forget in the training data, found no {', '.join(missing[:5])} there"
        )
