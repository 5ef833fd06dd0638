"""GQA (arXiv 1902.09506), its balanced test-dev split: questions that take several steps, answered in a word or two.

Read as published: ``testdev_balanced_questions.json``, an object of questions by id (``imageId``, ``question``, ``answer``), with
``images/<imageId>.jpg``; or the Parquet files of ``lmms-lab/GQA``, questions in one folder and images in another.
"""

import pathlib
from collections.abc import Iterator

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.general import tables
from mmu_jax.data.general.items import Item, Question
from mmu_jax.files import read_object

QUESTIONS, INSTRUCTIONS, IMAGES = (
    "testdev_balanced_questions.json",
    "testdev_balanced_instructions",
    "testdev_balanced_images",
)


def read(source: pathlib.Path) -> list[Item]:
    """Every question an item.

    Raises:
      InputError: there is no such file, it is damaged, or an image is not there; file and row are named.
    """
    path = next(iter(sorted(source.rglob(QUESTIONS))), None)
    if path is not None:
        return list(_questions(source, path))
    if not tables.has_parquet(source / INSTRUCTIONS):
        raise InputError(
            f"expected {QUESTIONS} with a folder of images, or Parquet files in {INSTRUCTIONS} and {IMAGES}, in {source}, found "
            "neither; copy it there"
        )
    return list(_rows(source))


def _item(name: str, row: dict, image: bytes | pathlib.Path, place: str) -> Item:
    asked = tables.words(row.get("question"), "a question", place)
    answer = tables.words(row.get("answer"), "an answer", place).lower()
    return Item(name, (Question(asked, answer),), image, place)


def _questions(source: pathlib.Path, path: pathlib.Path) -> Iterator[Item]:
    folders = tuple(dict.fromkeys((source / "images", path.parent / "images", path.parent.parent / "images")))
    files: dict[str, pathlib.Path] = {}
    for name, row in read_object(path, "the questions of GQA", {"*": dict}).items():
        place = f"question {name} of {path}"
        shown = tables.words(row.get("imageId"), "an imageId", place)
        files[shown] = files.get(shown) or tables.file_of(f"{shown}.jpg", folders, place)
        yield _item(name, row, files[shown], place)


def _rows(source: pathlib.Path) -> Iterator[Item]:
    shown = {
        tables.words(row["id"], "an id", place): tables.image(row["image"], place)
        for row, place in tables.rows(source, ((IMAGES, ""),), ("id", "image"))
    }
    for row, place in tables.rows(source, ((INSTRUCTIONS, ""),), ("id", "imageId", "question", "answer")):
        name = cells.text(row["imageId"], place)
        if name not in shown:
            raise InputError(
                f"expected the image {name} of {place} in {source / IMAGES}, found none; download it again"
            )
        yield _item(cells.identity(row["id"], place), row, shown[name], place)
