"""Two hundred short questions of general knowledge, text alone, written for this library.

SmolLM2-135M-Instruct, a language model of 135 million parameters, answers every one of them rightly in twenty tokens; so what a
method takes from such a model is seen. They tell no two able models apart.
"""

import pathlib

from mmu_jax.data.general.items import Item, Question

FILE = pathlib.Path(__file__).with_name("everyday.tsv")
EMBEDDED = "embedded"  # what stands for a copy in a config, of which there is no need


def read(path: pathlib.Path) -> list[Item]:
    """The questions, each an item without an image; they come with the library, and ``path`` is not looked at."""
    del path
    pairs = (line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines())
    return [
        Item(str(i), (Question(question, answer),), None, f"everyday question {i}")
        for i, (question, answer) in enumerate(pairs)
    ]
