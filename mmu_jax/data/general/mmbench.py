"""MMBench (arXiv 2307.06281), its dev split: a question is right only if it is so with its options in every rotation.

Read as published: a TSV (``index``, ``question``, ``hint``, ``A`` to ``E``, ``answer``, ``image`` in base64 or the index of a row that
has it), or the Parquet files of ``lmms-lab/MMBench``. Rotations that the file has, under indices a million apart, are taken as they
are; of a question that stands there once they are made.
"""

import pathlib
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.general import tables
from mmu_jax.data.general.items import Item, Question
from mmu_jax.data.options import read_choice

PARQUET = (("en", "dev"), ("data", "dev"), (".", "dev"))
COLUMNS, LETTERS = ("index", "question", "answer", "image"), "ABCDE"
APART = 10**6  # the indices of two rotations of one question
REFERENCE = 64  # characters: an image is longer, the index of a row is not


def read(source: pathlib.Path) -> list[Item]:
    """Every question an item, with all its rotations.

    Raises:
      InputError: there is no such file, it is damaged, or a row has no answer, as those of the test split; its row is named.
    """
    found = list(tables.rows(source, PARQUET, COLUMNS, ("hint", *LETTERS)))
    rows = {_index(row, place): (row, place) for row, place in found}
    if len(rows) < len(found):
        raise InputError(
            f"expected every index once in {source}, found {len(found) - len(rows)} twice; download it again"
        )
    groups: dict[int, list[int]] = {}
    for index in rows:
        groups.setdefault(index % APART, []).append(index)
    same, items = tables.Same(), []
    for name, indices in groups.items():
        row, place = rows[indices[0]]
        asked = [_question(*rows[index]) for index in indices]
        image = same.one(_image(rows, row, place))
        items.append(Item(str(name), tuple(asked if len(asked) > 1 else rotations(asked[0])), image, place))
    return items


def _index(row: dict[str, Any], place: str) -> int:
    said = cells.text(row["index"], f"index of {place}")
    if not said.isdecimal():
        raise InputError(f"expected a number as index of {place}, found {said[:60]!r}; download the data set again")
    return int(said)


def _image(rows: dict[int, tuple[dict, str]], row: dict[str, Any], place: str) -> bytes:
    cell = row["image"]
    if not isinstance(cell, str) or len(cell) > REFERENCE:
        return tables.image(cell, place)
    there = rows.get(int(cell)) if cell.isdecimal() else None
    if there is None or isinstance(there[0]["image"], str) and len(there[0]["image"]) <= REFERENCE:
        raise InputError(
            f"expected an image in base64, or the index of a row with one, in {place}, found {cell!r}; download it again"
        )
    return tables.image(*((there[0]["image"]), there[1]))


def _given(cell: Any) -> Any:
    """A cell, None where it says that there is none, as tables of pandas do."""
    return None if isinstance(cell, str) and cell.strip().casefold() in ("nan", "none") else cell


def _question(row: dict[str, Any], place: str) -> Question:
    asked, hint = tables.words(row["question"], "a question", place), cells.text(_given(row.get("hint")), place).strip()
    options, right = read_choice({k: _given(row[k]) for k in LETTERS if k in row}, _given(row["answer"]), place)
    if not right:
        raise InputError(
            f"expected options and the letter of the right one in {place}, found {cells.brief(row['answer'])}; the dev split has "
            "answers, the test split has none"
        )
    return Question(f"{hint}\n{asked}" if hint else asked, right, options)


def rotations(question: Question) -> list[Question]:
    """A question with its options moved up by none, one, two, ... places, until each was at every letter.

    >>> [(q.options['A'], q.answer) for q in rotations(Question('', 'B', {'A': 'cat', 'B': 'dog'}))]
    [('cat', 'B'), ('dog', 'A')]
    """
    letters, said = list(question.options), list(question.options.values())
    right, found = letters.index(question.answer), []
    for turn in range(len(letters)):
        turned = dict(zip(letters, said[turn:] + said[:turn], strict=True))
        found.append(Question(question.text, letters[(right - turn) % len(letters)], turned))
    return found
