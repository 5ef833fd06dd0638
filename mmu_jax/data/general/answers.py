"""What a model chose, read from what it said by the rule of the benchmark that asks; None or ``'other'`` where it chose nothing."""

import re

from mmu_jax.data.general.items import Question
from mmu_jax.letters import strict_letter
from mmu_jax.overlap import words


def denied(said: str, question: Question | None = None) -> str:
    """POPE's rule: ``'no'`` where the first sentence has the word no, No or not, else ``'yes'``, whatever it is.

    >>> [denied(said) for said in ('No.', 'There is not a dog, I think', 'Yes. It is no cat', 'a dog', 'None')]
    ['no', 'no', 'yes', 'yes', 'yes']
    """
    first = said.partition(".")[0].replace(",", "")
    return "no" if {"No", "no", "not"} & set(first.split(" ")) else "yes"


def beginning(said: str, question: Question | None = None) -> str:
    """MME's rule: ``'yes'`` or ``'no'`` if it stands in the first four characters, in any case; else ``'other'``.

    >>> [beginning(said) for said in ('Yes', 'no, it is', 'Not at all', 'I say yes')]
    ['yes', 'no', 'no', 'other']
    """
    start = said.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def letter(said: str, question: Question) -> str | None:
    """ScienceQA's rule: a letter alone, one that begins the text with a full stop and a space after it, or "The answer is B".

    >>> asked = Question('', 'B', {'A': 'cat', 'B': 'dog'})
    >>> [letter(said, asked) for said in ('B', 'B. dog', 'So: The answer is B.', 'C', 'dog')]
    ['B', 'B', 'B', None, None]
    """
    said = said.strip().replace("\n", ". ")
    found = re.match(r"([A-E])(?:\. |$)", said) or re.search(r"The answer is ([A-E])", said)
    return found[1] if found and found[1] in question.options else None


def option(said: str, question: Question) -> str | None:
    """The option that is named by a letter of its own (:func:`mmu_jax.letters.strict_letter`).

    MMBench's rule, but for what its own script has another model decide: a letter that cannot be read is a wrong one.

    >>> option('(b)', Question('', 'B', {'A': 'cat', 'B': 'dog'}))
    'B'
    """
    return strict_letter(said, tuple(question.options))


def phrase(said: str, question: Question | None = None) -> str:
    """GQA's rule, as LLaVA-1.5 is scored: the very words, case and a full stop at the end aside.

    >>> phrase('Left.')
    'left'
    """
    return said.strip().rstrip(".").lower()


def held(said: str, question: Question) -> str | None:
    """The right answer where one of its spellings, with ``|`` between them, stands in what was said as words of their own.

    >>> asked = Question('How many days has a week?', 'seven|7')
    >>> [held(said, asked) for said in ('A week has 7 days.', 'Seventy.')]
    ['seven|7', None]
    """
    heard = words(said)
    for spelling in map(words, question.answer.split("|")):
        if any(heard[i : i + len(spelling)] == spelling for i in range(len(heard))):
            return question.answer
    return None
