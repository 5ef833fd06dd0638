"""The table of general benchmarks: how each is read, asked, parsed and scored."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from mmu_jax import InputError
from mmu_jax.data.general import answers, everyday, gqa, mmbench, mme, pope, scienceqa
from mmu_jax.data.general.items import Item, Question

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def share(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The share of every item's questions that are right, of ``right [N]`` and ``asked [N]``.

    >>> share(np.array([1, 2]), np.array([2, 2])).tolist()
    [0.5, 1.0]
    """
    return right / asked


def every(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """1 where all of an item's questions are right, else 0.

    >>> every(np.array([1, 2]), np.array([2, 2])).tolist()
    [0.0, 1.0]
    """
    return (right == asked).astype(float)


@dataclasses.dataclass(frozen=True)
class General:
    """A row of the table.

    Attributes:
      read: a folder or file as published -> items.
      instruction: what is asked below every question, as LLaVA-1.5 is asked (arXiv 2310.03744).
      parse: ``(said, question) -> what was chosen``, right where it is the question's answer.
      measures: title of a column -> value of every item, from how many of its questions are right and how many there are.
      hub: a repository with a copy; empty where it comes with this library.
      source: the paper.
    """

    read: Callable[[pathlib.Path], list[Item]]
    instruction: str
    parse: Callable[[str, Question], str | None]
    measures: dict[str, Measure]
    hub: str
    source: str

    def ask(self, question: Question) -> str:
        """A question as it is put: with its options and the instruction, a line each.

        >>> GENERAL['scienceqa'].ask(Question('Which?', 'A', {'A': 'cat', 'B': 'dog'})).splitlines()[:3]
        ['Which?', 'A. cat', 'B. dog']
        """
        options = (f"{letter}. {option}" for letter, option in question.options.items())
        return "\n".join(filter(None, (question.text, *options, self.instruction)))

    def right(self, item: Item, said: list[str]) -> int:
        """How many of an item's questions were answered rightly."""
        pairs = zip(said, item.questions, strict=True)
        return sum(self.parse(words, question) == question.answer for words, question in pairs)

    def one_answer(self, items: Sequence[Item]) -> dict[str, float]:
        """The most that one answer to every question scores, by measure: a model that is no better shows nothing.

        >>> pair = Item('1', (Question('Is it?', 'yes'), Question('Is it?', 'no')), b'', '')
        >>> GENERAL['mme'].one_answer([pair])
        {'MME': 0.5, 'MME acc+': 0.0}
        """
        asked, rows = np.array([len(item.questions) for item in items]), {}
        for place, item in enumerate(items):
            for question in item.questions:
                rows.setdefault(question.answer, np.zeros(len(items)))[place] += 1
        return {
            title: max(float(of(row, asked).mean()) for row in rows.values()) for title, of in self.measures.items()
        }


GENERAL: dict[str, General] = {
    "pope": General(pope.read, WORD, answers.denied, {"POPE": share}, "lmms-lab/POPE", "arXiv 2305.10355"),
    "mmbench": General(
        mmbench.read, LETTER, answers.option, {"MMBench, circular": every}, "lmms-lab/MMBench", "arXiv 2307.06281"
    ),
    "scienceqa": General(
        scienceqa.read, LETTER, answers.letter, {"ScienceQA-IMG": share}, "lmms-lab/ScienceQA", "arXiv 2209.09513"
    ),
    "gqa": General(gqa.read, WORD, answers.phrase, {"GQA": share}, "lmms-lab/GQA", "arXiv 1902.09506"),
    "mme": General(
        mme.read, WORD, answers.beginning, {"MME": share, "MME acc+": every}, "lmms-lab/MME", "arXiv 2306.13394"
    ),
    "everyday": General(
        everyday.read, "", answers.held, {"Everyday questions": share}, "", "two hundred of this library, text alone"
    ),
}


def read(name: str, source: str | pathlib.Path) -> list[Item]:
    """The items of a benchmark of the table from a copy of it.

    Raises:
      InputError: there is none, it is damaged or empty, or two items have one id.
    """
    path = pathlib.Path(source)
    if GENERAL[name].hub and not path.exists():
        raise InputError(
            f"expected a copy of the benchmark, found nothing at {path}; download it there (dataset {GENERAL[name].hub} on the hub)"
        )
    items = GENERAL[name].read(path)
    if not items:
        raise InputError(f"expected items of the benchmark in {path}, found none; download it again")
    ids = [item.id for item in items]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"expected every item once in {path}, found {twice!r} twice; download it again")
    return items
