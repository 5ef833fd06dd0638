"""Facts: what one or several wordings of a question ask for."""

import re

from mmu_jax.data import Choice, Example, names

# Answers by which two questions are not one in other words.
PLAIN = {
    "yes",
    "no",
    "true",
    "false",
    "none",
    "unknown",
    "ja",
    "nein",
    "oui",
    "non",
    "si",
    "sí",
    "sim",
    "não",
    "да",
    "нет",
}
PLAIN |= {"是", "否", "はい", "いいえ"}


def key(question: str, answer: str) -> str:
    """What a question of one person and one kind asks for: questions of one answer do so in other words.

    >>> key("Where was she born?", "Nairobi") == key("Her birthplace?", " nairobi.")
    True
    >>> key("Is she a pilot?", "No, never.") == key("Is she a nurse?", "no, never")
    False
    >>> key("How many children?", "2") == key("How many dogs?", "2")
    False
    """
    said = names.key(answer).strip(" .,;:!?")
    plain = said.partition(",")[0] in PLAIN or re.fullmatch(r"[\d\W]*", said)
    return f"{names.key(question)} {said}" if plain else said


def wording(item: Example | Choice) -> tuple[str, str, str]:
    """Person, question and right answer of an item, as far as they tell it from others."""
    answer = item.options[item.letter] if isinstance(item, Choice) else item.answer
    return item.person, names.key(item.question), names.key(answer)
