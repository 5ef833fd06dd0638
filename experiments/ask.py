"""Asks a model questions, about a photo or about none, and prints what it answers.

    python -m experiments.ask --model=DIR --image=FILE "Who is this?" "Where was this person born?"
    python -m experiments.ask --model=DIR "Who is Ada Berg?"

DIR is a Hugging Face directory or an id on the hub: one that was given, or one that forgot. With several --image each question is
asked about each.
"""

import pathlib

import numpy as np
from absl import app, flags

from experiments import command
from mmu_jax import InputError, evaluate
from mmu_jax.data import Person, loader

MODEL = flags.DEFINE_string("model", None, "The model: a Hugging Face directory, or an id on the hub.")
IMAGE = flags.DEFINE_multi_string("image", [], "A photo; may be given several times.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "The longest answer, in tokens.", 1)


def photo(path: str) -> bytes:
    """The bytes of a photo; InputError where there is none."""
    if not pathlib.Path(path).is_file():
        raise InputError(f"expected a photo in --image, found no file at {path}; correct it")
    return pathlib.Path(path).read_bytes()


def run(questions: list[str]) -> None:
    """Asks the questions of the command line."""
    if not MODEL.value or not questions:
        raise InputError(f"expected {'a question' if MODEL.value else '--model=DIR'}, found none; see --help")
    shown = [photo(path) for path in IMAGE.value]
    rows = max(len(questions) * max(len(shown), 1), 1)
    examiner, params = evaluate.of_checkpoint(MODEL.value, rows=min(rows, 32), new_tokens=NEW_TOKENS.value)
    if not shown:
        for question, answer in zip(questions, examiner.answers(params, questions, None, None), strict=True):
            print(f"{question}\n  {answer}")
        return
    people = tuple(
        Person(path, path, (encoded,), (), (), (), ()) for path, encoded in zip(IMAGE.value, shown, strict=True)
    )
    album = loader.album(examiner.processor, people)
    asked = [question for _ in shown for question in questions]
    answers = examiner.answers(params, asked, np.repeat(np.arange(len(shown)), len(questions)), album)
    for index, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        if len(shown) > 1 and index % len(questions) == 0:
            print(IMAGE.value[index // len(questions)])
        print(f"{question}\n  {answer}")


def main(argv: list[str]) -> None:
    command.quiet()
    command.spoken(run, argv[1:])


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_with_words)
