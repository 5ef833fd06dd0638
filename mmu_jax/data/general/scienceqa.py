"""ScienceQA (arXiv 2209.09513), the questions of its test split that have an image.

Read as published: ``problems.json`` (``question``, ``choices``, ``answer``, ``hint``, ``image`` by id), ``pid_splits.json`` and
``images/test/<id>/<image>``; or the Parquet files of ``lmms-lab/ScienceQA`` or ``lmms-lab/ScienceQA-IMG``.
"""

import pathlib
import string
from collections.abc import Iterator
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.general import tables
from mmu_jax.data.general.items import Item, Question
from mmu_jax.data.options import read_choice
from mmu_jax.files import read_object

SPLIT = "test"
PARQUET = (("ScienceQA-IMG", SPLIT), ("data", SPLIT), (".", SPLIT))
COLUMNS = ("image", "question", "choices", "answer", "hint")


def read(source: pathlib.Path) -> list[Item]:
    """Every question an item.

    Raises:
      InputError: there is no such file, one is damaged, or an image is not there; file and row are named.
    """
    path = next(iter(sorted(source.rglob("problems.json"))), None)
    return list(_problems(path) if path is not None else _rows(source))


def _question(row: dict[str, Any], place: str) -> Question:
    asked, hint = tables.words(row.get("question"), "a question", place), cells.text(row.get("hint"), place).strip()
    index = cells.text(row.get("answer"), place)
    if not (index.isdecimal() and int(index) < len(string.ascii_uppercase)):
        raise InputError(f"expected the place of the right choice as answer of {place}, found {index!r}; copy it again")
    choices = cells.read(row.get("choices"), f"choices of {place}")
    options, right = read_choice(choices, string.ascii_uppercase[int(index)], place)
    if not right:
        raise InputError(f"expected choices with the right one among them in {place}, found {choices!r}; copy it again")
    return Question(f"Context: {hint}\n{asked}" if hint else asked, right, options)


def _problems(path: pathlib.Path) -> Iterator[Item]:
    problems = read_object(path, "the problems of ScienceQA", {"*": dict})
    splits = read_object(path.parent / "pid_splits.json", "the splits of ScienceQA", {SPLIT: [str]})
    folders = (path.parent / "images" / SPLIT, path.parent / SPLIT)
    for name in splits[SPLIT]:
        place = f"problem {name} of {path}"
        if name not in problems:
            raise InputError(f"expected {place}, which pid_splits.json names, found none; copy both again")
        row = problems[name]
        if row.get("image"):
            file = tables.file_of(f"{name}/{row['image']}", folders, place)
            yield Item(name, (_question(row, place),), file, place)


def _rows(source: pathlib.Path) -> Iterator[Item]:
    for index, (row, place) in enumerate(tables.rows(source, PARQUET, COLUMNS)):
        if row["image"] is not None:
            yield Item(str(index), (_question(row, place),), tables.image(row["image"], place), place)
