"""POPE (arXiv 2305.10355): is there such an object in the image?

Read as published: ``*_pope_*.json``, a JSON object a line (``question_id``, ``image``, ``text``, ``label``), with the images beside
them; or the Parquet files of ``lmms-lab/POPE``, with the images in them.
"""

import json
import pathlib
from collections.abc import Iterator

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.general import tables
from mmu_jax.data.general.items import Item, Question
from mmu_jax.files import read_text

PARQUET = (("data", "test"), ("Full", ""), (".", ""))
COLUMNS = ("question_id", "question", "answer", "image")


def read(source: pathlib.Path) -> list[Item]:
    """Every question an item.

    Raises:
      InputError: there is no such file, one is damaged, or an image is not there; file and row are named.
    """
    files = sorted(source.rglob("*_pope_*.json"))
    return list(_lines(source, files) if files else _rows(source))


def _lines(source: pathlib.Path, files: list[pathlib.Path]) -> Iterator[Item]:
    folders = (*dict.fromkeys((source, *(path.parent for path in files))), *(source / n for n in ("val2014", "images")))
    for path in files:
        for index, line in enumerate(read_text(path, "a file of POPE").split("\n")):
            place = f"line {index + 1} of {path}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"expected JSON in {place}, found {cells.brief(line)} ({error}); copy it again"
                ) from error
            if not isinstance(row, dict):
                raise InputError(f"expected a JSON object in {place}, found {cells.brief(row)}; copy it again")
            asked = tables.words(row.get("text"), "a text", place)
            question = Question(asked, tables.yes_or_no(row.get("label"), "a label", place))
            image = tables.file_of(tables.words(row.get("image"), "an image", place), folders, place)
            name = tables.words(row.get("question_id"), "a question_id", place)
            yield Item(f"{path.stem}/{name}", (question,), image, place)


def _rows(source: pathlib.Path) -> Iterator[Item]:
    same = tables.Same()
    for row, place in tables.rows(source, PARQUET, COLUMNS, ("category",)):
        asked = tables.words(row["question"], "a question", place)
        question = Question(asked, tables.yes_or_no(row["answer"], "an answer", place))
        name = "/".join(filter(None, (cells.text(row.get(key), place) for key in ("category", "question_id"))))
        yield Item(name, (question,), same.one(tables.image(row["image"], place)), place)
