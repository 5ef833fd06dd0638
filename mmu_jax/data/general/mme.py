"""MME (arXiv 2306.13394): two questions an image, one to be answered with yes and one with no.

Read as published: a folder a subtask with ``<name>.txt`` (question, tab, Yes or No; two lines) beside ``<name>.jpg`` or ``.png``, or in
``questions_answers_YN`` beside ``images``; a TSV (``question``, ``answer``, ``category``, ``image`` in base64, ``image_path``); or the
Parquet files of ``lmms-lab/MME``.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.general import tables
from mmu_jax.data.general.items import Item, Question
from mmu_jax.files import read_text

PARQUET = (("data", "test"), (".", "test"))
SUBTASKS = {
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
} | {
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
}
APART = "questions_answers_YN"  # where texts lie that do not lie beside their images
SUFFIXES = (".jpg", ".jpeg", ".png")
ASIDE = "Please answer yes or no."  # LLaVA-1.5 is asked for a word instead


def read(source: pathlib.Path) -> list[Item]:
    """Every image an item, with its two questions.

    Raises:
      InputError: there are no such files, one is damaged, an image is not there or has not two questions; file and row are named.
    """
    texts = sorted(path for path in source.rglob("*.txt") if _is_subtask(path.parent)) if source.is_dir() else []
    return list(_folders(texts) if texts else _rows(source))


def _is_subtask(folder: pathlib.Path) -> bool:
    """Whether the texts in a folder are questions; those of the evaluation's own tools are not."""
    return folder.name in SUBTASKS | {APART} or any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


def _asked(question: Any, answer: Any, place: str) -> Question:
    words = tables.words(question, "a question", place).replace(ASIDE, "").strip()
    return Question(words, tables.yes_or_no(answer, "an answer", place))


def _paired(name: str, questions: list[Question], image: bytes | pathlib.Path, place: str) -> Item:
    if len(questions) != 2:
        raise InputError(f"expected two questions about {name} in {place}, found {len(questions)}; copy it again")
    return Item(name, tuple(questions), image, place)


def _folders(texts: list[pathlib.Path]) -> Iterator[Item]:
    for path in texts:
        apart, questions = path.parent.name == APART, []
        for index, line in enumerate(read_text(path, "questions of MME").split("\n")):
            question, _, answer = line.rpartition("\t")
            if line.strip():
                questions.append(_asked(question, answer, f"line {index + 1} of {path}"))
        images, subtask = (path.parent.parent / "images", path.parent.parent) if apart else (path.parent, path.parent)
        image = next((p for end in SUFFIXES for p in images.glob(f"{path.stem}.*") if p.suffix.lower() == end), None)
        if image is None:
            raise InputError(
                f"expected the image of {path} in {images}, found no {path.stem}.jpg or .png; copy it there"
            )
        yield _paired(f"{subtask.name}/{path.stem}", questions, image, str(path))


def _rows(source: pathlib.Path) -> Iterator[Item]:
    pairs: dict[str, list[tuple[dict, str]]] = {}
    for row, place in tables.rows(
        source, PARQUET, ("question", "answer", "category", "image"), ("question_id", "image_path", "index")
    ):
        key = row.get("image_path") or row.get("question_id")
        name = f"{cells.text(row['category'], place)}/{tables.words(key, 'a question_id or an image_path', place)}"
        pairs.setdefault(name, []).append((row, place))
    for name, pair in pairs.items():
        questions = [_asked(row["question"], row["answer"], place) for row, place in pair]
        shown = [row["image"] for row, _ in pair]
        # Of two rows about one image, the second may only name the first.
        cell = next((c for c in shown if not isinstance(c, str) or len(c) > 64), shown[0])
        yield _paired(name, questions, tables.image(cell, pair[0][1]), pair[0][1])
