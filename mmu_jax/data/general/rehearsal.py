"""Short general questions with their answers, about nobody in a data set, to be taught beside one.

Fine-tuned on the facts of a few people alone, a language model answers whatever it is asked with one of these facts. Rehearsal
(Robins, Connection Science 7, 1995) of other questions, put and answered as shortly, keeps what it knows in reach. None of
them is asked by :mod:`mmu_jax.data.general.everyday`, many have its form.
"""

import pathlib

from mmu_jax.data import TEXT, Example

FILE = pathlib.Path(__file__).with_name("rehearsal.tsv")
NOBODY = ""  # whose they are


def read() -> list[Example]:
    """The questions, each with its answer."""
    pairs = (line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines())
    return [Example(NOBODY, TEXT, question, answer) for question, answer in pairs]
