"""Facts: what one or several wordings of a question ask for."""

from mmu_jax.data import Choice, Example, names

PLAIN = ("yes", "no", "true", "false", "none", "unknown")  # answers by which two questions are not one in other words


def key(question: str, answer: str) -> str:
    """What a question of one person and one kind asks for: questions of one answer do so in other words.

    >>> key("Where was she born?", "Nairobi") == key("Her birthplace?", " nairobi")
    True
    >>> key("Is she a pilot?", "No") == key("Is she a nurse?", "no")
    False
    """
    said = names.key(answer)
    return f"{names.key(question)} {said}" if said in PLAIN else said


def asked(item: Example | Choice) -> tuple[str, str]:
    """``(person, fact)`` of a question."""
    answer = item.options[item.letter] if isinstance(item, Choice) else item.answer
    return item.person, key(item.question, answer)
